"""accelerate: prepare, accumulation, clipping, save_state and load_state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install '.[integrations]'")
pytest.importorskip("accelerate", reason="needs accelerate: pip install '.[integrations]'")

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from integration_cases import batches, tiny_llama
from lowrank_core.optim import GaLoreAdamW, param_groups

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future


def prepared(mixed_precision: str) -> tuple[Accelerator, Any, Any, Any]:
    AcceleratorState._reset_state()
    PartialState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=mixed_precision)
    model = tiny_llama()
    optimizer = GaLoreAdamW(param_groups(model, rank=4, update_proj_gap=3, verbose=False), lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 100)
    return (accelerator, *accelerator.prepare(model, optimizer, schedule))


def run(accelerator: Accelerator, model: Any, optimizer: Any, schedule: Any, numbers: range) -> list[float]:
    losses = []
    for number, batch in enumerate(batches(numbers.stop, 4)):
        if number in numbers:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_it_trains_and_resumes_to_the_bit(mixed_precision: str, tmp_path: Path) -> None:
    whole = prepared(mixed_precision)
    losses = run(*whole, range(24))
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    first = prepared(mixed_precision)
    run(*first, range(8))
    first[0].save_state(str(tmp_path / "state"))
    second = prepared(mixed_precision)
    second[0].load_state(str(tmp_path / "state"))
    assert run(*second, range(8, 24)) == losses[8:]
    for one, other in zip(whole[1].parameters(), second[1].parameters(), strict=True):
        assert torch.equal(one, other)
