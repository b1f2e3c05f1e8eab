"""accelerate: prepare, accumulation, clipping, save_state and load_state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
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


def test_a_scaler_of_accelerate_skips_what_overflows() -> None:
    """As with `mixed_precision="fp16"`: the optimizer does not see the step. Powers of two change no bit."""
    prepared("no")  # the state of accelerate that a wrapped optimizer reads
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)
    model, plain = tiny_llama(), tiny_llama()
    inside, reference = (
        GaLoreAdamW(one.named_parameters(), lr=0.02, rank=4, update_proj_gap=2) for one in (model, plain)
    )
    optimizer = AcceleratedOptimizer(inside, scaler=scaler)
    for number, batch in enumerate(batches(6, 4)):
        before = [param.detach().clone() for param in model.parameters()]
        bad = number == 3
        optimizer.zero_grad()
        loss = scaler.scale(model(**batch).loss)
        (loss * torch.inf if bad else loss).backward()
        optimizer.step()
        assert optimizer.step_was_skipped == bad and inside.skipped_steps == 0
        assert bad == all(torch.equal(one, param) for one, param in zip(before, model.parameters(), strict=True))
        if not bad:
            reference.zero_grad()
            plain(**batch).loss.backward()
            reference.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
