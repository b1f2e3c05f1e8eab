"""Every refusal of the family by its sentence, from NumPy, from torch and from the fake kernels."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import lowrank_core
import numpy as np
import pytest
import torch

Refused = tuple[Callable[[Any], Any], type[Exception], str]

ROWS, COLS = 7, 5


def numpy_array(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def torch_array(*shape: int) -> torch.Tensor:
    return torch.from_numpy(numpy_array(*shape))


def meta_array(*shape: int) -> torch.Tensor:
    return torch_array(*shape).to("meta")


MAKERS = {"numpy": numpy_array, "torch": torch_array, "fake": meta_array}
MAX = 2**63 - 1

# Calls get a maker of arrays; texts are literal.
REFUSED: dict[str, Refused] = {
    "rank above": (
        lambda x: lowrank_core.rsvd(x(ROWS, COLS), 6),
        ValueError,
        "rsvd: `rank` must be between 0 and 5, got 6 for shape [7, 5]",
    ),
    "rank below": (
        lambda x: lowrank_core.range_finder(x(ROWS, COLS), -1),
        ValueError,
        "range_finder: `rank` must be between 0 and 5, got -1 for shape [7, 5]",
    ),
    "q above": (
        lambda x: lowrank_core.svd_lowrank(x(COLS, ROWS)),
        ValueError,
        "svd_lowrank: `q` must be between 0 and 5, got 6 for shape [5, 7]",
    ),
    "niter below": (
        lambda x: lowrank_core.svd_lowrank(x(ROWS, COLS), 2, -1),
        ValueError,
        "svd_lowrank: `niter` must be >= 0, got -1",
    ),
    "oversample below": (
        lambda x: lowrank_core.rsvd(x(ROWS, COLS), 2, oversample=-1),
        ValueError,
        "rsvd: `oversample` must be >= 0, got -1",
    ),
    "seed below": (
        lambda x: lowrank_core.rsvd(x(ROWS, COLS), 2, seed=-1),
        ValueError,
        f"rsvd: `seed` must be between 0 and {MAX}, got -1",
    ),
    "vector": (
        lambda x: lowrank_core.rsvd(x(ROWS), 1),
        ValueError,
        "rsvd: `a` must have at least 2 dimensions, got shape [7]",
    ),
    "scalar": (
        lambda x: lowrank_core.range_finder(x(), 1),
        ValueError,
        "range_finder: `a` must have at least 2 dimensions, got shape []",
    ),
    "basis rows": (
        lambda x: lowrank_core.rsvd(x(ROWS, COLS), 2, basis=x(COLS, 2)),
        ValueError,
        "rsvd: `basis` must be [7, 'k'] with k >= 1, got shape [5, 2]",
    ),
    "basis of no columns": (
        lambda x: lowrank_core.range_finder(x(ROWS, COLS), 2, basis=x(ROWS, 0)),
        ValueError,
        "range_finder: `basis` must be [7, 'k'] with k >= 1, got shape [7, 0]",
    ),
    "basis of a batch": (
        lambda x: lowrank_core.rsvd(x(3, ROWS, COLS), 2, basis=x(ROWS, 2)),
        ValueError,
        "rsvd: `basis` must be [3, 7, 'k'] with k >= 1, got shape [7, 2]",
    ),
    "basis vector": (
        lambda x: lowrank_core.rsvd(x(ROWS, COLS), 2, basis=x(ROWS)),
        ValueError,
        "rsvd: `basis` must have at least 2 dimensions, got shape [7]",
    ),
    "basis without an iteration": (
        lambda x: lowrank_core.rsvd(x(ROWS, COLS), 2, basis=x(ROWS, 2), niter=0),
        ValueError,
        "rsvd: `niter` must be >= 1 with `basis`, got 0; the basis alone has not seen the matrix",
    ),
    "product that does not chain": (
        lambda x: lowrank_core.factored_svd(x(ROWS, 3), x(4, COLS)),
        ValueError,
        "factored_svd: `b` [..., m, k] and `a` [..., k, n] must chain, got [7, 3] and [4, 5]",
    ),
    "product of different batches": (
        lambda x: lowrank_core.factored_svd(x(2, ROWS, 3), x(3, COLS)),
        ValueError,
        "factored_svd: `b` [..., m, k] and `a` [..., k, n] must chain, got [2, 7, 3] and [3, 5]",
    ),
    "product rank": (
        lambda x: lowrank_core.factored_svd(x(ROWS, 3), x(3, COLS), rank=4),
        ValueError,
        "factored_svd: `rank` must be between 0 and 3, got 4 for m, k, n = [7, 3, 5]",
    ),
    "wide": (
        lambda x: lowrank_core.orthonormalize(x(COLS, ROWS)),
        ValueError,
        "orthonormalize: `y` must have at least as many rows as columns, got shape [5, 7]; "
        "pass its transpose for a basis of the rows",
    ),
    "unknown method": (
        lambda x: lowrank_core.orthonormalize(x(ROWS, COLS), method="qr"),
        ValueError,
        "orthonormalize: `method` must be one of auto, cholqr2, householder, newton_schulz, got 'qr'",
    ),
    "unknown side": (
        lambda x: lowrank_core.project(x(ROWS, COLS), x(ROWS, 2), side="top"),
        ValueError,
        "project: `side` must be 'left' or 'right', got 'top'",
    ),
    "left basis": (
        lambda x: lowrank_core.project(x(ROWS, COLS), x(COLS, 2), side="left"),
        ValueError,
        "project: `basis` must be [m, r] with the m, n and r of `g`, got shape [5, 2] "
        "for `g` of shape [7, 5] and side 'left'",
    ),
    "right basis": (
        lambda x: lowrank_core.project(x(ROWS, COLS), x(ROWS, 2), side="right"),
        ValueError,
        "project: `basis` must be [n, r] with the m, n and r of `g`, got shape [7, 2] "
        "for `g` of shape [7, 5] and side 'right'",
    ),
    "basis of the way back": (
        lambda x: lowrank_core.project_back(x(3, COLS), x(ROWS, 2), side="left"),
        ValueError,
        "project_back: `basis` must be [m, r] with the r of `r`, got shape [7, 2] "
        "for `r` of shape [3, 5] and side 'left'",
    ),
    "basis of another batch": (
        lambda x: lowrank_core.project(x(2, ROWS, COLS), x(3, ROWS, 2), side="left"),
        ValueError,
        "project: `basis` must be a matrix or have the leading dimensions [2] of `g`, got shape [3, 7, 2]",
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str, maker: str) -> None:
    call, kind, text = REFUSED[name]
    with pytest.raises(kind) as caught:
        call(MAKERS[maker])
    assert text in str(caught.value)


DTYPES_REFUSED = {
    "int32": (np.int32, torch.int32),
    "complex64": (np.complex64, torch.complex64),
    "bool": (np.bool_, torch.bool),
}


@pytest.mark.parametrize("name", DTYPES_REFUSED)
def test_dtypes(name: str) -> None:
    for_numpy, for_torch = DTYPES_REFUSED[name]
    a, b = np.ones((4, 3), dtype=for_numpy), torch.ones(4, 3, dtype=for_torch)
    calls: dict[str, Callable[[Any], Any]] = {
        "rsvd: `a`": lambda x: lowrank_core.rsvd(x, 2),
        "svd_lowrank: `a`": lambda x: lowrank_core.svd_lowrank(x, 2),
        "range_finder: `a`": lambda x: lowrank_core.range_finder(x, 2),
        "qb: `a`": lambda x: lowrank_core.qb(x, energy=0.5),
        "factored_svd: `b`": lambda x: lowrank_core.factored_svd(x, x.T),
        "orthonormalize: `y`": lambda x: lowrank_core.orthonormalize(x),
        "project: `g`": lambda x: lowrank_core.project(x, x, side="left"),
        "project_back: `r`": lambda x: lowrank_core.project_back(x, x, side="right"),
    }
    for who, call in calls.items():
        with pytest.raises(TypeError, match=f"{who} must be float32 or float64, got {name}"):
            call(a)
        with pytest.raises(TypeError, match=f"{who} must be float32 or float64 or bfloat16 or float16, got {name}"):
            call(b)


def test_numpy_knows_no_half_precision_here() -> None:
    with pytest.raises(TypeError, match="rsvd: `a` must be float32 or float64, got float16"):
        lowrank_core.rsvd(np.ones((4, 3), dtype=np.float16), 2)


@pytest.mark.parametrize("thing", [[[1.0, 2.0]], 3.0, None, "a", np.float64(3)], ids=repr)
def test_what_is_no_array(thing: Any) -> None:
    kind = type(thing).__name__
    for op, call in (
        ("rsvd: `a`", lambda: lowrank_core.rsvd(thing, 1)),
        ("qb: `a`", lambda: lowrank_core.qb(thing, energy=0.5)),
        ("factored_svd: `b`", lambda: lowrank_core.factored_svd(thing, thing)),
        ("orthonormalize: `y`", lambda: lowrank_core.orthonormalize(thing)),
        ("project: `g`", lambda: lowrank_core.project(thing, thing, side="left")),
    ):
        expected = f"{op} must be a numpy.ndarray, torch.Tensor or cupy.ndarray, got {kind}"
        with pytest.raises(TypeError, match=re.escape(expected)):
            call()


@pytest.mark.parametrize("make", [numpy_array, torch_array])
def test_precision(make: Callable[..., Any]) -> None:
    text = "`precision` must be 'highest', 'high', 'medium' or None, got 'low'"
    for name in ("rsvd", "range_finder"):
        with pytest.raises(ValueError, match=f"{name}: {text}"):
            getattr(lowrank_core, name)(make(ROWS, COLS), 2, precision="low")


def test_precision_is_refused_by_the_fake_kernel() -> None:
    with pytest.raises(ValueError, match="rsvd: `precision` must be"):
        lowrank_core.rsvd(meta_array(ROWS, COLS), 2, precision="low")


def test_libraries_are_not_mixed() -> None:
    a, b = numpy_array(ROWS, COLS), torch_array(ROWS, 2)
    with pytest.raises(TypeError, match="rsvd: `basis` must be of the same library as the other arrays, got Tensor"):
        lowrank_core.rsvd(a, 2, basis=b)
    with pytest.raises(TypeError, match="project: `basis` must be of the same library as the other arrays, got Tensor"):
        lowrank_core.project(a, b, side="left")


def test_devices_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="project: `basis` must be on cpu, got meta"):
        lowrank_core.project(torch_array(ROWS, COLS), meta_array(ROWS, 2), side="left")
    with pytest.raises(ValueError, match="rsvd: `basis` must be on cpu, got meta"):
        lowrank_core.rsvd(torch_array(ROWS, COLS), 2, basis=meta_array(ROWS, 2))


def test_factors_of_a_product_have_one_dtype() -> None:
    with pytest.raises(TypeError, match="factored_svd: `a` must be float32 as `b`, got float64"):
        lowrank_core.factored_svd(np.ones((4, 3), dtype=np.float32), np.ones((3, 4)))


@pytest.mark.parametrize("make", [numpy_array, torch_array])
def test_too_many_dimensions(make: Callable[..., Any]) -> None:
    a = make(*([1] * 7), 3, 2)
    with pytest.raises(ValueError, match="rsvd: `a` must have at most 8 dimensions, got 9"):
        lowrank_core.rsvd(a, 1)
    assert lowrank_core.rsvd(a[0], 1).u.shape == (1,) * 6 + (3, 1)
