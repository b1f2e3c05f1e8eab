"""A refusal of NaN or infinity names the array that it stands in, of all that an operator reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import lowrank_core as lc
import numpy as np
import pytest
import torch
from lowrank_core.ops import qb_list, range_finder_list
from testing import cases
from torch import Tensor

M, N, R = 9, 7, 3
ATTENTION = ("queries", "keys", "values", "dout", "a", "b", "weight")

# Name, the arrays by the name that a refusal gives them, and the call.
Row = tuple[dict[str, Tensor], Callable[..., Any]]


def g(*shape: int, seed: int = 0) -> Tensor:
    *batch, m, n = shape if len(shape) > 1 else (1, *shape)
    drawn = cases.gaussian(m, n, *batch, seed=seed).float()
    return drawn[0] if len(shape) == 1 else drawn


def layers() -> dict[str, Tensor]:
    """Two layers of `augment_truncate`."""
    found: dict[str, Tensor] = {}
    for i in range(2):
        basis = {"u": cases.orthonormal(M, R, seed=i), "s": torch.eye(R), "v": cases.orthonormal(N, R, seed=i + 5)}
        grads = {"gv": g(M, R, seed=i + 7), "gu": g(N, R, seed=i + 9), "gs": g(R, R, seed=i + 11)}
        found |= {f"{name}[{i}]": a.float() for name, a in {**basis, **grads}.items()}
    return found


def augment(*arrays: Any) -> Any:
    *lists, gs = ([arrays[i], arrays[i + 6]] for i in range(6))
    return lc.augment_truncate(*lists, gs=gs, lr=0.1, tol=0.1, max_rank=R)


def feedback(residual: Any, a: Any, basis: Any) -> Any:
    return lc.dct_select_feedback_(residual, a, R, basis=basis, side="right")


def attention(*arrays: Any) -> Any:
    return lc.attention_lora_grad(*arrays[:6], weight=arrays[6])


CALLS: dict[str, Row] = {
    "rsvd": ({"a": g(M, N), "basis": g(M, 2, seed=1)}, lambda a, basis: lc.rsvd(a, R, basis=basis)),
    "svd_lowrank": ({"a": g(M, N)}, lambda a: lc.svd_lowrank(a, R)),
    "range_finder": ({"a": g(M, N), "basis": g(M, 2, seed=1)}, lambda a, basis: lc.range_finder(a, R, basis=basis)),
    "range_finder_list": (
        {"arrays[0]": g(M, N), "arrays[1]": g(N, M), "bases[0]": g(M, 2, seed=1), "bases[1]": g(N, 2, seed=2)},
        lambda a, b, p, q: range_finder_list([a, b], [R, R], bases=[p, q]),
    ),
    "qb": ({"a": g(M, N)}, lambda a: lc.qb(a, energy=0.5)),
    "qb_list": ({"arrays[0]": g(M, N), "arrays[1]": g(N, M)}, lambda a, b: qb_list([a, b], energy=0.5)),
    "factored_svd": ({"b": g(M, R), "a": g(R, N, seed=1)}, lc.factored_svd),
    "augment_truncate": (layers(), augment),
    "dct_select": (
        {"g": g(M, N), "basis": cases.orthonormal(N, N).float()},
        lambda a, basis: lc.dct_select(a, R, basis=basis, side="right"),
    ),
    "dct_select_feedback_": (
        {"residual": g(M, N), "g": g(M, N, seed=1), "basis": cases.orthonormal(N, N).float()},
        feedback,
    ),
    "quantize_int4": ({"x": g(M, N)}, lc.quantize_int4),
    "kalman_diag_gain": ({"p": g(N).abs(), "h": g(R, N, seed=1)}, lambda p, h: lc.kalman_diag_gain(p, h, 1.0)),
    "kalman_diag_step": (
        {"p": g(N).abs(), "jac": g(R, N, seed=1), "score": g(N, seed=2)},
        lambda p, jac, score: lc.kalman_diag_step(p, p, jac, score),
    ),
    "attention_lora_grad": (
        dict(zip(ATTENTION, (g(M, 4), g(N, 4), g(N, 5), g(M, 5), g(2, 4), g(4, 2), g(4, 4)), strict=True)),
        attention,
    ),
}
ENTRIES = [(op, name) for op, (arrays, _) in CALLS.items() for name in arrays]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
@pytest.mark.parametrize(("op", "name"), ENTRIES, ids=lambda value: value)
def test_the_array_that_is_not_finite_is_named(op: str, name: str, kind: str, value: float) -> None:
    """Of finite ones before and behind it, wherever in it the number stands."""
    arrays, call = CALLS[op]
    for place in (0, -1):
        given = {key: a.clone(memory_format=torch.contiguous_format) for key, a in arrays.items()}
        given[name].view(-1)[place] = value
        if name == "p" and value < 0:
            continue  # a negative variance has a sentence of its own
        values = [a if kind == "torch" else a.numpy() for a in given.values()]
        with pytest.raises(ValueError, match=rf"^{op}: `{re.escape(name)}` must be finite, got NaN or infinity"):
            call(*values)


@pytest.mark.parametrize("op", CALLS)
def test_what_is_finite_is_taken(op: str) -> None:
    """Or the refusals above could have been of something else."""
    arrays, call = CALLS[op]
    for kind in (lambda a: a.clone(), lambda a: np.array(a.numpy())):
        call(*map(kind, arrays.values()))
