"""Every refusal of the family by its sentence, from NumPy, from torch and from the fake kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dct_family as family
import lowrank_core as lc
import numpy as np
import pytest
import torch

Refused = tuple[Callable[[Any], Any], type[Exception], str]


def numpy_array(*shape: int, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def torch_array(*shape: int, dtype: str = "float64") -> torch.Tensor:
    return torch.from_numpy(numpy_array(*shape, dtype=dtype))


def meta_array(*shape: int, dtype: str = "float64") -> torch.Tensor:
    return torch_array(*shape, dtype=dtype).to("meta")


MAKERS = {"numpy": numpy_array, "torch": torch_array, "fake": meta_array}


def _indices(x: Any, *shape: int) -> Any:
    return x(*shape, dtype="int64")


# Calls get a maker of arrays; texts are literal.
REFUSED: dict[str, Refused] = {
    "rank above": (
        lambda x: lc.dct_select(x(7, 5), 6),
        ValueError,
        "dct_select: `rank` must be between 0 and 5, got 6 for shape [7, 5] and side 'right'",
    ),
    "rank above on the left": (
        lambda x: lc.dct_select_feedback_(x(5, 7), x(5, 7), 6),
        ValueError,
        "dct_select_feedback_: `rank` must be between 0 and 5, got 6 for shape [5, 7] and side 'left'",
    ),
    "vector": (
        lambda x: lc.dct_select(x(7), 1),
        ValueError,
        "dct_select: `g` must have at least 2 dimensions, got shape [7]",
    ),
    "unknown basis": (
        lambda x: lc.dct_select(x(7, 5), 2, basis="dct4"),
        ValueError,
        "dct_select: `basis` must be one of dct2, dct3, identity, hadamard or an array, got 'dct4'",
    ),
    "hadamard of 5": (
        lambda x: lc.dct_select(x(7, 5), 2, basis="hadamard"),
        ValueError,
        "dct_select: `basis` 'hadamard' must have a power of two as length, got 5; use 'dct2'",
    ),
    "atoms of another width": (
        lambda x: lc.dct_select(x(7, 5), 2, basis=x(7, 7)),
        ValueError,
        "dct_select: `basis` must be [5, 5], got shape [7, 7]; its columns are the atoms",
    ),
    "unknown side": (
        lambda x: lc.dct_select(x(7, 5), 2, side="top"),
        ValueError,
        "dct_select: `side` must be 'auto', 'left' or 'right', got 'top'",
    ),
    "norm": (
        lambda x: lc.dct_select(x(7, 5), 2, norm_ord=3),
        ValueError,
        "dct_select: `norm_ord` must be between 1 and 2, got 3",
    ),
    "residual of another shape": (
        lambda x: lc.dct_select_feedback_(x(5, 7), x(7, 5), 2),
        ValueError,
        "dct_select_feedback_: `residual` must have the shape [7, 5] of `g`, got [5, 7]; start with zeros",
    ),
    "keep": (
        lambda x: lc.dct_select_feedback_(x(7, 5), x(7, 5), 2, keep=1.5),
        ValueError,
        "dct_select_feedback_: `keep` must be between 0 and 1, got 1.5",
    ),
    "no side on the way back": (
        lambda x: lc.dct_project_back(x(7, 2), _indices(x, 2), 5, side="auto"),
        ValueError,
        "dct_project_back: `side` must be 'left' or 'right', got 'auto'",
    ),
    "n below the rank": (
        lambda x: lc.dct_project_back(x(7, 4), _indices(x, 4), 3, side="right"),
        ValueError,
        "dct_project_back: `n` must be >= the 4 coordinates of `coeffs`, got 3",
    ),
    "indices of another rank": (
        lambda x: lc.dct_project_back(x(7, 4), _indices(x, 3), 8, side="right"),
        ValueError,
        "dct_project_back: `indices` must be [4], got shape [3]",
    ),
    "indices of a float dtype": (
        lambda x: lc.dct_project_back(x(7, 4), x(4), 8, side="right"),
        TypeError,
        "dct_project_back: `indices` must be an int64 array, got float64; pass what dct_select returned",
    ),
    "indices that are a list": (
        lambda x: lc.rotate_moments(x(7, 2), x(7, 2), [0, 1], _indices(x, 2), side="right"),
        TypeError,
        "rotate_moments: `old_indices` must be an int64 array, got list; pass what dct_select returned",
    ),
    "moments of two shapes": (
        lambda x: lc.rotate_moments(x(7, 2), x(2, 7), _indices(x, 2), _indices(x, 2), side="right"),
        ValueError,
        "rotate_moments: `v` must have the shape [7, 2] of `m`, got [2, 7]",
    ),
    "moments of the other side": (
        lambda x: lc.rotate_moments(x(7, 2), x(7, 2), _indices(x, 2), _indices(x, 2), side="left"),
        ValueError,
        "rotate_moments: `old_indices` must be [7], got shape [2]",
    ),
    "unknown side of moments": (
        lambda x: lc.rotate_moments(x(7, 2), x(7, 2), _indices(x, 2), _indices(x, 2), side="auto"),
        ValueError,
        "rotate_moments: `side` must be 'left' or 'right', got 'auto'",
    ),
    "scalar": (lambda x: lc.dct(x()), ValueError, "dct: `x` must have at least 1 dimensions, got shape []"),
    "dimension": (
        lambda x: lc.idct(x(7, 5), dim=2),
        ValueError,
        "idct: `dim` must be between -2 and 1, got 2 for shape [7, 5]",
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str, maker: str) -> None:
    call, kind, text = REFUSED[name]
    with pytest.raises(kind) as caught:
        call(MAKERS[maker])
    assert text in str(caught.value)


@pytest.mark.parametrize("maker", [numpy_array, torch_array])
@pytest.mark.parametrize(("values", "got"), [((2, 1), "1 at position 1"), ((1, 1), "1 at position 1")])
def test_indices_that_do_not_ascend(values: tuple[int, ...], got: str, maker: Callable[..., Any]) -> None:
    """A permuted list would scramble moments without a word."""
    a = maker(7, 2)
    bad, good = family.indices_like(a, *values), family.indices_like(a, 0, 1)
    text = f"must ascend without repeats and be .*, got {got}; pass what dct_select returned"
    with pytest.raises(ValueError, match=f"dct_project_back: `indices` {text}"):
        lc.dct_project_back(a, bad, 8, side="right")
    with pytest.raises(ValueError, match=f"rotate_moments: `old_indices` {text}"):
        lc.rotate_moments(a, a, bad, good, side="right")
    with pytest.raises(ValueError, match=f"rotate_moments: `new_indices` {text}"):
        lc.rotate_moments(a, a, good, bad, side="right")


@pytest.mark.parametrize("value", [-1, 8])
def test_indices_out_of_range(value: int) -> None:
    for a in (numpy_array(7, 1), torch_array(7, 1)):
        text = (
            f"dct_project_back: `indices` must ascend without repeats and be between 0 and 7, got {value} at position 0"
        )
        with pytest.raises(ValueError, match=text):
            lc.dct_project_back(a, family.indices_like(a, value), 8, side="right")


def test_dtypes_and_kinds() -> None:
    with pytest.raises(TypeError, match="dct: `x` must be float32 or float64, got int64"):
        lc.dct(np.arange(4))
    with pytest.raises(
        TypeError, match=r"dct_select: `g` must be a numpy\.ndarray, torch\.Tensor or cupy\.ndarray, got list"
    ):
        lc.dct_select([[1.0]], 1)
    with pytest.raises(TypeError, match="dct_select: `basis` must be of the same library as the other arrays"):
        lc.dct_select(torch.ones(3, 3), 1, basis=np.eye(3))
    with pytest.raises(TypeError, match=r"dct_select: `rank` must be an integer, got 1\.5"):
        lc.dct_select(torch.ones(3, 3), 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="or 'custom' with an array, got 'custom'"):
        torch.ops.lowrank_core.dct_select(torch.ones(3, 3), 1, basis="custom")
