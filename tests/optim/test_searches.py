"""Which search an optimizer does for a basis: its start, its iterations, its draws. All to the bit."""

from __future__ import annotations

import copy
from typing import Any

import lowrank_core
import pytest
import torch
from lowrank_core.optim import GaLoreAdamW
from lowrank_core.optim.seeds import mix_seed
from optim_cases import draw, same
from torch import Tensor, nn

RANK, SEED = 4, 11
SHAPES = {"left": (24, 40), "right": (40, 24), "full": (40, 24)}
every_side = pytest.mark.parametrize("proj_type", SHAPES)


def optimizer_of(weight: Tensor, **keys: Any) -> GaLoreAdamW:
    return GaLoreAdamW([weight], **{"rank": RANK, "update_proj_gap": 1, "seed": SEED, **keys})


def bases_of(optimizer: GaLoreAdamW, weight: Tensor) -> dict[str, Tensor]:
    """Copies of the bases, by side."""
    state = optimizer.state[weight]
    keys = {"left": "proj.basis_left", "right": "proj.basis_right"}
    if "proj.basis" in state:
        keys = {"right" if state["proj.basis"].shape[0] == weight.shape[1] else "left": "proj.basis"}
    return {side: state[key].clone() for side, key in keys.items()}


def searched(grad: Tensor, proj_type: str, held: dict[str, Tensor], **keys: Any) -> dict[str, Tensor]:
    """The same search by the public functions."""
    if proj_type == "full":
        u, _, vh = lowrank_core.rsvd(grad, RANK, basis=held.get("left"), **keys)
        found = {"left": u, "right": vh.mT}
    else:
        seen = grad if proj_type == "left" else grad.mT
        found = {proj_type: lowrank_core.range_finder(seen, RANK, basis=held.get(proj_type), **keys)}
    return {
        side: basis * torch.where((basis * held[side]).sum(0) < 0, -1.0, 1.0) if side in held else basis
        for side, basis in found.items()
    }


@every_side
@pytest.mark.parametrize(
    ("keys", "oversample", "niter"), [({}, 10, 2), ({"oversample": 3, "niter": 4}, 3, 4), ({"niter": 0}, 10, 0)]
)
def test_a_first_search_is_cold_and_each_later_one_warm(
    proj_type: str, keys: dict[str, int], oversample: int, niter: int
) -> None:
    """`niter` iterations from a draw, then one from the basis held; each draw is of its own number."""
    weight = nn.Parameter(draw(*SHAPES[proj_type]))
    optimizer = optimizer_of(weight, proj_type=proj_type, **keys)
    held: dict[str, Tensor] = {}
    for number in range(4):
        weight.grad = draw(*weight.shape, seed=number + 1)
        optimizer.step()
        expected = searched(
            weight.grad, proj_type, held,
            oversample=oversample, niter=1 if number else niter, seed=mix_seed(SEED, 0, number),
        )  # fmt: skip
        held = bases_of(optimizer, weight)
        assert same(held, {side: basis.contiguous() for side, basis in expected.items()}), f"search {number}"


@every_side
@pytest.mark.parametrize(
    "others",
    [{"warm": False}, {"warm": True, "niter": 2}, {"warm": True, "niter": 1, "number": 0}],
    ids=["cold", "as many iterations as a cold one", "the first search's draws"],
)
def test_another_search_would_show(proj_type: str, others: dict[str, Any]) -> None:
    """The gradients above have no gap in their values, so that each of these gives other bits."""
    first, second = (draw(*SHAPES[proj_type], seed=seed) for seed in (1, 2))
    held = searched(first, proj_type, {}, oversample=10, niter=2, seed=mix_seed(SEED, 0, 0))
    right = searched(second, proj_type, held, oversample=10, niter=1, seed=mix_seed(SEED, 0, 1))
    start, niter = held if others["warm"] else {}, others.get("niter", 2)
    wrong = searched(
        second, proj_type, start, oversample=10, niter=niter, seed=mix_seed(SEED, 0, others.get("number", 1))
    )
    assert not any(same(right[side], wrong[side]) for side in right)


def test_warm_searches_add_up() -> None:
    """Of a flat spectrum and a gradient that stays: each search goes on from where the last one ended."""
    weight = nn.Parameter(draw(200, 150))
    keys: dict[str, Any] = {"niter": 0, "oversample": 0, "rank": 10}
    optimizer, grad = optimizer_of(weight, **keys), draw(200, 150, seed=1)
    shares = []
    for _ in range(6):
        weight.grad = grad
        optimizer.step()
        shares.append(optimizer.projections()[0].captured)
    alone = nn.Parameter(draw(200, 150))
    cold = optimizer_of(alone, **{**keys, "niter": 2})
    alone.grad = grad
    cold.step()
    assert shares == sorted(shares)
    assert shares[-1] > cold.projections()[0].captured > shares[0]  # five iterations in a row, two, none


def test_the_number_of_the_refresh_keys_its_draws() -> None:
    """The same gradient, the same basis held, another number: other fresh columns beside it."""
    weight = nn.Parameter(draw(60, 40))
    optimizer = optimizer_of(weight, oversample=2)
    weight.grad = draw(60, 40, seed=1)
    optimizer.step()
    saved, ends = optimizer.state_dict(), []
    for refreshes in (1, 1, 2):
        twin = nn.Parameter(weight.detach().clone())
        twin.grad = draw(60, 40, seed=2)
        other = optimizer_of(twin, oversample=2)
        edited = copy.deepcopy(saved)
        edited["state"][0]["proj.refreshes"] = refreshes
        other.load_state_dict(edited)
        other.step()
        ends.append(bases_of(other, twin))
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])


def test_the_captured_share_is_no_more_than_all() -> None:
    """Where rounding makes the projection longer than what is projected."""
    longer = 0
    for seed in range(12):
        weight = nn.Parameter(draw(12, 9).bfloat16())
        optimizer = GaLoreAdamW([weight], rank=9, force_projection=True)
        weight.grad = draw(12, 9, seed=seed).bfloat16()
        optimizer.step()
        (basis,) = bases_of(optimizer, weight).values()
        longer += bool((weight.grad.double() @ basis.double()).norm() > weight.grad.double().norm())
        assert 0.0 < optimizer.projections()[0].captured <= 1.0
    assert longer > 0
