"""Every kind of adapter that PEFT builds, on a small decoder and a small encoder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import peft
import torch
from lowrank_core.adapters import LoKO
from lowrank_core.optim import ApolloAdamW, GaLoreAdamW
from peft import get_peft_model
from torch import Tensor, nn

WORDS, LENGTH, CLASSES = 32, 8, 3
DECODER = ["q_proj", "v_proj", "up_proj"]
ENCODER = ["query", "value", "dense"]


class Tuner(NamedTuple):
    """A row of the matrix: the config's class and keys. `linear` keys go to tuners that have target modules."""

    config: str
    keys: dict[str, Any] = {}  # noqa: RUF012  (read only)
    targets: bool = True
    encoder: bool = True  # whether PEFT has it for sequence classification
    decoder: bool = True
    feedforward: bool = False


TUNERS: dict[str, Tuner] = {
    "LoRA": Tuner("LoraConfig", {"r": 4}),
    "rsLoRA": Tuner("LoraConfig", {"r": 4, "use_rslora": True}),
    "DoRA": Tuner("LoraConfig", {"r": 4, "use_dora": True}),
    "AdaLoRA": Tuner("AdaLoraConfig", {"init_r": 4, "target_r": 2, "total_step": 100}),
    "AdaMSS": Tuner("AdamssConfig", {"r": 8, "num_subspaces": 2}),
    "BEFT": Tuner("BeftConfig", encoder=True, decoder=False),
    "BOFT": Tuner("BOFTConfig", {"boft_block_size": 4}),
    "C3A": Tuner("C3AConfig", {"block_size": 8}),
    "DEFT": Tuner("DeftConfig", {"r": 4}),
    "DeLoRA": Tuner("DeloraConfig", {"r": 4}),
    "FourierFT": Tuner("FourierFTConfig", {"n_frequency": 40}),
    "FRoD": Tuner("FrodConfig"),
    "GLoRA": Tuner("GloraConfig", {"r": 4}),
    "GraLoRA": Tuner("GraloraConfig", {"r": 4, "gralora_k": 2}),
    "HiRA": Tuner("HiraConfig", {"r": 4}),
    "HRA": Tuner("HRAConfig", {"r": 4}),
    "IA3": Tuner("IA3Config", feedforward=True),
    "Lily": Tuner("LilyConfig", {"r": 4}),
    "LN tuning": Tuner("LNTuningConfig", targets=False),
    "LoHa": Tuner("LoHaConfig", {"r": 4}),
    "LoKr": Tuner("LoKrConfig", {"r": 4}),
    "MiSS": Tuner("MissConfig", {"r": 4}),
    "OFT": Tuner("OFTConfig", {"oft_block_size": 4, "r": 0}),
    "OSF": Tuner("OSFConfig"),
    "PEANuT": Tuner("PeanutConfig", {"r": 4}),
    "Poly": Tuner("PolyConfig", {"r": 4, "n_tasks": 1, "n_skills": 2, "n_splits": 1}),
    "PSOFT": Tuner("PsoftConfig", {"r": 4}),
    "PVeRA": Tuner("PveraConfig", {"r": 4}),
    "RandLoRA": Tuner("RandLoraConfig", {"r": 4}),
    "RoAd": Tuner("RoadConfig", {"group_size": 8}),
    "SHiRA": Tuner("ShiraConfig", {"r": 2}),
    "Supertuning": Tuner("SupertuningConfig"),
    "TinyLoRA": Tuner("TinyLoraConfig"),
    "Trainable tokens": Tuner("TrainableTokensConfig", {"token_indices": [1, 2, 3]}, targets=False),
    "Uni-LoRA": Tuner("UniLoraConfig", {"r": 4, "theta_d_length": 64}),
    "VB-LoRA": Tuner("VBLoRAConfig", {"r": 4, "num_vectors": 16, "vector_length": 8, "topk": 2}),
    "VeRA": Tuner("VeraConfig", {"r": 4}),
    "WaveFT": Tuner("WaveFTConfig", {"n_frequency": 40}),
    "X-LoRA": Tuner("XLoraConfig", targets=False, encoder=False),
    "Prompt tuning": Tuner("PromptTuningConfig", {"num_virtual_tokens": 4}, targets=False),
    "Multitask prompts": Tuner(
        "MultitaskPromptTuningConfig", {"num_virtual_tokens": 4, "num_tasks": 1, "num_ranks": 1}, targets=False
    ),
    "P-tuning": Tuner("PromptEncoderConfig", {"num_virtual_tokens": 4, "encoder_hidden_size": 8}, targets=False),
    "Prefix tuning": Tuner("PrefixTuningConfig", {"num_virtual_tokens": 4}, targets=False),
    "CPT": Tuner(
        "CPTConfig", {"cpt_token_ids": [1, 2, 3, 4], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1, 2, 3, 4]},
        targets=False, encoder=False,
    ),
    "Cartridge": Tuner("CartridgeConfig", {"num_virtual_tokens": 4}, targets=False, encoder=False),
    "LLaMA-Adapter": Tuner(
        "AdaptionPromptConfig", {"adapter_len": 4, "adapter_layers": 2}, targets=False, encoder=False
    ),
    "Shadow": Tuner("ShadowConfig", {"r": 4}, targets=False),
}  # fmt: skip

OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "GaLoreAdamW": lambda model: GaLoreAdamW(_trained(model), lr=0.02, rank=2, update_proj_gap=5, scale=1.0),
    "ApolloAdamW": lambda model: ApolloAdamW(_trained(model), lr=0.02, rank=2, update_proj_gap=5),
    "LoKO": lambda model: LoKO(model, p0=P0.get(_kind(model), 0.1)),
}
# Where gradients are of 1e-4, a variance has to be larger.
P0 = {"TRAINABLE_TOKENS": 1e4, "CPT": 10.0, "XLORA": 1e4}


def base(kind: str) -> nn.Module:
    """The model that is adapted: always the same weights."""
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    if kind == "decoder":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        model: nn.Module = LlamaForCausalLM(
            LlamaConfig(vocab_size=WORDS, **sizes, max_position_embeddings=32, attn_implementation="eager")
        )
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=WORDS, **sizes, num_labels=CLASSES, max_position_embeddings=32, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0, attn_implementation="eager",
            )
        )  # fmt: skip
    return model


def hosted(name: str, kind: str, folder: str | None = None) -> nn.Module:
    """The model with the tuner `name`, by PEFT."""
    tuner = TUNERS[name]
    keys = copy.deepcopy(tuner.keys)
    if tuner.targets:
        keys["target_modules"] = DECODER if kind == "decoder" else ENCODER
    if tuner.feedforward:
        keys["feedforward_modules"] = ["up_proj"] if kind == "decoder" else []
    if name == "Trainable tokens":
        keys["target_modules"] = ["embed_tokens" if kind == "decoder" else "word_embeddings"]
    if name == "LN tuning" and kind == "encoder":
        keys["target_modules"] = ["LayerNorm"]
    if name == "Poly" and kind == "encoder":
        keys["target_modules"] = ["query", "value"]  # it wants sequences, and the pooler has none
    if name == "X-LoRA":
        # Experts that do something: beside those of zero there is nothing to choose. PEFT calls them "0", "1", ...
        start = {"r": 2, "target_modules": DECODER, "task_type": "CAUSAL_LM", "init_lora_weights": False}
        experts = {str(number): f"{folder}/{number}" for number in range(2)}
        for place in experts.values():
            get_peft_model(base(kind), peft.LoraConfig(**start)).save_pretrained(place)
        keys |= {"hidden_size": 16, "adapters": experts, "xlora_depth": 1}
    if name == "Shadow" and kind == "encoder":
        keys["target_modules"] = r".*\.layer\.\d+$"  # it looks for a decoder's layers by itself
    task = "CAUSAL_LM" if kind == "decoder" else "SEQ_CLS"
    torch.manual_seed(4)
    config = getattr(peft, tuner.config)(task_type=task, **keys)
    below = base(kind)
    below.config.use_cache = name in ("Prefix tuning", "Cartridge")  # which hand over keys and values
    model: nn.Module = get_peft_model(below, config)
    return model


def inputs(name: str, kind: str) -> dict[str, Tensor]:
    """One batch: sequences that count upwards, and what is to be said of them."""
    starts = torch.arange(4)
    tokens = (starts[:, None] * 5 + torch.arange(LENGTH)) % WORDS
    labels = tokens if kind == "decoder" else starts % CLASSES
    found = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    if name == "CPT":
        found["input_type_mask"] = torch.full_like(tokens, 4)
    if name in ("Poly", "Multitask prompts"):
        found["task_ids"] = torch.zeros(len(tokens), dtype=torch.long)
    return found


def step(model: nn.Module, optimizer: Any, batch: dict[str, Tensor]) -> float:
    """One step; LoKO takes outputs and targets where their shapes fit, and gradients where a tuner changes them."""
    out = model(**batch)
    if isinstance(optimizer, LoKO):
        logits, labels = out.logits, batch["labels"]
        if logits.ndim == 3:
            logits, labels = logits[:, -labels.shape[1] :][:, :-1], labels[:, 1:]
        optimizer.step(logits, labels)
    else:
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    return float(out.loss.detach())


def _kind(model: nn.Module) -> str:
    config: Any = next(iter(model.peft_config.values()))  # type: ignore[union-attr, operator]
    return str(config.peft_type.name)


def _trained(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


# (tuner, model): what PEFT or transformers says, and why it is no fault of an optimizer.
UPSTREAM = {
    ("Prefix tuning", "encoder"): (ValueError, "past key values", "BERT of transformers 5 takes none"),
}


def kinds_of(name: str) -> list[str]:
    """The models that the tuner is for."""
    tuner = TUNERS[name]
    return [kind for kind, has in (("decoder", tuner.decoder), ("encoder", tuner.encoder)) if has]


def check(name: str, kind: str, optimizer: str, folder: str) -> None:
    """Trains, saves and goes on: the loss falls, frozen weights stay, and a resumed run has the same bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check(name, kind, optimizer, folder)


def _check(name: str, kind: str, optimizer: str, folder: str) -> None:
    model, batch = hosted(name, kind, folder), inputs(name, kind)
    frozen = {key: p.detach().clone() for key, p in model.named_parameters() if not p.requires_grad}
    stepping = OPTIMIZERS[optimizer](model)
    losses = []
    for _ in range(12):
        losses.append(step(model, stepping, batch))
    assert min(losses[-3:]) < losses[0], f"the loss did not fall: {losses}"
    trained = dict(model.named_parameters())
    assert all(torch.equal(value, trained[key]) for key, value in frozen.items()), "a frozen weight has changed"
    saved = copy.deepcopy((model.state_dict(), stepping.state_dict()))
    rng = torch.get_rng_state()
    expected = [step(model, stepping, batch) for _ in range(3)]
    again = hosted(name, kind, folder)
    again.load_state_dict(saved[0])
    resumed = OPTIMIZERS[optimizer](again)
    resumed.load_state_dict(saved[1])
    torch.set_rng_state(rng)
    assert [step(again, resumed, batch) for _ in range(3)] == expected, "a resumed run differs"
