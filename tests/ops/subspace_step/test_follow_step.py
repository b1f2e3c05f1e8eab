"""Subspaces that follow the gradient: what the kernel returns, beside each other, and its tiers.

`tests/optim/test_ldadam.py` compares whole steps with the formulas.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.subspace_step.following import follow_list
from testing import machine
from testing.tolerance import UNIT, gamma
from torch import Tensor

SHAPES = ((1, 1, 1), (7, 5, 2), (64, 33, 9), (65, 200, 16), (301, 407, 50))
BETA1, BETA2, RHO, STEP = 0.7, 0.9, 0.6, 3
OPTIONS: dict[str, Any] = {"beta1": BETA1, "beta2": BETA2, "rho": RHO, "maximize": False, "precision": "highest"}


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weight(shape: tuple[int, int, int], right: bool, dtype: torch.dtype, grad: torch.dtype) -> dict[str, Tensor]:
    """What belongs to one weight; the gradient by columns."""
    m, n, r = shape
    low = (m, r) if right else (r, n)
    basis = torch.linalg.qr(numbers(n if right else m, r, seed=1)).Q
    made = {
        "error": numbers(m, n, seed=2), "basis": basis, "first": numbers(*low, seed=3),
        "second": numbers(*low, seed=4).square(),
    }  # fmt: skip
    return {"grad": numbers(n, m, seed=5).mT.to(grad), **{key: value.to(dtype) for key, value in made.items()}}


def follow(weights: list[dict[str, Tensor]], rights: list[bool], **options: Any) -> list[Tensor]:
    """In place; returns what the new subspaces hold."""
    lists = [[w[key] for w in weights] for key in ("error", "grad", "basis", "first", "second")]
    return follow_list(*lists, rights, [STEP] * len(weights), **{**OPTIONS, **options})


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_it_returns_fits_together(
    shape: tuple[int, int, int], dtype: torch.dtype, right: bool, maximize: bool, level: str
) -> None:
    """With the basis that it found, whatever that is, all the rest is a product or two."""
    w, r = weight(shape, right, dtype, dtype), shape[2]
    old = {key: value.double().clone() for key, value in w.items()}
    with machine.isa(level):
        (low,) = follow([w], [right], maximize=maximize)
    turned = (lambda x: x.double().mT) if right else (lambda x: x.double())
    unit, depth = UNIT[dtype], gamma(max(shape) + 4, dtype)
    basis, before = w["basis"].double(), old["basis"]
    assert bool(((basis.mT @ basis - torch.eye(r)).abs() <= r * depth).all())
    whole = turned(old["error"] + (-1 if maximize else 1) * old["grad"])
    assert bool(((turned(low) - basis.mT @ whole).abs() <= depth * (basis.abs().mT @ whole.abs() + 1)).all())
    first, factor = turned(old["first"]), BETA1 / (1 - BETA1)
    lifted, size = before @ first, before.abs() @ first.abs()
    assert bool(((turned(w["error"]) - whole - factor * lifted).abs() <= depth * (whole.abs() + factor * size)).all())
    change, entries = basis.mT @ before, basis.abs().mT @ before.abs()
    assert bool(((turned(w["first"]) - change @ first).abs() <= 3 * depth * (entries @ first.abs())).all())
    c1, c2 = 1 - BETA1**STEP, 1 - BETA2**STEP
    spread = turned(old["second"]) / c2 - (first / c1).square()
    second = c2 * (change.square() @ spread + (change @ first / c1).square()).abs()
    most = entries.square() @ (turned(old["second"]) / c2 + (first / c1).square()) + (entries @ first.abs() / c1) ** 2
    assert bool(((turned(w["second"]) - second).abs() <= 12 * depth * c2 * most + unit * second).all())


def test_the_subspace_is_one_power_step_on() -> None:
    for right in (False, True):
        w = weight((65, 200, 16), right, torch.float64, torch.float64)
        turned = (lambda x: x.mT) if right else (lambda x: x)
        whole, first, old = turned(w["error"] + w["grad"]), turned(w["first"]).clone(), w["basis"].clone()
        followed = RHO / (1 - BETA1**STEP) * old @ first + (1 - RHO) * whole
        image = followed @ (followed.mT @ old)
        follow([w], [right])
        away = image - w["basis"] @ (w["basis"].mT @ image)
        size = followed.norm() ** 2 * old.norm()
        assert away.norm() <= 4 * gamma(2 * 200, torch.float64) * size


@pytest.mark.parametrize("level", _core.isa_levels())
def test_threads_and_lists_do_not_change_a_bit(level: str) -> None:
    rights = [i % 2 == 1 for i in range(len(SHAPES))]
    kinds = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float64, torch.float64)]

    def made() -> list[dict[str, Tensor]]:
        return [weight(s, right, *kinds[i % 3]) for i, (s, right) in enumerate(zip(SHAPES, rights, strict=True))]

    found = []
    with machine.isa(level):
        for count in (1, 2, 3):
            weights = made()
            with machine.threads(count):
                lows = follow(weights, rights)
            found.append([value for w in weights for value in w.values()] + [low.clone() for low in lows])
        weights, lows = made(), []
        for w, right in zip(weights, rights, strict=True):
            lows += [low.clone() for low in follow([w], [right])]
        found.append([value for w in weights for value in w.values()] + lows)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("error", torch.zeros(6, 9, dtype=torch.bfloat16)), ("basis", torch.zeros(7, 2)), ("first", torch.zeros(2, 8)),
        ("second", torch.zeros(9, 2).mT), ("grad", torch.zeros(6, 8)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(key: str, value: Tensor) -> None:
    w = {**weight((6, 9, 2), False, torch.float32, torch.float32), key: value}
    with pytest.raises(ValueError, match="subspace_step_"):
        follow([w], [False])
