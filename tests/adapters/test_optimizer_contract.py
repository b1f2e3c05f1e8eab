"""What every optimizer of adapters keeps: state, skipped steps, closures, schedules, copies; and what it refuses."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowrank_core import adapters
from lowrank_core.optim import fused_backward
from testing import tolerance
from torch import Tensor, nn

Make = Callable[..., Any]  # model, keys -> optimizer
KEYS: dict[str, dict[str, Any]] = {
    "ScaledAdamW": {}, "LoRAProAdamW": {}, "LoRAProAdamW full": {"moments": "full"}, "ALLoRAAdamW": {}, "LoKO": {},
    "GeoLoRA": {"rank": 2}, "AdaLoRA": {"init_rank": 3, "target_rank": 2, "total_steps": 12},
}  # fmt: skip
PLACING = ("GeoLoRA", "AdaLoRA")  # put their layers in place
CLASSES = {name: getattr(adapters, name.partition(" ")[0]) for name in KEYS}
every = pytest.mark.parametrize("name", KEYS)


def model_for(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    if name not in PLACING:
        for i in (0, 2):
            model[i] = adapters.LoRALinear(model[i], rank=2)
            nn.init.normal_(model[i].lora_B, std=0.1)
    return model


def made(name: str, **keys: Any) -> tuple[nn.Module, Any]:
    model = model_for(name)
    return model, CLASSES[name](model, **{"lr": 0.05, **KEYS[name], **keys})


def backward(model: nn.Module, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    model.zero_grad()
    x, y = torch.randn(7, 6, generator=draw), torch.randint(4, (7,), generator=draw)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach()


def train(model: nn.Module, optimizer: Any, seeds: range) -> None:
    for seed in seeds:
        backward(model, seed)
        optimizer.step()


def values(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


@every
def test_a_saved_state_holds_tensors_and_numbers_and_goes_on_to_the_bit(name: str) -> None:
    model, optimizer = made(name)
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, range(3, 6))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, resumed = made(name)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(other, resumed, range(3, 6))
    assert same(values(model), values(other))


@every
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_goes_on_by_itself_with_the_same_bits(name: str, copied: Callable[[Any], Any]) -> None:
    model, optimizer = made(name)
    train(model, optimizer, range(2))
    other, twin = copied((model, optimizer))
    before = values(model)
    train(other, twin, range(2, 4))
    assert same(values(model), before) and not same(values(other), before)
    train(model, optimizer, range(2, 4))
    assert same(values(model), values(other))


@every
def test_a_gradient_that_is_not_finite_changes_nothing(name: str) -> None:
    model, optimizer = made(name)
    train(model, optimizer, range(2))
    backward(model, 2)
    param = next(p for p in model.parameters() if p.grad is not None)
    param.grad[0, 0] = torch.nan
    before, state = values(model), copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    assert optimizer.skipped_steps == 1 and same(before, values(model))
    after = optimizer.state_dict()["state"]
    for key, held in state["state"].items():
        assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(after[key][k])) for k, x in held.items())
    train(model, optimizer, range(3, 4))
    assert not same(before, values(model))


@every
def test_gradients_stay_and_the_closure_is_called_once(name: str) -> None:
    model, optimizer = made(name)
    losses: list[Tensor] = []

    def closure() -> Any:
        losses.append(backward(model, 0))
        grads.extend((p, p.grad.clone()) for p in model.parameters() if p.grad is not None)
        return losses[-1]

    grads: list[tuple[Tensor, Tensor]] = []
    before = values(model)
    assert optimizer.step(closure) is losses[0] and len(losses) == 1
    assert grads and not same(before, values(model))
    assert all(p.grad is not None and torch.equal(p.grad, grad) for p, grad in grads)


@pytest.mark.parametrize("name", [name for name in KEYS if "maximize" in inspect.signature(CLASSES[name]).parameters])
def test_maximize_is_minimizing_the_negative(name: str) -> None:
    found = []
    for maximize in (False, True):
        model, optimizer = made(name, maximize=maximize)
        for seed in range(3):
            backward(model, seed)
            for p in model.parameters():
                if maximize and p.grad is not None:
                    p.grad.neg_()
            optimizer.step()
        found.append(values(model))
    assert same(*found)


@every
def test_a_schedule_moves_the_rate(name: str) -> None:
    """At a rate of 0 the outputs stay: GeoLoRA turns its bases even then, and AdaLoRA's last choice is not due yet."""
    model, optimizer = made(name, **({"t_init": 8} if name == "AdaLoRA" else {}))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(9))
    outputs = [model(x).detach()]
    for seed in range(2):
        train(model, optimizer, range(seed, seed + 1))
        outputs.append(model(x).detach())
        schedule.step()
    bound = 20 * tolerance.gamma(12, torch.float32) * float(outputs[1].abs().max()) if name == "GeoLoRA" else 0.0
    assert float((outputs[2] - outputs[1]).abs().max()) <= bound < float((outputs[1] - outputs[0]).abs().max())


@pytest.mark.parametrize("name", [name for name in KEYS if name not in (*PLACING, "LoKO")])
def test_a_model_without_trained_pairs_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{CLASSES[name].__name__}: `model` must have low-rank adapters"):
        CLASSES[name](nn.Linear(3, 2), **KEYS[name])
    with pytest.raises(ValueError, match="`model` must train both factors of an adapter"):
        CLASSES[name](model_for(name).requires_grad_(False), **KEYS[name])
    with pytest.raises(TypeError, match=f"{CLASSES[name].__name__}: `rank` must be one of its keys"):
        CLASSES[name](model_for(name), rank=2, **KEYS[name])


@pytest.mark.parametrize("name", [*PLACING, "LoKO"])
def test_a_model_with_nothing_to_train_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: "):
        CLASSES[name](nn.Sequential(nn.LayerNorm(3)).requires_grad_(False), **KEYS[name])


@pytest.mark.parametrize("name", [name for name in KEYS if name not in (*PLACING, "LoKO")])  # a filter has one rate
def test_groups_of_two_rates_move_their_own(name: str) -> None:
    model = model_for(name)
    groups = adapters.loraplus_param_groups(model, 0.0)  # both rates are 0
    groups[1]["lr"] = 0.05
    optimizer = CLASSES[name](model, groups, **KEYS[name])
    before = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
    train(model, optimizer, range(1))
    moved = {key for key, p in model.named_parameters() if key in before and not torch.equal(p, before[key])}
    assert moved == {"0.lora_B", "2.lora_B"}


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("name", [name for name in KEYS if name != "LoKO"])
def test_gradients_taken_inside_backward_are_the_same(name: str, batches: int) -> None:
    found = []
    for layerwise in (False, True):
        model, optimizer = made(name)
        start = values(model)
        if layerwise:
            fused_backward(model, optimizer)
        for step in range(3):
            for seed in range(batches):
                x = torch.randn(7, 6, generator=torch.Generator().manual_seed(10 * step + seed))
                model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(values(model))
    assert same(*found) and not same(start, found[1])


def test_a_filter_takes_no_gradients_inside_backward() -> None:
    with pytest.raises(
        TypeError, match="`optimizer` must be one of lowrank_core that steps by gradients alone, got LoKO"
    ):
        fused_backward(*made("LoKO"))


@pytest.mark.parametrize(
    ("name", "there"),
    [("GeoLoRA", "GeoLoRA"), ("GeoLoRA", "AdaLoRA"), ("GeoLoRA", "ALLoRAAdamW"), ("AdaLoRA", "GeoLoRA")],
)  # AdaLoRA takes its own layers as they are
def test_layers_are_put_in_place_once(name: str, there: str) -> None:
    model, _ = made(there)
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=f"^{name}: `model` must have no adapters yet, got one with them in `0`"):
        CLASSES[name](model, **KEYS[name])
    assert [type(module) for module in model.modules()] == before


def scaled(name: str, scaler: torch.amp.GradScaler, *, spoil: int | None = None) -> tuple[nn.Module, Any]:
    """Three steps by a scaler, which finds an infinite gradient in step `spoil`."""
    model, optimizer = made(name)
    for step in range(3):
        optimizer.zero_grad()
        draw = torch.Generator().manual_seed(step)
        x, y = torch.randn(7, 6, generator=draw), torch.randint(4, (7,), generator=draw)
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        kept = values(model), copy.deepcopy(optimizer.state_dict())
        if step == spoil:
            next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf  # type: ignore[union-attr]
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if step == spoil:
            assert same(kept[0], values(model))
            for key, state in kept[1]["state"].items():
                now = optimizer.state_dict()["state"][key]
                assert all(torch.equal(torch.as_tensor(now[entry]), torch.as_tensor(x)) for entry, x in state.items())
    return model, optimizer


@every
def test_a_scaler_changes_no_bit_and_skips_what_overflows(name: str) -> None:
    off, on = (scaled(name, torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=on))[0] for on in (False, True))
    assert same(values(off), values(on))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    _, optimizer = scaled(name, scaler, spoil=1)
    assert scaler.get_scale() == 2.0**9
    assert {int(state["step"]) for state in optimizer.state.values() if "step" in state} == {2}


@every
def test_what_is_no_module_is_refused_by_the_name_of_the_class(name: str) -> None:
    model = model_for(name)
    if name == "LoKO":  # which takes parameters, too
        return
    with pytest.raises(TypeError, match=f"^{CLASSES[name].__name__}: `model` must be a torch.nn.Module, got list"):
        CLASSES[name](list(model.parameters()), **KEYS[name])


@pytest.mark.parametrize("name", PLACING)
def test_a_model_that_is_the_layer_itself_is_refused(name: str) -> None:
    layer = nn.Linear(6, 5)
    with pytest.raises(ValueError, match=r"`model` must hold the linear layers .*, got 'Linear'; wrap it"):
        CLASSES[name](layer, **KEYS[name])
    assert layer.weight.requires_grad and [key for key, _ in layer.named_modules()] == [""]


@pytest.mark.parametrize("name", ["ScaledAdamW", "LoRAProAdamW", "ALLoRAAdamW"])
def test_parameters_of_another_model_are_refused(name: str) -> None:
    model, other = model_for(name), model_for(name)
    inner = [p for key, p in model.named_parameters() if key.endswith("lora_A")]
    for params in (list(other.parameters()), inner):
        message = rf"^{name}: `params` must hold both factors .*, got '{len(params)} without'"
        with pytest.raises(ValueError, match=message):
            CLASSES[name](model, params)
