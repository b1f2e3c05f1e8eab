"""Drafts: gradients as values, whole or in their subspaces, that add up."""

from __future__ import annotations

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW
from lowrank_core.optim.draft import Draft
from optim_cases import draw, same
from torch import nn

U32 = 2.0**-24


def drafted(optimizer: GaLoreAdamW, weights: list[nn.Parameter], seed: int) -> Draft:
    for i, weight in enumerate(weights):
        weight.grad = draw(*weight.shape, seed=10 * seed + i)
    ((bucket, draft),) = optimizer._gather().items()
    optimizer._draft(bucket, draft)
    return draft


def test_drafts_of_micro_batches_are_that_of_their_mean() -> None:
    weights = [nn.Parameter(draw(12, 9)), nn.Parameter(draw(9, 12))]
    optimizer = GaLoreAdamW(weights, rank=3, update_proj_gap=100)
    drafted(optimizer, weights, 0)
    optimizer.step()
    first, second = (drafted(optimizer, weights, seed) for seed in (1, 2))
    assert first.low is not None and first.finite
    first.add_(second)
    first.scale_(0.5)
    assert not first.finite  # a sum may overflow
    for i, weight in enumerate(weights):
        weight.grad = 0.5 * (draw(*weight.shape, seed=10 + i) + draw(*weight.shape, seed=20 + i))
    ((bucket, mean),) = optimizer._gather().items()
    optimizer._draft(bucket, mean)
    for one, other, grad in zip(first.low, mean.low, mean.grads, strict=True):
        assert (one - other).abs().max() <= 4 * 12 * U32 * grad.norm()
    assert same(first.grads, mean.grads)


def test_the_norm_of_a_draft_is_that_of_all_its_gradients() -> None:
    weights = [nn.Parameter(draw(12, 9)), nn.Parameter(draw(9, 12))]
    draft = drafted(GaLoreAdamW(weights, rank=3), weights, 0)
    every = torch.cat([grad.double().flatten() for grad in draft.grads])
    assert (draft.squared_norm() - every.square().sum()).abs() <= 300 * 2.0**-53 * every.square().sum()
    assert float(Draft().squared_norm()) == 0


def test_drafts_that_do_not_fit_are_refused() -> None:
    weights = [nn.Parameter(draw(12, 9)), nn.Parameter(draw(9, 12))]
    optimizer = GaLoreAdamW(weights, rank=3, update_proj_gap=100)
    whole = drafted(optimizer, weights, 0)
    optimizer.step()
    low = drafted(optimizer, weights, 1)
    with pytest.raises(ValueError, match="Draft: `other` must be in its subspaces as this one is"):
        low.add_(whole)
    with pytest.raises(ValueError, match="Draft: `other` must be of the same parameters"):
        low.add_(low.part([True, False])[0])
