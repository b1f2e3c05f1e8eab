"""Integers of NumPy and torch are integers, truth values are none, for every argument that counts something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lowrank_core as lc
import numpy as np
import pytest
import torch
from every_operator import Call as Shape
from every_operator import bits, copies
from lowrank_core.ops import qb_list, range_finder_list
from testing import cases

G = cases.generator(40, 8).standard_normal((40, 8)).astype(np.float32)
S = lc.dct_select(G, 3)


def step(g: Any, **numbers: Any) -> Any:
    make = torch.from_numpy if isinstance(g, torch.Tensor) else (lambda a: a)
    first, second = make(np.zeros((3, 8), np.float32)), make(np.zeros((3, 8), np.float32))
    w, basis = make(np.ones((40, 8), np.float32)), make(np.eye(40, 3, dtype=np.float32))
    options: dict[str, Any] = {"sides": ["left"], "lr": 0.1, "steps": [1], "seeds": [0]}
    lc.subspace_step_([w], [g], [basis], [first], [second], **{**options, **{k: [v] for k, v in numbers.items()}})
    return w


def augment(g: Any, **numbers: Any) -> Any:
    make = torch.from_numpy if isinstance(g, torch.Tensor) else (lambda a: a)
    u, v = make(np.eye(40, 2, dtype=np.float32)), make(np.eye(8, 2, dtype=np.float32))
    s, gu = make(np.eye(2, dtype=np.float32)), make(G[:8, :2].copy())
    options: dict[str, Any] = {"lr": 0.1, "tol": 0.0, "max_rank": 3, "min_rank": 1, "budget": 4}
    return lc.augment_truncate([u], [s], [v], [g[:, :2]], [gu], **{**options, **numbers})


def back(g: Any, n: Any) -> Any:
    make = torch.from_numpy if isinstance(g, torch.Tensor) else (lambda a: a)
    return lc.dct_project_back(make(S.coeffs), make(S.indices), n, side="right")


Function = Callable[..., Any]
CASES: dict[str, tuple[Function, Any]] = {
    "rsvd rank": (lambda g, x: lc.rsvd(g, x), 3),
    "rsvd oversample": (lambda g, x: lc.rsvd(g, 2, oversample=x), 3),
    "rsvd niter": (lambda g, x: lc.rsvd(g, 2, niter=x), 1),
    "rsvd seed": (lambda g, x: lc.rsvd(g, 2, seed=x), 7),
    "svd_lowrank q": (lambda g, x: lc.svd_lowrank(g, x), 3),
    "svd_lowrank niter": (lambda g, x: lc.svd_lowrank(g, 3, x), 1),
    "range_finder rank": (lambda g, x: lc.range_finder(g, x), 3),
    "range_finder seed": (lambda g, x: lc.range_finder(g, 3, seed=x), 3),
    "range_finder_list rank": (lambda g, x: range_finder_list([g], [x]), 3),
    "range_finder_list seed": (lambda g, x: range_finder_list([g], [3], seeds=[x]), 3),
    "qb max_rank": (lambda g, x: lc.qb(g, energy=0.9, max_rank=x), 3),
    "qb block": (lambda g, x: lc.qb(g, energy=0.9, block=x), 3),
    "qb seed": (lambda g, x: lc.qb(g, energy=0.9, seed=x), 3),
    "qb_list max_rank": (lambda g, x: [t for out in qb_list([g], energy=0.9, max_ranks=[x]) for t in out[:2]], 3),
    "qb_list block": (lambda g, x: [t for out in qb_list([g], energy=0.9, block=x) for t in out[:2]], 3),
    "qb_list seed": (lambda g, x: [t for out in qb_list([g], energy=0.9, seeds=[x]) for t in out[:2]], 3),
    "factored_svd rank": (lambda g, x: lc.factored_svd(g, g[:8], rank=x), 3),
    "augment_truncate max_rank": (lambda g, x: augment(g, max_rank=x), 3),
    "augment_truncate min_rank": (lambda g, x: augment(g, min_rank=x), 1),
    "augment_truncate budget": (lambda g, x: augment(g, budget=x), 3),
    "dct dim": (lambda g, x: lc.dct(g, dim=x), 0),
    "idct dim": (lambda g, x: lc.idct(g, dim=x), 0),
    "dct_select rank": (lambda g, x: lc.dct_select(g, x), 3),
    "dct_select norm_ord": (lambda g, x: lc.dct_select(g, 3, norm_ord=x), 1),
    "dct_select_feedback_ rank": (lambda g, x: lc.dct_select_feedback_(0 * g, g, x), 3),
    "dct_project_back n": (back, 8),
    "quantize_int4 group_size": (lambda g, x: lc.quantize_int4(g, group_size=x)[:3], 64),
    "quantize_int4 dim": (lambda g, x: lc.quantize_int4(g, dim=x)[:3], 0),
    "quantize_int4 seed": (lambda g, x: lc.quantize_int4(g, rounding="stochastic", seed=x)[:3], 5),
    "positive_features count": (lambda g, x: lc.positive_features(g, g, count=x), 16),
    "positive_features seed": (lambda g, x: lc.positive_features(g, g, seed=x), 5),
    "subspace_step_ steps": (lambda g, x: step(g, steps=x), 3),
    "subspace_step_ seeds": (lambda g, x: step(g, seeds=x), 3),
}
KINDS: dict[str, Callable[[int], Any]] = {
    "int64": np.int64,
    "int32": np.int32,
    "uint8": np.uint8,
    "NumPy array": np.array,
    "tensor": torch.tensor,
    "int32 tensor": lambda x: torch.tensor(x, dtype=torch.int32),
}
LIBRARIES: dict[str, Callable[[np.ndarray], Any]] = {"numpy": np.copy, "torch": lambda a: torch.from_numpy(a.copy())}


def result(function: Function, g: Any, value: Any) -> list[bytes]:
    call = Shape("", {"g": G}, lambda x: function(x["g"], value))
    return bits(call, {**copies(call), "g": g})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", CASES)
def test_integers_of_other_libraries(name: str, library: str, kind: str) -> None:
    function, value = CASES[name]
    make = LIBRARIES[library]
    assert result(function, make(G), KINDS[kind](value)) == result(function, make(G), value)


NO_INTEGERS = (True, np.bool_(True), torch.tensor(True), 2.0, np.float64(2.0), torch.tensor(2.0), "2", np.array([2]))


@pytest.mark.parametrize("value", NO_INTEGERS, ids=repr)
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", CASES)
def test_what_is_no_integer(name: str, library: str, value: Any) -> None:
    op, argument = name.split()
    with pytest.raises(TypeError, match=f"^{op}: `{argument}.*` must be an integer, got "):
        CASES[name][0](LIBRARIES[library](G), value)
