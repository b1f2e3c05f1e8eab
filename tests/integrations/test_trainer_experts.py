"""A mixture of experts in a Trainer: every method steps its stacks, is saved, killed and resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from integration_cases import LENGTH, VOCABULARY, examples
from lowrank_core.integrations.transformers import trainer_optimizer
from lowrank_core.optim import METHODS
from test_trainer import StopAt, arguments
from test_trainer_optimizer import check_resumed, keys_of, lisa
from torch import nn
from transformers import Trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": LENGTH, "num_experts_per_tok": 2, "attn_implementation": "eager",
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "GptOss": {"num_local_experts": 4, "intermediate_size": 12, "sliding_window": 8},
    "Mixtral": {"num_local_experts": 4, "intermediate_size": 12},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 12, "intermediate_size": 12},
}


def mixture(kind: str = "GptOss", layers: int = 1) -> nn.Module:
    """Always the same weights."""
    if not hasattr(transformers, f"{kind}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    config = getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind], num_hidden_layers=layers)
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config)
    torch.random.set_rng_state(state)
    return model


def make(folder: Path, name: str, model: nn.Module | None = None, **more: Any) -> Trainer:
    model = mixture() if model is None else model
    made = trainer_optimizer(model, METHODS[name], rank=4, weight_decay=0.1, verbose=False, **keys_of(name))
    return Trainer(model, arguments(folder, **more), train_dataset=examples(64), optimizer_cls_and_kwargs=made)


def stacks(trainer: Trainer) -> list[nn.Parameter]:
    found = [p for name, p in trainer.model.named_parameters() if p.ndim == 3]
    assert len(found) == 2 * trainer.model.config.num_hidden_layers
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    trainer = check_resumed(tmp_path, lambda folder: make(folder, name))
    before = [p for p in mixture().parameters() if p.ndim == 3]
    for old, p in zip(before, stacks(trainer), strict=True):
        assert all(not torch.equal(one, other) for one, other in zip(old, p, strict=True))  # every expert has moved
    groups = [group for group in trainer.optimizer.optimizer.param_groups if group["stacked"]]
    names = {name for group in groups for name in group["param_names"]}
    assert {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"} <= names


def test_lisa_resumes_to_the_bit(tmp_path: Path) -> None:
    """Of two layers, for with one it has nothing to draw."""
    trainer = check_resumed(tmp_path, lambda folder: lisa(folder, mixture(layers=2)))
    assert len(stacks(trainer)) == 4 and trainer.optimizer.optimizer.steps == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_loaded_before_resumes_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Where a Trainer leaves experts out whose names in the file are others, as the guide says, also with AdamW."""
    whole = make(tmp_path / "whole", "galore", mixture(kind))
    whole.train()
    broken = make(tmp_path / "broken", "galore", mixture(kind))
    broken.add_callback(StopAt(4))
    broken.train()
    path = tmp_path / "broken" / "checkpoint-4"
    loaded = type(whole.model).from_pretrained(path, attn_implementation="eager")
    resumed = make(tmp_path / "broken", "galore", loaded)
    resumed.train(resume_from_checkpoint=str(path))
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_a_trainer_itself_leaves_their_experts_out(kind: str, tmp_path: Path) -> None:
    """What the guide says of transformers, with torch's AdamW: when this fails, that paragraph goes."""
    trainer = Trainer(mixture(kind), arguments(tmp_path, max_steps=1, save_steps=1), train_dataset=examples(64))
    trainer.train()
    fresh = mixture(kind)
    Trainer(fresh, arguments(tmp_path, max_steps=1), train_dataset=examples(64)).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-1")
    )  # which has no step left to take
    left = {name for (name, p), q in zip(fresh.named_parameters(), mixture(kind).parameters(), strict=True)
            if torch.equal(p, q)}  # fmt: skip
    assert {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"} <= left
