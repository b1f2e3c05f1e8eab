"""APOLLO's random projections: which numbers they are, of which weight and refresh, and what lengths they keep."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
from lowrank_core.optim import ApolloAdamW, FiraAdamW, GaLoreAdamW, LowRankOptimizer
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.parts.projectors.gaussian import Gaussian
from optim_cases import composed, draw
from plain_steps import UNIT, of, path, projection
from torch import Tensor, nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
SEED = 11


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float64))


def low_of(optimizer: ApolloAdamW, weight: Tensor) -> Tensor:
    """R of the last step, where betas are 0."""
    low: Tensor = optimizer.state[weight]["exp_avg"]
    return low


def projections_of(optimizer: ApolloAdamW, shape: tuple[int, int]) -> list[Tensor]:
    """P of each weight in one more step, without memory: R of a gradient that is the identity."""
    weights = optimizer.param_groups[0]["params"]
    for weight in weights:
        weight.grad = torch.eye(*shape, dtype=weight.dtype)
    optimizer.step()
    return [low_of(optimizer, weight)[:, : shape[0]].mT.clone() for weight in weights]


@with_both_paths
def test_each_weight_and_each_refresh_has_its_own_projection() -> None:
    shape, keys = (12, 20), {"rank": 4, "betas": (0.0, 0.0), "update_proj_gap": 2, "seed": SEED}
    optimizer = ApolloAdamW([zeros(*shape) for _ in range(6)], **keys)
    for step in range(5):
        for index, found in enumerate(projections_of(optimizer, shape)):
            expected = torch.from_numpy(projection(12, 4, SEED, index, step // 2))
            assert (found - expected).abs().max() <= 8 * UNIT * expected.abs().max()
    # Nor does it matter what other weights are stepped, or when.
    late = ApolloAdamW([zeros(*shape) for _ in range(6)], **keys)
    late.param_groups[0]["params"][3].grad = torch.eye(*shape, dtype=torch.float64)
    late.step()
    assert torch.equal(low_of(late, late.param_groups[0]["params"][3])[:, :12].mT, first_of(keys, shape))


def first_of(keys: dict[str, Any], shape: tuple[int, int]) -> Tensor:
    return projections_of(ApolloAdamW([zeros(*shape) for _ in range(6)], **keys), shape)[3]


def test_lengths_are_kept_in_the_mean() -> None:
    """|P^T g|^2 / |g|^2 is chi-squared over r, of mean 1 and variance 2 / r, and the scale of a first step against that
    of Adam itself is sqrt(r / m) over its root."""
    count, rank, m = 1000, 4, 24
    weights, grad = [zeros(m, 30) for _ in range(count)], draw(m, 30, seed=1).double()
    optimizer = ApolloAdamW(weights, lr=1.0, rank=rank, betas=(0.0, 0.0), eps=0.0, limiter=None)
    for weight in weights:
        weight.grad = grad
    optimizer.step()
    lengths = torch.stack([low_of(optimizer, weight).square().sum(0) for weight in weights]) / grad.square().sum(0)
    scales = torch.stack([weight.detach().norm(dim=0) / grad.norm(dim=0) for weight in weights])
    ours = (sqrt(m) / grad.norm(dim=0) / scales).square() * (rank / m)  # of Adam, without a projection: sqrt m / |G_j|
    for share in (lengths, ours):  # for each column: six standard errors, and the variance to six of its own
        assert bool(((share.mean(0) - 1).abs() <= 6 * sqrt(2 / rank / count)).all())
        kurtosis = 3 + 12 / rank
        assert bool(((share.var(0) - 2 / rank).abs() <= 6 * (2 / rank) * sqrt((kurtosis - 1) / count)).all())


class RandomGaLore(GaLoreAdamW):
    """With a random projection, which is lifted: no optimizer of the package, but of its parts."""

    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        return replace(super().parts(group, weight), projector=Gaussian())


class RandomFira(FiraAdamW):
    """The same with the rest."""

    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        return replace(super().parts(group, weight), projector=Gaussian())


@pytest.mark.parametrize("optimizer", [RandomGaLore, RandomFira])
def test_a_kernel_that_lifts_gets_the_projection(optimizer: type[LowRankOptimizer]) -> None:
    grads = [draw(12, 20, seed=number).double() for number in range(5)]
    ours = of(optimizer([zeros(12, 20)], lr=1.0, rank=4, update_proj_gap=2), grads)
    with composed():
        theirs = of(optimizer([zeros(12, 20)], lr=1.0, rank=4, update_proj_gap=2), grads)
    # The norm of the limiter is kept in float32.
    assert all((x - y).norm() <= 2.0**-20 * y.norm() for x, y in zip(ours, theirs, strict=True))


def test_a_state_of_a_lower_rank_is_refused_by_its_rank() -> None:
    """Ranks do not move here, as they do where energy decides."""
    lower, higher = (ApolloAdamW([nn.Parameter(draw(12, 20))], rank=rank) for rank in (3, 4))
    of(lower, [draw(12, 20, seed=1)])
    with pytest.raises(ValueError, match="`rank` and `proj_type` of `parameter 0` must stay"):
        higher.load_state_dict({**lower.state_dict(), "param_groups": higher.state_dict()["param_groups"]})
