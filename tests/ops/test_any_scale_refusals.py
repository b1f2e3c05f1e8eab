"""Refusals and roundings at the ends of a dtype's range: finite arguments are never called anything else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lowrank_core
import numpy as np
import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops import qb_list, range_finder_list
from test_any_scale import M, N, times
from testing import cases, checks, machine
from torch import Tensor

# ---- what a refusal says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_result_that_does_not_fit_is_no_argument_that_is_not_finite(dtype: torch.dtype) -> None:
    a = torch.full((M, N), torch.finfo(dtype).max, dtype=dtype)
    u = torch.eye(M, 3, dtype=dtype)
    v = torch.eye(N, 3, dtype=dtype)
    core = torch.full((3, 3), torch.finfo(dtype).max, dtype=dtype)
    zeros = [torch.zeros_like(u)], [torch.zeros_like(v)]
    calls: dict[str, Callable[[], Any]] = {
        "rsvd: `a`": lambda: lowrank_core.rsvd(a, 3),
        "svd_lowrank: `a`": lambda: lowrank_core.svd_lowrank(a, 3),
        "qb: `a`": lambda: lowrank_core.qb(a, energy=0.9),
        r"qb_list: `arrays\[0\]`": lambda: qb_list([a], energy=0.9),
        "factored_svd: `b`, `a`": lambda: lowrank_core.factored_svd(a, a.mT),
        r"augment_truncate: `u\[0\]`, `s\[0\]`, `v\[0\]`, `gv\[0\]`, `gu\[0\]`": lambda: lowrank_core.augment_truncate(
            [u], [core], [v], *zeros, lr=1.0, tol=0.0, max_rank=3
        ),
    }
    for named, call in calls.items():
        message = f"^{named} must be small enough for the result to fit its dtype, got finite numbers that overflowed"
        with pytest.raises(ValueError, match=message):
            call()
    checks.assert_orthonormal(lowrank_core.range_finder(a, 3))  # directions alone always fit
    checks.assert_orthonormal(lowrank_core.orthonormalize(a))


def step(*layers: list[Any]) -> Any:
    """augment_truncate of layers of six arrays each."""
    *five, gs = ([layer[k] for layer in layers] for k in range(6))
    return lowrank_core.augment_truncate(*five, gs=gs, lr=0.1, tol=0.0, max_rank=4)


def layer() -> list[Tensor]:
    return [
        cases.orthonormal(9, 2),
        cases.gaussian(2, 2),
        cases.orthonormal(8, 2),
        *(cases.gaussian(k, 2, seed=1) for k in (9, 8, 2)),
    ]


SHAPES = ((9, 8), (12, 7), (6, 6))
MATRICES, BASES = [cases.gaussian(*x) for x in SHAPES], [cases.gaussian(x[0], 2) for x in SHAPES]
ORTH = {
    f"orthonormalize {method}": (lambda y, m=method: lowrank_core.orthonormalize(y, method=m), BASES[:1], ["y"])
    for method in ("auto", "cholqr2", "householder", "newton_schulz")
}
# A call, its arrays in order, their names.
NAMED: dict[str, tuple[Callable[..., Any], list[Tensor], list[str]]] = ORTH | {
    "rsvd": (lambda a, b: lowrank_core.rsvd(a, 2, basis=b, niter=1), [MATRICES[0], BASES[0]], ["a", "basis"]),
    "range_finder": (
        lambda a, b: lowrank_core.range_finder(a, 2, basis=b, niter=1),
        [MATRICES[0], BASES[0]],
        ["a", "basis"],
    ),
    "factored_svd": (lowrank_core.factored_svd, [BASES[0], BASES[1].mT], ["b", "a"]),
    "factored_svd of a small product": (lowrank_core.factored_svd, [BASES[1].mT, BASES[1]], ["b", "a"]),
    "qb": (lambda a: lowrank_core.qb(a, energy=0.9), MATRICES[:1], ["a"]),
    "qb_list": (lambda *x: qb_list(x, energy=0.9), MATRICES, [f"arrays[{i}]" for i in range(3)]),
    "range_finder_list": (
        lambda *x: range_finder_list(x[:3], [2] * 3, bases=x[3:], niter=1),
        MATRICES + BASES,
        [f"{name}[{i}]" for name in ("arrays", "bases") for i in range(3)],
    ),
    "range_finder_list without some bases": (
        lambda *x: range_finder_list(x[:3], [2] * 3, bases=[None, x[3], None], niter=1),
        [*MATRICES, BASES[1]],
        ["arrays[0]", "arrays[1]", "arrays[2]", "bases[1]"],
    ),
    "augment_truncate": (
        lambda *x: step(list(x[:6]), list(x[6:])),
        layer() + layer(),
        [f"{name}[{i}]" for i in range(2) for name in ("u", "s", "v", "gv", "gu", "gs")],
    ),
}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize("call", list(NAMED))
def test_of_several_arrays_the_right_one_is_named(call: str, library: str, bad: float) -> None:
    """Whichever it is, first or last, also in lists."""
    function, arrays, names = NAMED[call]
    for at, name in enumerate(names):
        copies = [x.clone() for x in arrays]
        copies[at][-1, -1] = bad
        with pytest.raises(ValueError) as caught:
            function(*(x.numpy() for x in copies) if library == "numpy" else copies)
        assert str(caught.value) == f"{call.split()[0]}: `{name}` must be finite, got NaN or infinity"


# ---- 4 bits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["affine", "affine_zp", "symmetric", "nf4"])
@pytest.mark.parametrize("dim", [0, -1])
def test_codes_of_float64(scheme: str, dim: int) -> None:
    """What float32 can hold has the codes of its float32; anything larger is refused by its own size."""
    x = cases.gaussian(70, 70)
    for exponent in (-140, -100, 0, 100, 122):
        wide, narrow = times(x, exponent), times(x, exponent).float()
        both = [lowrank_core.quantize_int4(y, scheme=scheme, dim=dim) for y in (wide, narrow)]
        assert checks.same_bits(both[0].packed, both[1].packed) and checks.same_bits(both[0].scales, both[1].scales)
    for size, text in ((1e300, "1e+300"), (2.0**128, "3.40282367e+38"), (1e39, "1e+39")):
        large = x.clone()
        large[69, 69] = size
        with pytest.raises(ValueError, match="quantize_int4: `x` must stay within") as caught:
            lowrank_core.quantize_int4(large, scheme=scheme, dim=dim)
        assert f" to {text}; divide it by a constant" in str(caught.value)
        large[69, 68 if dim else 69] = math.nan
        large[68 if not dim else 69, 69] = math.nan
        with pytest.raises(ValueError, match="quantize_int4: `x` must be finite, got NaN or infinity"):
            lowrank_core.quantize_int4(large, scheme=scheme, dim=dim)


# ---- one rounding ------------------------------------------------------------------------------------------------

BESIDE = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # above 1, the middle between two numbers


@pytest.mark.parametrize("dtype", list(BESIDE), ids=str)
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("level", _core.isa_levels())
def test_what_is_computed_in_float64_is_rounded_once(level: str, side: int, dtype: torch.dtype) -> None:
    """Just beside the middle; a float would be the middle itself, and ties go to the even number below."""
    value = 1.0 + BESIDE[dtype] + side * 2.0**-40
    expected = 1.0 + (2 * BESIDE[dtype] if side > 0 else 0.0)
    for n in (1, 3, 40):
        ones = torch.ones(n, dtype=torch.float64)
        with machine.isa(level):
            theta, _ = lowrank_core.kalman_diag_step(
                ones.to(dtype), ones, torch.zeros(1, n, dtype=torch.float64), (value - 1.0) * ones, lr=1.0
            )
            assert torch.equal(theta, torch.full((n,), expected, dtype=dtype))
            h = torch.zeros(n, n) + torch.eye(n)
            p, r = value * ones, torch.diag(1.0 - value * ones)
            gain = lowrank_core.kalman_diag_gain(p, h.to(dtype), r)
            assert torch.equal(gain, (expected * torch.eye(n)).to(dtype))


@pytest.mark.parametrize("level", _core.isa_levels())
def test_a_filter_at_the_end_of_float64_is_sound_or_refused(level: str) -> None:
    """Equal outputs, whose Gram matrix has to be raised by a rounding that it has no room for."""
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    root = math.sqrt(np.finfo(np.float64).max)
    refused = []
    with machine.isa(level):
        for _ in range(6):
            assert math.isfinite(root * root)
            for m in (2, 3, 5, 8):
                jac = torch.full((m, 1), root, dtype=torch.float64)
                try:
                    theta, p = lowrank_core.kalman_diag_step(one, one, jac, none)
                    assert torch.equal(theta, one) and bool(p >= none) and bool(p <= one)
                except ValueError as error:
                    assert "`jac` must have products with p that fit float64" in str(error)
                    refused.append(m)
            root = math.nextafter(root, 0.0)
    assert refused
