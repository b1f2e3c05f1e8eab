"""LISA: who is trained when, what is frozen and dropped, resuming, and any optimizer inside."""

from __future__ import annotations

import copy
import io
import pickle
from collections import Counter
from typing import Any

import pytest
import torch
from lowrank_core.optim import LISA, FrugalAdamW, GaLoreAdamW, estimate_state_bytes
from lowrank_core.optim.seeds import mix_seed
from optim_cases import draw, same
from torch import Tensor, nn

LAYERS, WIDTH = 6, 8


class Model(nn.Module):
    """An embedding, a stack of like layers, a shorter stack, a norm that a layer has too, and a head."""

    def __init__(self) -> None:
        super().__init__()
        state = torch.random.get_rng_state()
        torch.manual_seed(3)
        self.embed = nn.Linear(5, WIDTH)
        self.short = nn.ModuleList(nn.Tanh() for _ in range(9))  # like modules, without parameters
        self.pair = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 4)
        torch.random.set_rng_state(state)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pair(self.embed(x))
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x)


def backward(model: nn.Module, number: int) -> None:
    model.zero_grad()
    (model(draw(7, 5, seed=number)) - draw(7, 4, seed=100)).square().mean().backward()


def train(model: nn.Module, optimizer: Any, numbers: range) -> None:
    for number in numbers:
        backward(model, number)
        optimizer.step()


def drawn(seed: int, period: int, active: int) -> list[int]:
    """Those with the smallest hashes."""
    keys = [mix_seed(seed, period, layer) for layer in range(LAYERS)]
    return sorted(keys.index(key) for key in sorted(keys)[:active])


INSIDE: dict[str, Any] = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "galore": lambda params: GaLoreAdamW(params, lr=0.01, rank=2, update_proj_gap=4),
    "frugal": lambda params: FrugalAdamW(params, lr=0.01, update_proj_gap=4, rounding="stochastic"),
}
with_any = pytest.mark.parametrize("inside", INSIDE)


@with_any
@pytest.mark.parametrize("state", ["drop", "keep"])
def test_g16_exactly_the_drawn_layers_are_trained(inside: str, state: str) -> None:
    model = Model()
    optimizer = LISA(INSIDE[inside](model.parameters()), model, active=2, period=3, state=state, seed=5)
    seen: set[int] = set()
    for step in range(24):
        chosen = drawn(5, step // 3, 2)
        assert optimizer.trained == chosen
        for number, layer in enumerate(model.layers):
            assert all(p.requires_grad == (number in chosen) for p in layer.parameters())
        before = copy.deepcopy(model.state_dict())
        train(model, optimizer, range(step, step + 1))
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        always = {name for name in before if not name.startswith("layers")}
        assert moved == always | {f"layers.{i}.{kind}" for i in chosen for kind in ("weight", "bias")}
        seen |= set(chosen)
        next_chosen = set(drawn(5, (step + 1) // 3, 2))
        held = {i for i, layer in enumerate(model.layers) if optimizer.state.get(layer.weight)}
        assert held == (set(chosen) & next_chosen if state == "drop" else seen)
        for i in set(range(LAYERS)) - next_chosen:
            assert model.layers[i].weight.grad is None
    assert len(seen) == LAYERS


def test_layers_take_their_turns_alike() -> None:
    counts: Counter[int] = Counter()
    for period in range(2000):
        counts.update(drawn(9, period, 2))
    expected, spread = 2000 * 2 / LAYERS, (2000 * (2 / LAYERS) * (1 - 2 / LAYERS)) ** 0.5
    assert all(abs(counts[i] - expected) < 5 * spread for i in range(LAYERS))


@pytest.mark.parametrize("state", ["drop", "keep"])
def test_a_dropped_state_starts_anew_and_a_kept_one_goes_on(state: str) -> None:
    model = Model()
    optimizer = LISA(torch.optim.AdamW(model.parameters(), lr=0.1), model, active=3, period=2, state=state)
    trained = [0 in drawn(0, period, 3) for period in range(30)]
    away = next(p for p in range(1, 29) if trained[p - 1 : p + 2] == [True, False, True])
    train(model, optimizer, range(2 * (away + 1) + 1))  # one step into the period in which it is back
    before = 2 * sum(trained[:away])
    assert before > 0
    assert int(optimizer.state[model.layers[0].weight]["step"]) == 1 + (before if state == "keep" else 0)


@with_any
@pytest.mark.parametrize("state", ["drop", "keep"])
@pytest.mark.parametrize("at", [0, 4, 6, 11])
def test_a_resumed_run_has_the_bits_of_one_that_was_not(inside: str, state: str, at: int) -> None:
    keys: dict[str, Any] = {"active": 2, "period": 3, "state": state, "seed": 1}
    model = Model()
    optimizer = LISA(INSIDE[inside](model.parameters()), model, **keys)
    train(model, optimizer, range(at))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, saved = torch.load(file, weights_only=True)
    twin = Model()
    other = LISA(INSIDE[inside](twin.parameters()), twin)  # the settings come with the state
    twin.load_state_dict(weights)
    other.load_state_dict(saved)
    assert other.trained == optimizer.trained
    train(model, optimizer, range(at, at + 8))
    train(twin, other, range(at, at + 8))
    assert same(dict(model.state_dict()), dict(twin.state_dict()))
    assert same(optimizer.state_dict(), other.state_dict())


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_go_on_alike(how: str) -> None:
    model = Model()
    optimizer = LISA(GaLoreAdamW(model.parameters(), rank=2), model, period=2)
    train(model, optimizer, range(3))
    pair = (model, optimizer)
    twin, copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    train(model, optimizer, range(3, 9))
    train(twin, copied, range(3, 9))
    assert same(dict(model.state_dict()), dict(twin.state_dict())) and copied.trained == optimizer.trained


def test_it_is_an_optimizer_to_torch() -> None:
    model = Model()
    inner = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = dict(inner.defaults)
    optimizer = LISA(inner, model, period=2)
    assert inner.defaults == before and optimizer.defaults is inner.defaults
    assert isinstance(optimizer, torch.optim.Optimizer) and optimizer.param_groups is inner.param_groups
    scheduler, calls = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number in range(4):
        optimizer.zero_grad()
        scaler.scale(model(draw(7, 5, seed=number)).square().mean()).backward()
        if number == 2:
            model.head.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    assert len(calls) == optimizer.steps == 3  # a step that the scaler skips is none
    assert inner.param_groups[0]["lr"] == 0.1 / 16
    loss = optimizer.step(lambda: 3.0)
    assert loss == 3.0 and "trained=[" in repr(optimizer)
    extra = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    assert inner.param_groups[1]["lr"] == 0.5
    with pytest.raises(AttributeError):
        optimizer.plan  # noqa: B018


def test_what_the_optimizer_has_is_there() -> None:
    model = Model()
    optimizer = LISA(GaLoreAdamW(model.named_parameters(), rank=2), model)
    train(model, optimizer, range(1))
    assert optimizer.state_bytes() == optimizer.optimizer.state_bytes() > 0 and len(optimizer.plan()) == 20


def test_frozen_and_shared_parameters() -> None:
    """What was frozen stays so; what is also outside of the stack is always trained; what layers share is either's."""
    model = Model()
    model.layers[2].bias.requires_grad_(False)
    model.layers[1].weight = model.head_weight = model.layers[1].weight  # also of the model itself
    model.layers[4].bias = model.layers[3].bias
    optimizer = LISA(torch.optim.AdamW(model.parameters()), model, active=1, period=1)
    for step in range(12):
        (chosen,) = optimizer.trained
        assert model.layers[1].weight.requires_grad and not model.layers[2].bias.requires_grad
        assert model.layers[3].bias.requires_grad == (chosen in (3, 4))
        assert model.layers[2].weight.requires_grad == (chosen == 2)
        train(model, optimizer, range(step, step + 1))
    optimizer.unfreeze()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"layers.2.bias"}


def test_stacks() -> None:
    model = Model()
    params = list(model.parameters())
    adamw = torch.optim.AdamW(params)
    for layers, count in ((None, LAYERS), ("layers", LAYERS), ("pair", 2), (list(model.layers)[:4], 4)):
        optimizer = LISA(adamw, model, layers=layers, active=1)
        assert optimizer.state_dict()["lisa"]["layers"] == count
        optimizer.unfreeze()


@pytest.mark.parametrize("active", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimate_is_what_it_holds(active: int, dtype: torch.dtype) -> None:
    model = Model().to(dtype)
    model.layers[3] = nn.Linear(WIDTH, 3 * WIDTH)  # the largest one counts as often as it may
    shapes = {name: p.shape for name, p in model.named_parameters()}
    sizes = sorted(sum(2 * p.numel() * dtype.itemsize + 4 for p in layer.parameters()) for layer in model.layers[:2])
    estimated = estimate_state_bytes(model.to(dtype), "lisa", active=active)
    assert estimated == estimate_state_bytes(shapes, "lisa", dtype=dtype, active=active)
    held = set()
    optimizer = LISA(torch.optim.AdamW(model.parameters()), model, active=active, period=1)
    for _ in range(30):
        for p in model.parameters():
            p.grad = torch.ones_like(p) if p.requires_grad else None
        chosen = optimizer.trained
        optimizer.optimizer.step()
        states = [value for state in optimizer.state.values() for value in state.values()]
        held.add((3 in chosen, sum(value.nbytes for value in states)))
        optimizer.steps += 1
        optimizer._freeze()
    assert max(size for largest, size in held if largest) == estimated
    assert sizes and all(size < estimated for largest, size in held if not largest)


def test_what_no_estimate_says() -> None:
    for shapes in ([(8, 9)], {"up.weight": (8, 9)}):
        with pytest.raises(ValueError, match="`shapes` must have numbers of layers in their names, got 'none'"):
            estimate_state_bytes(shapes, "lisa")
    with pytest.raises(ValueError, match="`active` must be an int >= 1, got 0"):
        estimate_state_bytes(Model(), "lisa", active=0)
    with pytest.raises(TypeError, match="`period` must be a key that decides bytes of lisa: active"):
        estimate_state_bytes(Model(), "lisa", period=3)


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({"active": 7}, "`active` must be an int from 1 to 6, got 7"),
        ({"active": 0}, "`active` must be an int from 1 to 6, got 0"),
        ({"period": 0}, "`period` must be an int >= 1, got 0"),
        ({"state": "offload"}, "`state` must be one of drop, keep, got 'offload'"),
        ({"seed": -(2**63) - 1}, "`seed` must be an int >= -2.*63, got -9223372036854775809"),
        ({"seed": 0.5}, "`seed` must be an int >= -2.*63, got 0.5"),
        ({"layers": "blocks"}, "`layers` must be the name of a module of the model, got 'blocks'"),
        ({"layers": [nn.Linear(2, 2)]}, "`layers` must be modules of the model, one or more, got"),
        ({"layers": []}, "`layers` must be modules of the model, one or more, got"),
    ],
)
def test_refusals(keys: dict[str, Any], rule: str) -> None:
    model = Model()
    with pytest.raises(ValueError, match=f"^LISA: {rule}"):
        LISA(torch.optim.AdamW(model.parameters()), model, **keys)
    assert all(p.requires_grad for p in model.parameters())


def test_an_optimizer_that_was_made_too_late_is_refused() -> None:
    model = Model()
    some = torch.optim.AdamW([p for name, p in model.named_parameters() if "layers.3" not in name])
    with pytest.raises(ValueError, match=r"`optimizer` must have every parameter .*layers.3.weight.* make it while"):
        LISA(some, model)
    for wrong in ((model, model), (some, some)):
        with pytest.raises(TypeError, match=r"^LISA: `(optimizer|model)` must be a"):
            LISA(*wrong)
    with pytest.raises(ValueError, match="`model` must have a stack of like layers, got 'Linear'; name `layers`"):
        LISA(some, nn.Linear(2, 2))


def test_states_of_others_are_refused() -> None:
    model = Model()
    adamw = torch.optim.AdamW(model.parameters())
    optimizer = LISA(adamw, model, period=1)
    with pytest.raises(ValueError, match="must be what LISA"):
        optimizer.load_state_dict(adamw.state_dict())
    saved = optimizer.state_dict()
    saved["lisa"]["layers"] = 5
    with pytest.raises(ValueError, match="must be of a stack of 6 layers, got 5"):
        optimizer.load_state_dict(saved)
