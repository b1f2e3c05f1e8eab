"""One small call of every operator, by the names of its arrays: for what must hold of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lowrank_core as lc
import numpy as np
import torch
from lowrank_core.ops import chain_matmul, qb_list, range_finder_list
from testing import cases

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """`run(arrays)`, with the arrays under the names that a refusal has to use; `changed`: those written in place."""

    op: str
    arrays: dict[str, np.ndarray]
    run: Callable[[Arrays], Any]
    changed: tuple[str, ...] = ()
    torch_only: bool = False
    lists: bool = False  # a plain function over lists, which no dispatcher sees


def _matrix(m: int, n: int, seed: int = 0) -> np.ndarray:
    return cases.generator(m, n, seed).standard_normal((m, n)).astype(np.float32)


def _vector(n: int) -> np.ndarray:
    return np.abs(_matrix(1, n)[0]) + np.float32(0.5)


def _basis(m: int, r: int) -> np.ndarray:
    return np.ascontiguousarray(np.linalg.qr(_matrix(m, r))[0])


G, B, W = _matrix(8, 6), _basis(8, 3), _matrix(5, 6)
CODES = lc.quantize_int4(_basis(32, 3), group_size=32, dim=0)
PARTS = {"q.packed": CODES.packed, "q.scales": CODES.scales, "q.offsets": CODES.offsets}
ZEROS = np.zeros((3, 6), np.float32)


def _codes(x: Arrays) -> Any:
    return CODES._replace(packed=x["q.packed"], scales=x["q.scales"], offsets=x["q.offsets"])


def _step(x: Arrays) -> Any:
    names = ("params", "grads", "bases", "exp_avg", "exp_avg_sq", "limits")
    params, grads, bases, first, second, limits = ([x[f"{name}[0]"]] for name in names)
    options: dict[str, Any] = {"sides": ["left"], "steps": [1], "lr": 0.1, "residual": "scaled", "limits": limits}
    return lc.subspace_step_(params, grads, bases, first, second, **options)


def _augment(x: Arrays) -> Any:
    lists = ([x[f"{name}[0]"]] for name in ("u", "s", "v", "gv", "gu"))
    return lc.augment_truncate(*lists, lr=0.1, tol=0.0, max_rank=4)


CALLS = (
    Call("rsvd", {"a": G, "basis": B}, lambda x: lc.rsvd(x["a"], 2, basis=x["basis"])),
    Call("svd_lowrank", {"a": G}, lambda x: lc.svd_lowrank(x["a"], 2)),
    Call("range_finder", {"a": G, "basis": B}, lambda x: lc.range_finder(x["a"], 2, basis=x["basis"])),
    Call(
        "range_finder_list",
        {"arrays[0]": G, "bases[0]": B},
        lambda x: range_finder_list([x["arrays[0]"]], [2], bases=[x["bases[0]"]]),
        lists=True,
    ),
    Call("qb", {"a": G}, lambda x: lc.qb(x["a"], energy=0.9), lists=True),
    Call("qb_list", {"arrays[0]": G}, lambda x: qb_list([x["arrays[0]"]], energy=0.9), lists=True),
    Call("factored_svd", {"b": B, "a": _matrix(3, 6)}, lambda x: lc.factored_svd(x["b"], x["a"])),
    Call("orthonormalize", {"y": G}, lambda x: lc.orthonormalize(x["y"])),
    Call(
        "augment_truncate",
        {"u[0]": B, "s[0]": _matrix(3, 3), "v[0]": _basis(6, 3), "gv[0]": _matrix(8, 3), "gu[0]": _matrix(6, 3)},
        _augment,
        lists=True,
    ),
    Call("project", {"g": G, "basis": B}, lambda x: lc.project(x["g"], x["basis"], side="left")),
    Call("project_back", {"r": W[:3], "basis": B}, lambda x: lc.project_back(x["r"], x["basis"], side="left")),
    Call("chain_matmul", {"matrices[0]": G, "matrices[1]": W.T}, lambda x: chain_matmul(list(x.values()))),
    Call(
        "lora_linear",
        {"x": G, "w": W, "a": _matrix(2, 6), "b": _matrix(5, 2), "bias": _vector(5)},
        lambda x: lc.lora_linear(x["x"], x["w"], x["a"], x["b"], bias=x["bias"], scale=0.5),
        torch_only=True,
    ),
    Call(
        "usv_linear",
        {"x": G, "w": W, "u": _matrix(5, 2), "s": _matrix(2, 2), "v": _matrix(6, 2)},
        lambda x: lc.usv_linear(*x.values(), scale=0.5),
        torch_only=True,
    ),
    Call(
        "attention_lora_grad",
        {
            "queries": G,
            "keys": _matrix(7, 6),
            "values": _matrix(7, 4),
            "dout": _matrix(8, 4),
            "a": _matrix(2, 6),
            "b": _matrix(6, 2),
            "weight": _matrix(6, 6),
        },
        lambda x: lc.attention_lora_grad(*list(x.values())[:6], weight=x["weight"]),
    ),
    Call("dct", {"x": G}, lambda x: lc.dct(x["x"])),
    Call("idct", {"x": G}, lambda x: lc.idct(x["x"], dim=0)),
    Call("dct_select", {"g": G, "basis": _basis(6, 6)}, lambda x: lc.dct_select(x["g"], 3, basis=x["basis"])),
    Call(
        "dct_select_feedback_",
        {"residual": np.zeros_like(G), "g": G},
        lambda x: lc.dct_select_feedback_(x["residual"], x["g"], 3),
        changed=("residual",),
    ),
    Call(
        "dct_project_back",
        {"coeffs": _matrix(8, 3), "indices": np.array([0, 2, 5])},
        lambda x: lc.dct_project_back(x["coeffs"], x["indices"], 6, side="right"),
    ),
    Call(
        "rotate_moments",
        {"m": _matrix(8, 3), "v": _matrix(8, 3), "old_indices": np.array([0, 2, 5]), "new_indices": np.array([2, 4])},
        lambda x: lc.rotate_moments(*x.values(), side="right"),
    ),
    Call("quantize_int4", {"x": _matrix(40, 3)}, lambda x: lc.quantize_int4(x["x"], group_size=32, dim=0)),
    Call("dequantize_int4", PARTS, lambda x: lc.dequantize_int4(_codes(x))),
    Call("int4_project", {**PARTS, "g": _matrix(32, 4)}, lambda x: lc.int4_project(_codes(x), x["g"])),
    Call("int4_project_back", {**PARTS, "r": _matrix(3, 4)}, lambda x: lc.int4_project_back(_codes(x), x["r"])),
    Call(
        "kalman_diag_gain",
        {"p": _vector(6), "h": W, "r": _vector(5)},
        lambda x: lc.kalman_diag_gain(x["p"], x["h"], x["r"]),
    ),
    Call(
        "kalman_diag_step",
        {"theta": _vector(6), "p": _vector(6), "jac": W, "score": _vector(6)},
        lambda x: lc.kalman_diag_step(*x.values()),
    ),
    Call(
        "kalman_diag_step_",
        {"theta": _vector(6), "p": _vector(6), "jac": W, "score": _vector(6)},
        lambda x: lc.kalman_diag_step_(*x.values()),
        changed=("theta", "p"),
    ),
    Call(
        "subspace_step_",
        {
            "params[0]": _matrix(8, 6, 1),
            "grads[0]": G,
            "bases[0]": B,
            "exp_avg[0]": ZEROS,
            "exp_avg_sq[0]": ZEROS,
            "limits[0]": np.zeros(1, np.float32),
        },
        _step,
        changed=("params[0]", "exp_avg[0]", "exp_avg_sq[0]", "limits[0]"),
    ),
)
BY_NAME = {call.op: call for call in CALLS}
EVERY_ARRAY = [(call.op, name) for call in CALLS for name in call.arrays]


def copies(call: Call, convert: Callable[[np.ndarray], Any] = np.copy) -> Arrays:
    """The arrays of a call, for it alone."""
    return {name: convert(a) for name, a in call.arrays.items()}


def tensors(call: Call) -> Arrays:
    """The same for torch."""
    return copies(call, lambda a: torch.from_numpy(a.copy()))


def bits(call: Call, arrays: Arrays) -> list[bytes]:
    """Everything that the call gives or changes."""
    found: list[bytes] = []

    def add(value: Any) -> None:
        if isinstance(value, (tuple, list)):
            for member in value:
                add(member)
        elif isinstance(value, torch.Tensor):
            flat = value.detach().resolve_neg().contiguous().reshape(-1)
            found.append(flat.view(torch.uint8).numpy().tobytes())
        else:
            found.append(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())

    add(call.run(arrays))
    add([arrays[name] for name in call.changed])
    return found
