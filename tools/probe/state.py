"""Calls of the operators on selections, codes, beliefs and states."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import lowrank_core as lc
import torch
from source import DTYPES, FEW, Cases, Source, named, size, with_gradients
from torch import Tensor

RULES = ("adam", "adabelief", "lion", "momentum")
SECOND = ("adam", "adabelief")

# ---- dct_select ----------------------------------------------------------------------------------------------------


def transforms() -> Cases:
    for n in (1, 5, 24, 64, 67, 101, 360):
        for op in ("dct", "idct"):
            yield op, f"{n}", partial(lambda op, n, x: getattr(lc, op)(x.normal(7, n)), op, n)
    for op in ("dct", "idct"):
        yield op, "dim=0", partial(lambda op, x: getattr(lc, op)(x.normal(37, 5), dim=0), op)
        yield op, "gradients", partial(_transform_gradients, op)
    bases = [{"basis": basis} for basis in ("dct3", "identity", "hadamard", None)]
    for shape in (*FEW, (32, 40)):
        for options in ({}, {"norm_ord": 1}, {"side": "left"}, {"side": "right"}, *bases):
            what = f"{size(shape)} {named(options)}"
            yield "dct_select", what, partial(_select, shape, options)
            yield "dct_select_feedback_", what, partial(_feedback, shape, options)
    for side in ("left", "right"):
        yield "dct_project_back", side, partial(_select_back, side)
        yield "rotate_moments", side, partial(_rotate, side)


def _transform_gradients(op: str, x: Source) -> Any:
    a = x.normal(7, 37)
    return with_gradients(getattr(lc, op), [a], [a])


def _basis_of(shape: tuple[int, int], options: dict[str, Any], x: Source) -> dict[str, Any]:
    """`options`, where None stands for a basis of atoms that is given as a matrix."""
    return {**options, "basis": x.basis(min(shape), min(shape))} if options.get("basis", "") is None else options


def _select(shape: tuple[int, int], options: dict[str, Any], x: Source) -> Any:
    return lc.dct_select(x.normal(*shape), 5, **_basis_of(shape, options, x))


def _feedback(shape: tuple[int, int], options: dict[str, Any], x: Source) -> Any:
    residual, g = x.normal(*shape), x.normal(*shape)
    return lc.dct_select_feedback_(residual, g, 5, keep=0.5, **_basis_of(shape, options, x)), residual


def _select_back(side: str, x: Source) -> Any:
    coeffs = x.normal(*((3, 37) if side == "left" else (37, 3)))
    return lc.dct_project_back(coeffs, torch.tensor([0, 2, 11]), 24, side=side)


def _rotate(side: str, x: Source) -> Any:
    shape = (3, 37) if side == "left" else (37, 3)
    return lc.rotate_moments(
        x.normal(*shape), x.positive(*shape), torch.tensor([0, 2, 5]), torch.tensor([2, 4]), side=side
    )


# ---- int4_project, kalman_diag -------------------------------------------------------------------------------------


def codes() -> Cases:
    for scheme in ("affine", "affine_zp", "symmetric", "nf4"):
        for rounding in ("nearest", "stochastic"):
            for dim, group in ((0, 32), (1, 64)):
                options = {"scheme": scheme, "rounding": rounding, "dim": dim, "group_size": group, "seed": 3}
                yield (
                    "quantize_int4",
                    named(options),
                    partial(lambda options, x: lc.quantize_int4(x.normal(70, 37), **options), options),
                )
        for dim in (0, 1):
            yield "int4_project", f"{scheme} {dim}", partial(_int4, scheme, dim)
    for dtype in DTYPES:
        yield (
            "dequantize_int4",
            f"to {dtype}",
            partial(lambda d, x: lc.dequantize_int4(lc.quantize_int4(x.normal(70, 9)), d), dtype),
        )


def _int4(scheme: str, dim: int, x: Source) -> Any:
    q = lc.quantize_int4(x.normal(130, 17), group_size=32, dim=dim, scheme=scheme)
    g, r = x.normal(130, 53), x.normal(17, 53)
    there, back = with_gradients(lc.int4_project, [q, g], [g]), with_gradients(lc.int4_project_back, [q, r], [r])
    return there, back, lc.dequantize_int4(q)


def filters() -> Cases:
    for m, n in ((1, 7), (5, 37), (13, 600)):
        for noise in ("number", "diagonal", "matrix"):
            yield "kalman_diag_gain", f"{m}x{n} {noise}", partial(_gain, m, n, noise)
        for options in ({}, {"lr": 0.5}, {"kl_limit": 0.01}):
            what = f"{m}x{n} {named(options)}"
            yield (
                "kalman_diag_step",
                what,
                partial(lambda m, n, o, x: lc.kalman_diag_step(*_belief(m, n, x), **o), m, n, options),
            )
            yield "kalman_diag_step_", what, partial(_filter, m, n, options)


def _gain(m: int, n: int, noise: str, x: Source) -> Any:
    square = x.normal(m, m)
    r = {"number": 0.7, "diagonal": x.positive(m), "matrix": square @ square.mT + torch.eye(m, dtype=x.dtype)}[noise]
    p, h = x.positive(n), x.normal(m, n)
    return with_gradients(lc.kalman_diag_gain, [p, h, r], [p, h])


def _belief(m: int, n: int, x: Source) -> tuple[Tensor, ...]:
    """theta, p, jac, score; the first two in the precision that they need."""
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.normal(n).to(work), x.positive(n).to(work), x.normal(m, n), x.normal(n)


def _filter(m: int, n: int, options: dict[str, Any], x: Source) -> Any:
    first, second = _belief(m, n, x), _belief(m, 11, x)
    lists = [list(pair) for pair in zip(first, second, strict=True)]
    return lc.kalman_diag_step_(*lists, **options), lists[:2]


# ---- subspace_step -------------------------------------------------------------------------------------------------


def steps() -> Cases:
    bare: tuple[dict[str, Any], ...] = (
        *({"rule": rule, "moments": stored} for rule in RULES for stored in ("work", "bfloat16", "int8")),
        *({"residual": kind, "limits": limits} for kind in ("scaled", "channel", "tensor") for limits in (False, True)),
        {"residual": "channel", "cap": 1.5}, {"residual": "sign"}, {"maximize": True}, {"rounding": "stochastic"},
        {"precision": "medium"}, {"rounding": "stochastic", "moments": "int8"}, {"weight_decay": 0.0},
        {"scale": 0.25, "lr": 0.0},
    )  # fmt: skip
    for options in bare:
        yield "subspace_step_", named(options), partial(_step, options)


def _step(options: dict[str, Any], x: Source) -> Any:
    options = {"rule": "adam", "weight_decay": 0.1, "lr": 0.05, **options}
    shapes, sides, r = ((40, 24), (37, 53), (130, 67), (2, 9)), ("left", "right", "left", "left"), 5
    ranks = [min(*shape, r) for shape in shapes]
    rows = [shape[0] if side == "left" else shape[1] for shape, side in zip(shapes, sides, strict=True)]
    low = [(k, n) if side == "left" else (m, k) for (m, n), side, k in zip(shapes, sides, ranks, strict=True)]
    params, grads = [x.normal(*shape) for shape in shapes], [x.normal(*shape) for shape in shapes]
    bases = [x.basis(m, k) for m, k in zip(rows, ranks, strict=True)]
    stored = options.pop("moments", "work")
    first = [moment(stored, shape, False, x) for shape in low]
    second = [moment(stored, shape, True, x) for shape in low] if options["rule"] in SECOND else None
    limits = [torch.full((1,), 0.1) for _ in shapes] if options.pop("limits", False) else None
    taken = []
    for step in (1, 2, 3):
        numbers = {"steps": [step, step + 4, step, step], "seeds": [1, 2, 3, 4]}
        taken.append(
            lc.subspace_step_(params, grads, bases, first, second, sides=sides, limits=limits, **numbers, **options)
        )
    return taken, params, first, second, limits


def moment(stored: str, shape: tuple[int, int], second: bool, x: Source) -> Any:
    if stored == "int8":
        codes = torch.zeros(shape, dtype=torch.uint8 if second else torch.int8)
        return codes, torch.zeros(-(-prod(shape) // 256))
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.zeros(shape, dtype=torch.bfloat16 if stored == "bfloat16" else work)
