"""Started adapters in Trainer: a run that is stopped and started anew goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from integration_cases import batches, examples
from lowrank_core import adapters
from peft_cases import close, llama, logits
from test_trainer import StopAt, arguments, losses
from test_trainer_optimizer import check_resumed
from transformers import Trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future


def trainer(folder: Path, method: str) -> Trainer:
    model = llama()
    adapters.init_lora_(model, method, **({"batches": list(batches(2, 3))} if method in ("lora_ga", "lora_sb") else {}))
    return Trainer(model, arguments(folder, learning_rate=0.02), train_dataset=examples(64))


@pytest.mark.parametrize("method", ["pissa", "lora_ga"])
def test_weights_that_moved_resume_to_the_bit(method: str, tmp_path: Path) -> None:
    check_resumed(tmp_path, lambda folder: trainer(folder, method))


def test_squares_resume_to_rounding(tmp_path: Path) -> None:
    """A checkpoint holds B S, rounded, from which S is solved."""
    whole, broken = trainer(tmp_path / "whole", "lora_sb"), trainer(tmp_path / "broken", "lora_sb")
    whole.train()
    broken.add_callback(StopAt(4))
    broken.train()
    resumed = trainer(tmp_path / "broken", "lora_sb")
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-4"))
    assert len(losses(resumed)) == 8 and [n for n, p in resumed.model.named_parameters() if p.requires_grad]
    close(logits(resumed.model), logits(whole.model), 8.0)  # four steps went on from it
    moved = torch.stack([p.detach() for n, p in whole.model.named_parameters() if n.endswith("lora_S")])
    assert moved.abs().max() > 0.02
