"""Identities that hold exactly for an optimizer in a subspace."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from math import sqrt
from typing import Any

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, formula_state_bytes
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.parts.projectors import Query
from lowrank_core.optim.parts.projectors.orthonormal import Orthonormal
from lowrank_core.optim.parts.subspaces import Bases
from torch import Tensor

U64 = 2.0**-53


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight(*shape: int, seed: int = 0) -> torch.nn.Parameter:
    return torch.nn.Parameter(draw(*shape, seed=seed))


@dataclass(frozen=True)
class Permutation(Orthonormal):
    """Full-rank bases that reorder the coordinates: no part of the package, but made from its protocol."""

    def search(self, queries: Sequence[Query]) -> list[Bases]:
        return [
            {
                side: torch.eye(shape[0], dtype=query.grad.dtype).flip(0)[:, : shape[1]]
                for side, shape in query.where.basis_shapes.items()
            }
            for query in queries
        ]


class PermutedAdamW(GaLoreAdamW):
    @classmethod
    def parts(cls, group: dict[str, Any], weight: torch.dtype) -> Parts:
        return replaced(super().parts(group, weight), projector=Permutation())


@pytest.mark.parametrize("proj_type", ["left", "right", "full"])
def test_g1_a_full_permutation_is_adamw(proj_type: str) -> None:
    ours, theirs = weight(8, 8), weight(8, 8)
    keys = {"rank": 8, "proj_type": proj_type, "force_projection": True, "scale": 1.0, "update_proj_gap": 3}
    optimizer = PermutedAdamW([ours], lr=0.1, weight_decay=0.1, **keys)
    reference = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
    for seed in range(1, 11):
        ours.grad = theirs.grad = draw(8, 8, seed=seed)
        optimizer.step()
        reference.step()
    # One division is rounded in another order: 3u of an update of at most ~lr * 2, and u of the weight, per step.
    bound = 10 * (3 * U64 * 0.2 + U64 * theirs.detach().abs().max())
    assert (ours - theirs).abs().max() <= bound


@pytest.mark.parametrize("projector", ["svd", "rsvd"])
@pytest.mark.parametrize("proj_type", ["std", "reverse_std", "full"])
def test_g2_the_first_step_has_a_known_length(projector: str, proj_type: str) -> None:
    w, lr, scale, rank = weight(20, 12), 0.01, 0.25, 5
    start = w.detach().clone()
    w.grad = draw(20, 12, seed=1)
    GaLoreAdamW([w], lr=lr, eps=1e-300, scale=scale, rank=rank, proj_type=proj_type, projector=projector).step()
    entries = {"std": 20 * rank, "reverse_std": 12 * rank, "full": rank * rank}[proj_type]
    # N = sign(R) and |P N| = |N|, up to the orthonormality of P and the rounding of W itself.
    length = (w - start).norm()
    assert abs(length - lr * scale * sqrt(entries)) <= 100 * U64 * start.norm()


@pytest.mark.parametrize("proj_type", ["left", "right", "full"])
def test_g3_within_a_period_the_change_stays_in_the_subspace(proj_type: str) -> None:
    w, rank = weight(20, 12), 4
    optimizer = GaLoreAdamW([w], lr=0.1, rank=rank, proj_type=proj_type, update_proj_gap=100)
    start = w.detach().clone()
    for seed in range(1, 8):
        w.grad = draw(20, 12, seed=seed)
        optimizer.step()
    change, state = (w - start).detach(), optimizer.state[w]
    rounding = 7 * 20 * U64 * start.norm()
    assert torch.linalg.svdvals(change)[rank] <= rounding
    left = {"left": "proj.basis", "full": "proj.basis_left"}.get(proj_type)
    right = {"right": "proj.basis", "full": "proj.basis_right"}.get(proj_type)
    if left:
        assert (change - state[left] @ (state[left].mT @ change)).norm() <= rounding
    if right:
        assert (change - change @ state[right] @ state[right].mT).norm() <= rounding


@pytest.mark.parametrize("zero_moments", [True, False])
@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_g4_signs_of_the_basis_do_not_matter(proj_type: str, zero_moments: bool) -> None:
    w = weight(10, 8)
    optimizer = GaLoreAdamW([w], lr=0.1, rank=3, proj_type=proj_type, update_proj_gap=100)
    w.grad = draw(10, 8, seed=1)
    optimizer.step()
    if zero_moments:
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[w][name].zero_()
    v, flipped = copy.deepcopy((w, optimizer))
    sign = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    flipped.state[v]["proj.basis"].mul_(sign)
    flipped.state[v]["exp_avg"].mul_(sign[:, None] if proj_type == "left" else sign)
    for seed in range(2, 5):
        w.grad = draw(10, 8, seed=seed)
        v.grad = w.grad.clone()
        optimizer.step()
        flipped.step()
    assert torch.equal(w, v)  # signs are exact


def llama(hidden: int, inter: int, layers: int) -> tuple[list[tuple[int, int]], int]:
    """Shapes of the projected weights and the number of all other parameters: LLaMA, 32000 tokens, untied head."""
    layer = [(hidden, hidden)] * 4 + [(inter, hidden)] * 2 + [(hidden, inter)]
    return layer * layers, 2 * 32000 * hidden + (2 * layers + 1) * hidden


def test_g18_published_memory() -> None:
    projected, others = llama(2048, 5461, 24)
    assert round(formula_state_bytes(projected, others, rank=512) / 2**20, 3) == 1988.336
    projected, others = llama(4096, 11008, 32)
    eight_bit = formula_state_bytes(projected, others, rank=1024, basis_bytes=2, moment_bytes=1, other_bytes=1)
    assert round(eight_bit / 2**20, 3) == 5380.508
