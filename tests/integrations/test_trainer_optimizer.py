"""trainer_optimizer and MonitorCallback: every method in a Trainer, saved, killed and resumed to the bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from integration_cases import examples, tiny_llama
from lowrank_core.integrations.transformers import MonitorCallback, trainer_optimizer
from lowrank_core.optim import LISA, METHODS, GaLoreAdamW, fused_backward, param_groups
from peft import LoraConfig, get_peft_model
from test_trainer import StopAt, arguments, losses
from testing import examples as docstrings
from torch import nn
from transformers import Trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future


def keys_of(name: str) -> dict[str, Any]:
    """Of a run that projects and refreshes, as far as the method has such keys."""
    known = inspect.signature(METHODS[name]).parameters
    return {key: value for key, value in {"lr": 0.02, "update_proj_gap": 3, "scale": 1.0}.items() if key in known}


def make(folder: Path, name: str, *callbacks: Any, **more: Any) -> Trainer:
    model = tiny_llama()
    made = trainer_optimizer(model, METHODS[name], rank=4, weight_decay=0.1, verbose=False, **keys_of(name))
    return Trainer(
        model, arguments(folder, **more), train_dataset=examples(64), optimizer_cls_and_kwargs=made,
        callbacks=list(callbacks),
    )  # fmt: skip


@pytest.mark.parametrize("public", [trainer_optimizer, MonitorCallback])
def test_examples(public: Any) -> None:
    test = docstrings.example(public.__name__, public)
    assert test.examples and docstrings.failures(test) == ""


def check_resumed(tmp_path: Path, trainer: Callable[[Path], Trainer]) -> Trainer:
    """Asserts that a run that is stopped after step 4 and resumed has the bits of one that is not; returns that one."""
    whole = trainer(tmp_path / "whole")
    whole.train()
    found = losses(whole)
    assert len(found) == 8 and sum(found[-2:]) < sum(found[:2])
    broken = trainer(tmp_path / "broken")
    broken.add_callback(StopAt(4))
    broken.train()
    resumed = trainer(tmp_path / "broken")
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-4"))
    for (path, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), path
    assert losses(resumed)[4:] == found[4:]
    return whole


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    check_resumed(tmp_path, lambda folder: make(folder, name))


def lisa(folder: Path, model: nn.Module) -> Trainer:
    inside = GaLoreAdamW(param_groups(model, rank=4, update_proj_gap=3, verbose=False), lr=0.05)
    optimizer = LISA(inside, model, active=1, period=3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 50)
    return Trainer(model, arguments(folder), train_dataset=examples(64), optimizers=(optimizer, schedule))


def test_lisa_resumes_to_the_bit(tmp_path: Path) -> None:
    """Saved within a period, whose layer is not the one that is drawn first."""
    trainer = check_resumed(tmp_path, lambda folder: lisa(folder, tiny_llama()))
    assert trainer.optimizer.optimizer.steps == 8


@pytest.mark.parametrize(
    "keys", [{"gradient_checkpointing": True}, {"torch_compile": True, "torch_compile_backend": "eager"}], ids=str
)
def test_what_computes_gradients_otherwise_keeps_the_bits(keys: dict[str, Any], tmp_path: Path) -> None:
    trainer = check_resumed(tmp_path, lambda folder: make(folder, "galore", **keys))
    plain = make(tmp_path / "plain", "galore")
    plain.train()
    assert losses(trainer) == losses(plain)


def layerwise(folder: Path) -> Trainer:
    trainer = make(folder, "galore")
    fused_backward(trainer.model, trainer.create_optimizer(), max_norm=0.5)
    trainer.accelerator.clip_grad_norm_ = lambda *_: None
    return trainer


def test_layerwise_updates_accumulate_clip_and_resume(tmp_path: Path) -> None:
    check_resumed(tmp_path, layerwise)
    trainer = make(tmp_path / "refused", "galore")
    fused_backward(trainer.model, trainer.create_optimizer(), max_norm=0.5)
    with pytest.raises(NotImplementedError):  # torch's: a Trainer that clips finds no gradients
        trainer.train()


def adapters(folder: Path) -> Trainer:
    torch.manual_seed(11)
    model = get_peft_model(tiny_llama(), LoraConfig(r=6, target_modules=["q_proj"], modules_to_save=["up_proj"]))
    made = trainer_optimizer(model, "galore", rank=4, update_proj_gap=3, lr=0.05, scale=1.0, verbose=False)
    return Trainer(model, arguments(folder), train_dataset=examples(64), optimizer_cls_and_kwargs=made)


def test_adapters_resume_to_the_bit(tmp_path: Path) -> None:
    trainer = check_resumed(tmp_path, adapters)
    searched = {row.name for row in trainer.optimizer.optimizer.projections() if row.refreshes}
    assert any("lora_A" in name for name in searched) and any("modules_to_save" in name for name in searched)


def test_save_only_model_leaves_the_moments_out(tmp_path: Path) -> None:
    """As the guide warns."""
    broken = make(tmp_path, "galore", StopAt(4), save_only_model=True)
    broken.train()
    resumed = make(tmp_path, "galore")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert {int(state["step"]) for state in resumed.optimizer.optimizer.state.values()} == {4}


def test_embeddings_are_plain_and_everything_has_its_name(tmp_path: Path) -> None:
    trainer = make(tmp_path, "galore", max_steps=1)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    names = dict(tiny_llama().named_parameters())
    plan = {row.name: row for row in optimizer.plan()}
    assert plan.keys() == names.keys()
    assert not plan["model.embed_tokens.weight"].projected
    assert {name for name, row in plan.items() if row.projected} == {n for n in names if n.endswith("proj.weight")}
    for group in optimizer.param_groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"cls": "adam"}, ValueError, "trainer_optimizer: `cls` must be a class or one of galore, .*, got 'adam'"),
        ({"cls": GaLoreAdamW, "gap": 3}, TypeError, "`gap` must be one of its keys"),
        ({"cls": GaLoreAdamW, "lr": -1.0}, ValueError, "`lr` must be a number >= 0"),
        ({"cls": GaLoreAdamW, "weight_decay": -1.0}, ValueError, "`weight_decay` must be a number >= 0"),
        ({"cls": GaLoreAdamW, "target_modules": ["nothing"]}, ValueError, "`target_modules` must match a matrix"),
    ],
)
def test_what_the_class_refuses_is_refused_before_the_trainer(given: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        trainer_optimizer(tiny_llama(), **{"rank": 4, "verbose": False, **given})
