"""What later methods stand on, proven by tenants that are none of the package: ranks that move, a subspace chosen at
each step with what it misses fed back, a schedule that looks at gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import lowrank_core
import pytest
import torch
import torch.distributed.checkpoint as dcp
from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.storage import Field, Layout, Role
from lowrank_core.optim import GaLoreAdamW
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.parts.projectors import Found, Query
from lowrank_core.optim.parts.projectors.orthonormal import Orthonormal, bases_of
from lowrank_core.optim.parts.residuals import Seen
from lowrank_core.optim.parts.rules import Direction, Moments, Turn
from lowrank_core.optim.parts.schedules.fixed_gap import FixedGap
from lowrank_core.optim.parts.subspaces import Subspace
from lowrank_core.optim.parts.subspaces.dense import Dense
from lowrank_core.optim.parts.transports import Rotate
from lowrank_core.optim.slots import Slot, State
from optim_cases import Zoo, draw, same, snapshot, train
from test_deferred import no_reading
from test_deferred_state import defer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

U32 = 2.0**-24


@dataclass(frozen=True)
class Energetic(Orthonormal):
    """As many directions as hold 70 % of the gradient's energy, at most the rank of the group."""

    ranks_vary: ClassVar[bool] = True

    def find(self, queries: Sequence[Query]) -> list[Found]:
        return [Found(Dense({side: self.basis(query, side)})) for query in queries for side in query.where.basis_shapes]

    def basis(self, query: Query, side: str) -> Tensor:
        matrix = query.grad if side == "left" else query.grad.mT
        return lowrank_core.qb(matrix, energy=0.7, max_rank=query.where.rank, block=2, seed=query.seed).q


class EnergeticAdamW(GaLoreAdamW):
    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        parts = super().parts(group, weight)
        return replace(parts, projector=Energetic(parts.projector.codec), transport=Rotate())


def moving(weight: Tensor, step: int) -> Tensor:
    """A gradient whose energy is spread over more directions from step to step."""
    m, n = weight.shape
    return (draw(m, 1 + step, seed=step) @ draw(1 + step, n, seed=100 + step)).to(weight.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("moment_dtype", ["auto", "int8"])
@pytest.mark.parametrize("shape", [(30, 40), (40, 30)])
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # old torches speak to themselves
def test_a_rank_that_moves(shape: tuple[int, int], moment_dtype: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Memory holds the rank there is, what is saved has the largest one; both ways of saving come back to the bit."""
    keys = {"lr": 0.05, "rank": 10, "update_proj_gap": 1, "moment_dtype": moment_dtype}
    weight = nn.Parameter(draw(*shape).to(dtype))
    optimizer = EnergeticAdamW([weight], **keys)
    largest, ranks = optimizer.planned_state_bytes(), []
    for step in range(12):
        weight.grad = moving(weight, step)
        optimizer.step()
        state = optimizer.state[weight]
        ranks.append(state["proj.rank"])
        assert state["proj.basis"].shape == (30, ranks[-1]) and optimizer.projections()[0].rank == ranks[-1]
        assert (optimizer.state_bytes() < largest) == (ranks[-1] < 10)
    assert ranks[0] == 1 and max(ranks) > 4 and len(set(ranks)) > 3
    weight.grad = moving(weight, 3)
    optimizer.step()
    rank = optimizer.state[weight]["proj.rank"]
    assert 1 < rank < 10
    saved = optimizer.state_dict()
    basis = saved["state"][0]["proj.basis"]
    assert basis.shape == (30, 10) and basis[:, :rank].any() and not basis[:, rank:].any()
    torch.save(saved, tmp_path / "state.pt")
    twins = [nn.Parameter(weight.detach().clone()) for _ in range(2)]
    one, other = (EnergeticAdamW([twin], **keys) for twin in twins)
    one.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    through_dcp(weight, optimizer, twins[1], other, tmp_path)
    for twin, loaded in zip(twins, (one, other), strict=True):
        assert same(loaded.state[twin], optimizer.state[weight])
        assert loaded.state_bytes() == optimizer.state_bytes()
    for step in range(12, 15):
        for param, stepped in ((weight, optimizer), (twins[0], one), (twins[1], other)):
            param.grad = moving(param, step)
            stepped.step()
    assert same([twin.detach() for twin in twins], [weight.detach()] * 2)


def through_dcp(weight: nn.Parameter, optimizer: Any, twin: nn.Parameter, other: Any, folder: Path) -> None:
    models = [nn.ParameterDict({"w": param}) for param in (weight, twin)]
    weight.grad = None
    with pytest.warns(UserWarning, match="torch.distributed is .* in a single process"):
        dcp.save({"o": get_optimizer_state_dict(models[0], optimizer)}, checkpoint_id=folder / "dcp")
        into = {"o": get_optimizer_state_dict(models[1], other)}
        dcp.load(into, checkpoint_id=folder / "dcp")
    set_optimizer_state_dict(models[1], other, into["o"])


def test_a_rank_that_does_not_move_is_not_loaded_from_one_that_does() -> None:
    weight = nn.Parameter(draw(12, 9))
    optimizer = EnergeticAdamW([weight], rank=5, update_proj_gap=1)
    weight.grad = moving(weight, 1)
    optimizer.step()
    assert optimizer.state[weight]["proj.rank"] < 5
    with pytest.raises(ValueError, match="must stay what its state was made with, got side right, rank 5"):
        GaLoreAdamW([weight], rank=5, update_proj_gap=1).load_state_dict(optimizer.state_dict())


@dataclass(frozen=True)
class Following(Orthonormal):
    """One power iteration from the subspace before, at each step, which hands over what it has seen."""

    each_step: ClassVar[bool] = True
    searches_first: ClassVar[bool] = False

    def find(self, queries: Sequence[Query]) -> list[Found]:
        return [self.follow(query) for query in queries]

    def follow(self, query: Query) -> Found:
        ((side, shape),) = query.where.basis_shapes.items()
        matrix = query.grad if side == "left" else query.grad.mT
        start = bases_of(query.held).get(side, torch.eye(*shape, dtype=matrix.dtype))
        basis = torch.linalg.qr(matrix @ (matrix.mT @ start)).Q
        low = basis.mT @ matrix
        return Found(Dense({side: basis}), low if side == "left" else low.mT)


@dataclass(frozen=True)
class FedBack:
    """What the subspace misses is added to the next gradient."""

    def layout(self, where: Geometry) -> Layout:
        return {"residual.error": Field((where.rows, where.cols), "float32", Role.RESIDUAL)}

    def enter(self, grad: Tensor, state: State) -> Tensor:
        return grad + state["residual.error"]

    def leave(self, old: Subspace, moments: Callable[[], Moments]) -> None:
        return None

    def complete(self, seen: Seen, state: State) -> Direction:
        state["residual.error"].copy_(seen.grad - seen.subspace.up(seen.low))
        return Direction(seen.subspace.up(seen.direction.dense()))

    def kernel(self) -> None:
        return None

    def limits(self, states: list[State]) -> list[Tensor]:
        return []


class FollowingAdamW(GaLoreAdamW):
    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        parts = super().parts(group, weight)
        return replace(parts, projector=Following(), residual=FedBack(), transport=Rotate())


def test_a_subspace_of_each_step_with_feedback() -> None:
    model = Zoo()
    optimizer = FollowingAdamW(model.parameters(), lr=0.02, rank=4)
    losses = train(model, optimizer, range(40))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    twin = copy.deepcopy(model)
    other = FollowingAdamW(twin.parameters(), rank=4)
    other.load_state_dict(optimizer.state_dict())
    train(model, optimizer, range(40, 44))
    train(twin, other, range(40, 44))
    assert same(snapshot(model, optimizer), snapshot(twin, other))


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
@pytest.mark.parametrize("maximize", [False, True])
def test_what_is_missed_comes_back(shape: tuple[int, int], maximize: bool) -> None:
    """Nothing is lost: what entered the subspaces and what is still missing is all of the gradients."""
    weight = nn.Parameter(draw(*shape))
    optimizer = FollowingAdamW([weight], lr=0.0, rank=3, maximize=maximize)
    total, entered = torch.zeros(shape), torch.zeros(shape)
    for step in range(6):
        before = optimizer.state[weight]["residual.error"].clone() if step else torch.zeros(shape)
        weight.grad = draw(*shape, seed=step)
        optimizer.step()
        state, grad = optimizer.state[weight], -weight.grad if maximize else weight.grad
        signal, basis = grad + before, state["proj.basis"]
        inside = basis @ (basis.mT @ signal) if shape[0] < shape[1] else signal @ basis @ basis.mT
        assert (signal - inside - state["residual.error"]).abs().max() <= 40 * U32 * signal.norm()
        total, entered = total + grad, entered + inside
    assert (total - entered - state["residual.error"]).abs().max() <= 6 * 40 * U32 * total.norm()


def test_a_gate_undoes_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(draw(12, 9))
    optimizer = FollowingAdamW([weight], lr=0.1, rank=3)
    defer(monkeypatch)
    for step in range(4):
        weight.grad = draw(12, 9, seed=step)
        optimizer.step()
    before = copy.deepcopy([weight.detach(), optimizer.state_dict()])
    weight.grad[0, 0] = torch.nan
    optimizer.step()
    assert same(before, [weight.detach(), optimizer.state_dict()]) and optimizer.skipped_steps == 1


@dataclass(frozen=True)
class WhenQuiet(FixedGap):
    """Looks again as soon as the gradient in the subspace has fallen below a tenth of what it was there at first.

    The norms stay where the gradients are; they are read every `check_every` steps.
    """

    check_every: int = 4

    def layout(self) -> Layout:
        return {**super().layout(), **{f"quiet.{key}": Field((), "float32", Role.SHARE) for key in ("first", "now")}}

    def observe(self, states: Sequence[State], lows: Sequence[Tensor]) -> None:
        for state, low in zip(states, lows, strict=True):
            state["quiet.now"].copy_(torch.linalg.vector_norm(low))
            first = state["quiet.first"]
            first.copy_(torch.where(first == 0, state["quiet.now"], first))

    def due(self, slot: Slot, step: int, state: State) -> bool:
        if state["proj.refreshes"] == 0:
            return True
        return step % self.check_every == 0 and bool(state["quiet.now"] < 0.1 * state["quiet.first"])

    def looked(self, state: State, step: int, turn: Turn | None) -> None:
        super().looked(state, step, turn)
        for key in ("first", "now"):
            state[f"quiet.{key}"].zero_()


class WhenQuietAdamW(GaLoreAdamW):
    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        return replace(super().parts(group, weight), schedule=WhenQuiet())


@pytest.mark.parametrize("there", [False, True], ids=["host", "device"])
def test_a_schedule_that_looks_at_gradients(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the kernel's step and in the composition's, where only every fourth step may wait for a device."""
    defer(monkeypatch, there)
    weight = nn.Parameter(draw(12, 9))
    optimizer = WhenQuietAdamW([weight], rank=3)
    refreshes = []
    for step in range(14):
        weight.grad = draw(12, 9, seed=step) * (1.0 if step < 5 else 0.01)
        if there and step % 4:
            with no_reading():
                optimizer.step()
        else:
            optimizer.step()
        refreshes.append(optimizer.projections()[0].refreshes)
    assert refreshes == [1] * 8 + [2] * 6
    twin = nn.Parameter(weight.detach().clone())
    other = WhenQuietAdamW([twin], rank=3)
    other.load_state_dict(optimizer.state_dict())
    assert same(other.state_dict(), optimizer.state_dict())


def test_a_method_may_project_at_full_rank() -> None:
    class Always(GaLoreAdamW):
        full_rank = "project"

    weight = nn.Parameter(draw(6, 8))
    assert [row.rank for row in Always([weight], rank=9).plan()] == [6]
