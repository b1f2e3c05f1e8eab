"""Tiny pretrained models, made here, and what is asked of them. conftest.py reads this, so no function's package is
imported but in the function."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli_cases import flags

if TYPE_CHECKING:
    from torch import Tensor

LABELS = ("air", "sea", "wood")
WORDS = {"air": ("wing", "cloud", "bird"), "sea": ("wave", "fish", "salt"), "wood": ("tree", "leaf", "root")}
COMMON = ("a", "the", "of", "and", "near")
VOCABULARY = ("[PAD]", "[UNK]", "[END]", *COMMON, *(word for words in WORDS.values() for word in words))
TINY = flags(
    rank=2, steps=6, batch_size=4, seq_len=8, lr=0.05, warmup=1, eval_every=3, eval_samples=9, save_every=2, threads=1,
    val_fraction=0.2,
)  # fmt: skip
SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "initializer_range": 0.3,
}


def texts(count: int) -> list[tuple[str, str]]:
    """(text, label): a text has words of its label among others."""
    draw = random.Random(0)
    found = []
    for number in range(count):
        label = LABELS[number % len(LABELS)]
        words = [*draw.choices(WORDS[label], k=3), *draw.choices(COMMON, k=3)]
        draw.shuffle(words)
        found.append((" ".join([*words, str(number)]), label))
    return found


def save_model(folder: Path, kind: str) -> Path:
    """Saves a tiny model of that kind, "bert" or "llama", with its tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    config = {
        "bert": transformers.BertConfig(**SIZES, num_attention_heads=2, max_position_embeddings=12),
        "llama": transformers.LlamaConfig(**SIZES, num_attention_heads=2, max_position_embeddings=12),
    }[kind]
    torch.manual_seed(3)
    auto = {"bert": transformers.AutoModel, "llama": transformers.AutoModelForCausalLM}[kind]
    auto.from_config(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]"
    )
    made.save_pretrained(folder)
    return folder


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("\n".join(["text,label", *(f'"{text}",{label}' for text, label in rows)]) + "\n")
    return path


def tuned(folder: Path) -> Any:
    """The run in `folder`, taken up from its checkpoint."""
    from lowrank_core.cli.finetune import place, pretrained, source
    from lowrank_core.cli.finetune.config import FinetuneConfig
    from lowrank_core.cli.finetune.tasks import task_of
    from lowrank_core.cli.finetune.tuning import Tuning

    config = FinetuneConfig.from_json(json.loads((folder / "run.json").read_text())["config"])
    data = source.load(config, folder)
    found = pretrained.load(place.find(str(config.model)), config, data.labels)
    run = Tuning(config, data, found, task_of(config, data, found.tokenizer), folder)
    run.restore()
    return run


def stock_logits(run: Any, base: Path, adapter: Path, auto: Any, **more: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a validation batch: of the run, of the model with the adapter by PEFT, of the model alone."""
    import peft
    import torch

    inputs = run._batches[0].inputs
    plain = auto.from_pretrained(base, **more).eval()
    with torch.no_grad():
        ours = run.model.eval()(inputs)
        alone = plain(**inputs).logits
        stock = peft.PeftModel.from_pretrained(plain, adapter).eval()(**inputs).logits
    return ours, stock, alone


def assert_adapted(ours: Tensor, stock: Tensor, alone: Tensor) -> None:
    """The same logits, summed in another order by some twenty products of up to 40 terms; and not those without."""
    import torch
    from testing import tolerance

    bound = 20 * tolerance.gamma(40, torch.float32) * float(stock.abs().max())
    torch.testing.assert_close(ours, stock, rtol=0, atol=bound)
    assert float((stock - alone).abs().max()) > 100 * bound
