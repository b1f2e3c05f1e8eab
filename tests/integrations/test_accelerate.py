"""accelerate: prepare, accumulation, clipping, save_state and load_state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, PartialState
from integration_cases import batches, tiny_llama
from lowrank_core import adapters
from lowrank_core.optim import GaLoreAdamW, param_groups

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future


TARGETS = ["q_proj", "v_proj", "down_proj"]
# Observed: a step is a closure that returns what is seen, for nothing else passes accelerate's wrapper.
ADAPTERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ScaledAdamW": (adapters.ScaledAdamW, {}),
    "LoRAProAdamW": (adapters.LoRAProAdamW, {}),
    "ALLoRAAdamW": (adapters.ALLoRAAdamW, {}),
    "LoKO": (adapters.LoKO, {"lr": 1.0}),
    "LoKO, observed": (adapters.LoKO, {"lr": 1.0}),
    "GeoLoRA": (adapters.GeoLoRA, {"target_modules": TARGETS, "rank": 2}),
    "AdaLoRA": (adapters.AdaLoRA, {"target_modules": TARGETS, "init_rank": 3, "target_rank": 2, "total_steps": 12}),
}


def galore(model: Any) -> Any:
    return GaLoreAdamW(param_groups(model, rank=4, update_proj_gap=3, verbose=False), lr=0.02)


def prepared(
    mixed_precision: str, make: Callable[[Any], Any] = galore, model: Any = None, accumulated: int = 2
) -> tuple[Accelerator, Any, Any, Any]:
    AcceleratorState._reset_state()
    PartialState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulated, mixed_precision=mixed_precision)
    model = tiny_llama() if model is None else model
    optimizer = make(model)
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


def observe(accelerator: Accelerator, model: Any, optimizer: Any, schedule: Any, numbers: range) -> list[float]:
    losses = []
    for number, batch in enumerate(batches(numbers.stop, 4)):
        if number in numbers:
            logits, targets = model(input_ids=batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
            optimizer.step(lambda seen=(logits, targets): seen)
            schedule.step()
            losses.append(float(torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())))
    return losses


@pytest.mark.parametrize(
    ("name", "mixed_precision"),
    [*((name, "no") for name in ADAPTERS), ("ScaledAdamW", "bf16"), ("LoKO, observed", "bf16")],
)
def test_optimizers_of_adapters_train_and_resume_to_the_bit(name: str, mixed_precision: str, tmp_path: Path) -> None:
    cls, keys = ADAPTERS[name]
    observed = "observed" in name
    take, accumulated = (observe, 1) if observed else (run, 2)

    def start() -> tuple[Accelerator, Any, Any, Any]:
        torch.manual_seed(11)
        model = tiny_llama()
        if cls not in (adapters.GeoLoRA, adapters.AdaLoRA):
            model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=TARGETS))
        return prepared(mixed_precision, lambda own: cls(own, **{"lr": 0.02, **keys}), model, accumulated)

    whole = start()
    frozen = {key: p.detach().clone() for key, p in whole[1].named_parameters() if not p.requires_grad}
    losses = take(*whole, range(12))
    assert sum(losses[-4:]) < sum(losses[:4])
    assert all(torch.equal(p, frozen[key]) for key, p in whole[1].named_parameters() if key in frozen)
    first = start()
    take(*first, range(4))
    first[0].save_state(str(tmp_path / "state"))
    second = start()
    second[0].load_state(str(tmp_path / "state"))
    assert take(*second, range(4, 12)) == losses[4:]
    assert isinstance(second[2], AcceleratedOptimizer) and second[2].optimizer.skipped_steps == 0
    for one, other in zip(whole[1].parameters(), second[1].parameters(), strict=True):
        assert torch.equal(one, other)


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
