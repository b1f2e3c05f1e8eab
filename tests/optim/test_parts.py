"""The parts as a product: others than the package's own, made from its protocols, go through the same loop."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import WORK, Field, Layout, Role
from lowrank_core.optim import GaLoreAdamW
from lowrank_core.optim.dtypes import name_of
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.parts.codecs import BFloat16, Blocks8, Float32, StochasticBFloat16
from lowrank_core.optim.parts.residuals import Seen
from lowrank_core.optim.parts.rules import Direction
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.slots import Draw, State
from optim_cases import Zoo, same, snapshot, train
from torch import Tensor

U16, U32 = 2.0**-8, 2.0**-24


class SmallMoments(GaLoreAdamW):
    """GaLore whose moments are stored in bfloat16."""

    @classmethod
    def parts(cls, group: dict[str, Any], weight: torch.dtype) -> Parts:
        return replace(super().parts(group, weight), moment_codec=BFloat16())


@dataclass(frozen=True)
class Momentum:
    """Adds a running mean of what the subspace does not hold: a residual with state of its own."""

    def layout(self, where: Geometry) -> Layout:
        return {"residual.mean": Field((where.rows, where.cols), "float32", Role.RESIDUAL)}

    def enter(self, grad: Tensor, state: State) -> Tensor:
        return grad

    def complete(self, seen: Seen, state: State) -> Direction:
        mean = state["residual.mean"].lerp_(seen.grad - seen.subspace.up(seen.low), 0.5)
        return Direction(seen.subspace.up(seen.direction.dense()) + mean)

    def kernel(self) -> None:
        return None


class WithMomentum(GaLoreAdamW):
    @classmethod
    def parts(cls, group: dict[str, Any], weight: torch.dtype) -> Parts:
        return replace(super().parts(group, weight), residual=Momentum())


@pytest.mark.parametrize("kind", [SmallMoments, WithMomentum])
def test_other_parts_train_resume_and_are_counted(kind: type[GaLoreAdamW]) -> None:
    model = Zoo()
    del model.unused
    optimizer = kind(model.parameters(), lr=0.02, rank=4, scale=1.0, update_proj_gap=3)
    losses = train(model, optimizer, range(40))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert optimizer.state_bytes() == optimizer.planned_state_bytes()
    twin = copy.deepcopy(model)
    other = kind(twin.parameters(), rank=4)
    other.load_state_dict(optimizer.state_dict())
    train(model, optimizer, range(40, 45))
    train(twin, other, range(40, 45))
    assert same(snapshot(model, optimizer), snapshot(twin, other))


def test_states_of_other_parts_are_refused() -> None:
    model = Zoo()
    optimizer = SmallMoments(model.parameters(), rank=4)
    train(model, optimizer, [0])
    with pytest.raises(
        ValueError, match=r"`exp_avg` of `parameter 3` must be \(16, 4\) float32, got \(16, 4\) bfloat16"
    ):
        GaLoreAdamW(model.parameters(), rank=4).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("codec", [Float32(), BFloat16()])
@pytest.mark.parametrize("work", [torch.float32, torch.float64])
def test_codecs_store_what_they_lay_out(codec: Float32 | BFloat16, work: torch.dtype) -> None:
    state: State = {}
    surroundings = torch.randn(9, 8, generator=torch.Generator().manual_seed(0), dtype=work)
    value = surroundings[:, 2:5]
    codec.encode(state, "x", value, Role.MOMENT)
    ((name, (shape, dtype, _, _)),) = codec.layout("x", Field((9, 3), WORK, Role.MOMENT), name_of(work)).items()
    assert (name, shape, dtype) == ("x", tuple(state["x"].shape), name_of(state["x"].dtype))
    assert state["x"].untyped_storage().nbytes() == 27 * state["x"].element_size()  # no view of the surroundings
    decoded = codec.decode(state, "x", work, Role.MOMENT)
    assert decoded.dtype == work
    error = U16 if isinstance(codec, BFloat16) else 0.0
    assert bool(((decoded - value).abs() <= error * value.abs()).all())
    held = state["x"]
    codec.encode(state, "x", 2 * value, Role.MOMENT)
    assert state["x"] is held  # in place
    codec.encode(state, "x", value[:4], Role.MOMENT)
    assert state["x"].shape == (4, 3)


@pytest.mark.parametrize("codec", [StochasticBFloat16(), Blocks8()])
def test_codes_do_not_depend_on_the_order_in_memory(codec: StochasticBFloat16 | Blocks8) -> None:
    value = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    states: list[State] = [{}, {}]
    for state, given in zip(states, (value, value.T.contiguous().T), strict=True):
        codec.encode(state, "x", given, Role.MOMENT, Draw(3, 7))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_adam_is_the_formula() -> None:
    grads = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rule, moments = (
        Adam((0.8, 0.95), 1e-3),
        {name: torch.zeros(3, 4, dtype=torch.float64) for name in Adam().layout((3, 4))},
    )
    for step, grad in enumerate(grads, 1):
        direction = rule.update(grad, moments, float(step)).dense(2.0)
        past = grads[:step]
        weights = torch.arange(step - 1, -1, -1, dtype=torch.float64)[:, None, None]
        mean = (0.2 * 0.8**weights * past).sum(0) / (1 - 0.8**step)
        square = (0.05 * 0.95**weights * past.square()).sum(0) / (1 - 0.95**step)
        expected = 2 * mean / (square.sqrt() + 1e-3)
        assert torch.allclose(direction, expected, rtol=40 * 2.0**-53, atol=40 * 2.0**-53)


def test_maximizing_is_minimizing_the_negative() -> None:
    model, twin = Zoo(), Zoo()
    keys = {"lr": 0.02, "rank": 4, "update_proj_gap": 3, "weight_decay": 0.1}
    up, down = GaLoreAdamW(model.parameters(), maximize=True, **keys), GaLoreAdamW(twin.parameters(), **keys)
    for number in range(5):
        train(model, up, [])
        for left, right in zip(model.parameters(), twin.parameters(), strict=True):
            left.grad = torch.randn(left.shape, generator=torch.Generator().manual_seed(number))
            right.grad = -left.grad
        up.step()
        down.step()
    assert same(dict(model.state_dict()), dict(twin.state_dict()))


def test_decay_is_decoupled_first_and_unscaled() -> None:
    start = torch.randn(12, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = []
    for decay in (0.0, 0.5):
        w = torch.nn.Parameter(start.clone())
        optimizer = GaLoreAdamW([w], lr=0.1, rank=3, scale=0.25, weight_decay=decay)
        w.grad = torch.randn(12, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        optimizer.step()
        ends.append(w.detach())
    # W (1 - lr decay) - update against W - update: they differ by lr decay W and two roundings of the result.
    assert bool(((ends[0] - ends[1] - 0.05 * start).abs() <= 4 * 2.0**-53 * (start.abs() + 0.1)).all())


def test_half_precision_weights_are_updated_in_float32_and_rounded_once() -> None:
    w = torch.nn.Parameter(torch.randn(12, 9, generator=torch.Generator().manual_seed(0)).bfloat16())
    optimizer = GaLoreAdamW([w], lr=0.1, rank=3, weight_decay=0.1)
    grads = torch.randn(2, 12, 9, generator=torch.Generator().manual_seed(1)).bfloat16()
    w.grad = grads[0]
    optimizer.step()
    wide = torch.nn.Parameter(w.detach().float())
    reference = GaLoreAdamW([wide], lr=0.1, rank=3, weight_decay=0.1)
    wide.grad = grads[1].float()
    reference.state[wide] = copy.deepcopy(optimizer.state[w])
    reference.state[wide]["proj.basis"] = reference.state[wide]["proj.basis"].float()
    w.grad = grads[1]
    optimizer.step()
    reference.step()
    assert torch.equal(w, wide.bfloat16())


def test_parts_are_made_anew_only_where_a_key_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    real = GaLoreAdamW.parts.__func__

    def counted(cls: type, group: dict[str, Any], weight: Tensor) -> Parts:
        made.append(dict(group))
        return real(cls, group, weight)

    model = Zoo()
    optimizer = GaLoreAdamW(model.parameters(), rank=4, update_proj_gap=100, betas=[0.9, 0.999])
    train(model, optimizer, range(2))
    monkeypatch.setattr(GaLoreAdamW, "parts", classmethod(counted))
    (group,) = optimizer.param_groups
    for number, lr in enumerate((0.1, 0.2, 0.3)):  # as a schedule does
        group["lr"] = lr
        train(model, optimizer, [number])
    assert made == []
    group["betas"][0] = 0.5  # in place
    train(model, optimizer, [4])
    group["scale"] = 1.0
    train(model, optimizer, [5, 6])
    assert [(one["betas"][0], one["scale"]) for one in made] == [(0.5, 0.25), (0.5, 1.0)]
    twin = copy.deepcopy(optimizer)
    assert twin._made == {}
