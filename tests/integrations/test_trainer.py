"""transformers.Trainer: with an optimizer of ours handed over, with its class, and resumed from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from integration_cases import examples, tiny_llama
from lowrank_core.optim import GaLoreAdamW, param_groups
from transformers import Trainer, TrainerCallback, TrainingArguments

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future


def arguments(folder: Path, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(folder), "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 0.02,
            "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "save_steps": 4, "logging_steps": 1,
            "report_to": [], "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "seed": 1, **more,
        }
    )  # fmt: skip


def make(folder: Path, **more: Any) -> Trainer:
    model = tiny_llama()
    groups = param_groups(model, rank=4, update_proj_gap=3, verbose=False)
    optimizer = GaLoreAdamW(groups, lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 50)
    return Trainer(model, arguments(folder, **more), train_dataset=examples(64), optimizers=(optimizer, schedule))


class StopAt(TrainerCallback):
    """Ends the training after a step, as a preempted machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_it_trains_with_accumulation_clipping_and_a_schedule(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_steps=24)
    trainer.train()
    found = losses(trainer)
    assert len(found) == 24
    assert sum(found[-4:]) < 0.8 * sum(found[:4])
    assert any(row.refreshes == 8 for row in trainer.optimizer.optimizer.projections())


def test_it_resumes_from_a_checkpoint_to_the_bit(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    whole.train()
    broken = make(tmp_path / "broken")
    broken.add_callback(StopAt(4))
    broken.train()
    resumed = make(tmp_path / "broken")
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-4"))
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert losses(whole)[4:] == losses(resumed)[4:]


def test_the_class_and_its_keys_may_be_handed_over(tmp_path: Path) -> None:
    """Trainer then makes two groups of its own, with and without decay; embeddings are projected like the rest."""
    keys = {"lr": 0.02, "rank": 4, "update_proj_gap": 3, "betas": (0.9, 0.99), "eps": 1e-8}
    model = tiny_llama()
    trainer = Trainer(
        model,
        arguments(tmp_path, max_steps=16, weight_decay=0.1),
        train_dataset=examples(64),
        optimizer_cls_and_kwargs=(GaLoreAdamW, keys),
    )
    trainer.train()
    found = losses(trainer)
    assert sum(found[-4:]) < 0.95 * sum(found[:4])
    groups = trainer.optimizer.optimizer.param_groups
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]
    assert all(group["rank"] == 4 for group in groups)
