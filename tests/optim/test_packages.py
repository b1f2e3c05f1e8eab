"""Published packages beside the methods: same weights after many steps, with their bases and a vanishing eps.

The packages are no part of development or continuous integration: a comparison runs where its package is installed, and
docs/results/packages.md says what came of it. The formulas in float64, in the tests of each method, run everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.optim import ApolloAdamW, Dion2, FiraAdamW, GaLoreAdamW, LowRankOptimizer, SinkGD
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.parts.projectors import Found, Query
from lowrank_core.optim.parts.projectors.orthonormal import Orthonormal
from lowrank_core.optim.parts.subspaces.dense import Dense
from optim_cases import draw
from plain_steps import UNIT, UNIT32
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore")  # what the packages say of their own future
STEPS, GAP, RANK = 40, 7, 3
SHARED: dict[str, Any] = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-300}
handed: list[Tensor] = []  # the basis that the package has found, as it keeps it


@dataclass(frozen=True)
class Handed(Orthonormal):
    """Finds what was handed over, signs and all: ours would have turned its columns towards those before."""

    def find(self, queries: Sequence[Query]) -> list[Found]:
        (query,) = queries
        ((side, shape),) = query.where.basis_shapes.items()
        basis = handed[-1] if handed[-1].shape == shape else handed[-1].mT
        return [Found(Dense({side: basis.contiguous()}))]


def with_bases(kind: type[LowRankOptimizer]) -> type[LowRankOptimizer]:
    class WithBases(kind):  # type: ignore[valid-type, misc]
        @classmethod
        def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
            return replace(super().parts(group, weight), projector=Handed())

    return WithBases


@dataclass(frozen=True)
class Pair:
    """A class of a package with the keys of its group, and ours with the keys that mean the same."""

    package: str
    their: str
    group: dict[str, Any]
    ours: type[LowRankOptimizer]
    keys: dict[str, Any]

    def theirs(self, weight: nn.Parameter) -> torch.optim.Optimizer:
        package = pytest.importorskip(self.package, reason=f"needs the package {self.package}, to compare with")
        group = {"params": [weight], "rank": RANK, "update_proj_gap": GAP, "proj_type": "std", **self.group}
        made: torch.optim.Optimizer = getattr(package, self.their)([group], no_deprecation_warning=True, **SHARED)
        return made

    def make(self, weight: nn.Parameter) -> LowRankOptimizer:
        return with_bases(self.ours)([weight], rank=RANK, update_proj_gap=GAP, **SHARED, **self.keys)


APOLLO = {"proj": "random", "scale": 6.0}
PAIRS = {
    "galore": Pair("galore_torch", "GaLoreAdamW", {"scale": 0.4}, GaLoreAdamW, {"scale": 0.4}),
    "fira": Pair("fira", "FiraAdamW", {"alpha": 0.4}, FiraAdamW, {"scale": 0.4, "residual": "code"}),
    "apollo": Pair("apollo_torch", "APOLLOAdamW", {**APOLLO, "scale_type": "channel"}, ApolloAdamW, {"scale": 6.0}),
    "apollo-tensor": Pair(
        "apollo_torch", "APOLLOAdamW", {**APOLLO, "scale_type": "tensor"}, ApolloAdamW,
        {"scale": 6.0, "scale_type": "tensor"},
    ),
}  # fmt: skip


def gradient(shape: tuple[int, int], step: int) -> Tensor:
    """That of a noisy quadratic bowl's: its size changes from step to step, so that limiters act."""
    return draw(*shape, seed=step).double() * (1 + 2 * (step % 5 == 3))


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (10, 10)])
@pytest.mark.parametrize("name", PAIRS)
def test_a_package_and_its_method_take_the_same_steps(name: str, shape: tuple[int, int]) -> None:
    """No farther apart than runs of ours whose gradients are off by a few roundings of their largest entry."""
    pair, start = PAIRS[name], draw(*shape).double()
    theirs, ours, *shaken = (nn.Parameter(start.clone()) for _ in range(6))
    package, *optimizers = pair.theirs(theirs), *(pair.make(weight) for weight in (ours, *shaken))
    path = 0.0
    for step in range(STEPS):
        grad, before = gradient(shape, step), ours.detach().clone()
        theirs.grad = grad.clone()
        package.step()
        handed[:] = [package.state[theirs]["projector"].ortho_matrix.clone()]
        for number, (weight, optimizer) in enumerate(zip((ours, *shaken), optimizers, strict=True)):
            noise = torch.sign(draw(*shape, seed=1000 * number + step).double()) * 4 * max(shape) * UNIT
            weight.grad = grad + (noise * grad.abs().max() if number else 0)
            optimizer.step()
        path += float((ours.detach() - before).norm())
    moved = max(float((weight - ours).norm()) for weight in shaken)
    # Where a limiter acts, a step is off by the rounding of the norm before, which our state has in float32.
    limited = 4 * UNIT32 * path if "residual.limit" in optimizers[0].state[ours] else 0.0
    assert float((theirs - ours).norm()) <= moved + limited < 2.0**-16 * path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_dion2_of_all_rows_is_torchs_muon(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without nesterov. torch iterates in bfloat16: the weights are as far apart as its roundings."""
    one, other = nn.Parameter(draw(*shape).to(dtype)), nn.Parameter(draw(*shape).to(dtype))
    keys = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    ours, theirs = Dion2([one], fraction=1.0, **keys), torch.optim.Muon([other], nesterov=False, **keys)
    path = 0.0
    for step in range(10):
        before = other.detach().clone()
        one.grad = other.grad = draw(*shape, seed=step + 1).to(dtype)
        ours.step()
        theirs.step()
        path += float((other.detach() - before).norm())
    # 5 iterations of 3 products each, rounded to 8 bits; every iteration lets an error grow by its slope of 3.4445 at
    # most, and what is left is that of singular values, which it draws together.
    assert (one - other).norm() <= 15 * 2.0**-8 * path


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_the_sums_of_sinkgds_rows_and_columns(shape: tuple[int, int]) -> None:
    """The squares of a direction sum up to n in each row and to m in each column, as Sinkhorn's iteration has it."""
    weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = SinkGD([weight], lr=1.0, scale=1.0, iterations=200)
    weight.grad = draw(*shape).double()
    optimizer.step()
    squares = weight.detach().numpy() ** 2
    rows, columns = squares.sum(1) / shape[1], squares.sum(0) / shape[0]
    off = sum(shape) * UNIT * 200
    assert np.abs(columns - 1).max() <= off and np.abs(rows - 1).max() <= off
