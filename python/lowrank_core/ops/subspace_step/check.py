"""The contract of `subspace_step_`: one check for the real and the fake kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from lowrank_core.ops.arrays import (
    MAX_SEED,
    Array,
    check_array,
    check_dense,
    check_int,
    check_same,
    dtype_name,
    is_torch,
)

OP = "subspace_step_"
BLOCK = 256  # elements that share a scale
MAX_STEP = 2**32 - 1  # the draws of a step are keyed by 32 bits of its number
RULES = ("adam", "adabelief", "lion", "momentum")
SECOND = ("adam", "adabelief")  # rules with a second moment
RESIDUALS = ("drop", "scaled", "sign", "channel", "tensor")
LIMITED = ("scaled", "channel", "tensor")
NO_CAP = math.inf
ROUNDINGS = ("nearest", "stochastic")

Stored: TypeAlias = "Array | tuple[Array, Array]"
"""A moment: an array, or (8-bit codes, scales)."""


def low_dtype(param: Array) -> str:
    """The dtype that a weight's step is computed in."""
    return "float64" if dtype_name(param) == "float64" else "float32"


def low_shape(grad: Array, basis: Array, right: bool) -> tuple[int, int]:
    """The shape of a low-rank gradient."""
    return (grad.shape[0], basis.shape[1]) if right else (basis.shape[1], grad.shape[1])


def parted(name: str, moments: Sequence[Stored]) -> tuple[list[Array], list[Array]]:
    """Values and scales of a list of moments; no scales where none are codes."""
    pairs = [moment if isinstance(moment, tuple) else (moment, None) for moment in moments]
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"{OP}: `{name}` must hold arrays or pairs (codes, scales), got {len(pair)} arrays")
    scales = [scale for _, scale in pairs if scale is not None]
    if scales and len(scales) != len(pairs):
        raise ValueError(f"{OP}: `{name}` must be stored alike for all weights, got codes for {len(scales)} of them")
    return [values for values, _ in pairs], scales


def rights(sides: Sequence[str]) -> list[bool]:
    """Whether each basis is on the right."""
    for side in sides:
        if side not in ("left", "right"):
            raise ValueError(f"{OP}: `sides` must be 'left' or 'right', got {side!r}")
    return [side == "right" for side in sides]


def check_lists(
    params: list[Array],
    grads: list[Array],
    bases: list[Array],
    exp_avg: list[Array],
    exp_avg_scales: list[Array],
    exp_avg_sq: list[Array],
    exp_avg_sq_scales: list[Array],
    limits: list[Array],
    right: list[bool],
    steps: list[int],
    seeds: list[int],
    *,
    rule: str,
    residual: str,
) -> None:
    """Refuses lists whose entries do not fit each other."""
    count = len(params)
    for name, entries in (
        ("grads", grads), ("bases", bases), ("exp_avg", exp_avg), ("sides", right), ("steps", steps), ("seeds", seeds),
    ):  # fmt: skip
        if len(entries) != count:
            raise ValueError(f"{OP}: `{name}` must have one entry for each of {count} weights, got {len(entries)}")
    if len(exp_avg_sq) != (count if rule in SECOND else 0):
        wanted = f"one entry for each of {count} weights" if rule in SECOND else f"None for rule {rule!r}"
        raise ValueError(f"{OP}: `exp_avg_sq` must be {wanted}, got {len(exp_avg_sq)} entries")
    if limits and (len(limits) != count or residual not in LIMITED):
        wanted = f"one entry for each of {count} weights" if residual in LIMITED else f"None for residual {residual!r}"
        raise ValueError(f"{OP}: `limits` must be {wanted}, got {len(limits)} entries")
    for i in range(count):
        _check_weight(params[i], grads[i], bases[i], right[i], i)
        shape, work = low_shape(grads[i], bases[i], right[i]), low_dtype(params[i])
        _check_moment("exp_avg", exp_avg[i], exp_avg_scales[i : i + 1], shape, work, "int8", params[i], i)
        if exp_avg_sq:
            _check_moment("exp_avg_sq", exp_avg_sq[i], exp_avg_sq_scales[i : i + 1], shape, work, "uint8", params[i], i)
            _check_alike(exp_avg[i], exp_avg_sq[i], i)
        if limits:
            _check_stored(f"limits[{i}]", limits[i], 1, ("float32",), params[i])
        check_int(OP, f"steps[{i}]", steps[i], 1, MAX_STEP)
        check_int(OP, f"seeds[{i}]", seeds[i], 0, MAX_SEED)


def check_numbers(
    *,
    rule: str,
    betas: tuple[float, ...],
    eps: float,
    lr: float,
    weight_decay: float,
    scale: float,
    residual: str,
    residual_scale: float,
    cap: float,
    growth: float,
    **_: Any,
) -> None:
    """Refuses hyperparameters out of their range."""
    for name, value, allowed in (("rule", rule, RULES), ("residual", residual, RESIDUALS)):
        if value not in allowed:
            raise ValueError(f"{OP}: `{name}` must be one of {', '.join(allowed)}, got {value!r}")
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"{OP}: `betas` must be two numbers in [0, 1), got {betas!r}")
    for name, number, low in (
        ("eps", eps, 0.0), ("lr", lr, 0.0), ("weight_decay", weight_decay, 0.0), ("growth", growth, 1.0),
        ("scale", scale, -math.inf), ("residual_scale", residual_scale, -math.inf),
    ):  # fmt: skip
        if not (math.isfinite(number) and number >= low):
            bound = "a finite number" if low == -math.inf else f"a number >= {low:g}"
            raise ValueError(f"{OP}: `{name}` must be {bound}, got {number!r}")
    if not cap >= 1.0 or (cap != NO_CAP and residual != "channel"):
        wanted = "a number >= 1, or inf" if residual == "channel" else f"inf for residual {residual!r}"
        raise ValueError(f"{OP}: `cap` must be {wanted}, got {cap!r}")


def _check_weight(param: Array, grad: Array, basis: Array, right: bool, i: int) -> None:
    for name, a in (("params", param), ("grads", grad), ("bases", basis)):
        check_array(OP, f"{name}[{i}]", a)
        check_same(OP, f"{name}[{i}]", a, param)
        if a.ndim != 2:
            raise ValueError(f"{OP}: `{name}[{i}]` must be a matrix, got shape {list(a.shape)}")
    if tuple(grad.shape) != tuple(param.shape):
        raise ValueError(
            f"{OP}: `grads[{i}]` must have the shape {list(param.shape)} of its weight, got {list(grad.shape)}"
        )
    met = param.shape[1] if right else param.shape[0]
    if basis.shape[0] != met:
        letters = "[n, r]" if right else "[m, r]"
        raise ValueError(
            f"{OP}: `bases[{i}]` must be {letters} with {met} rows for a weight of shape {list(param.shape)}, "
            f"got {list(basis.shape)}"
        )


def _check_moment(
    name: str, values: Array, scales: list[Array], shape: tuple[int, int], work: str, codes: str, param: Array, i: int
) -> None:
    argument = f"{name}[{i}]"
    allowed = (codes,) if scales else (work, "bfloat16") if work == "float32" and is_torch(param) else (work,)
    _check_stored(argument, values, shape[0] * shape[1], allowed, param)
    if tuple(values.shape) != shape:
        raise ValueError(f"{OP}: `{argument}` must have shape {list(shape)}, got {list(values.shape)}")
    for scale in scales:
        if work != "float32":
            raise TypeError(f"{OP}: `{argument}` must be float64 for a float64 weight, got 8-bit codes")
        _check_stored(f"{argument} scales", scale, -(-shape[0] * shape[1] // BLOCK), ("float32",), param)


def _check_alike(first: Array, second: Array, i: int) -> None:
    codes = ("int8", "uint8")
    one, other = dtype_name(first), dtype_name(second)
    if one != other and not (one in codes and other in codes):
        raise TypeError(f"{OP}: `exp_avg_sq[{i}]` must be stored as `exp_avg[{i}]`, in {one}, got {other}")


def _check_stored(argument: str, a: Array, size: int, allowed: tuple[str, ...], param: Array) -> None:
    check_dense(OP, argument, a)
    check_same(OP, argument, a, param)
    if dtype_name(a) not in allowed:
        raise TypeError(f"{OP}: `{argument}` must be {' or '.join(allowed)}, got {dtype_name(a)}")
    if math.prod(a.shape) != size:
        raise ValueError(f"{OP}: `{argument}` must have {size} elements, got shape {list(a.shape)}")
    contiguous = a.is_contiguous() if is_torch(a) else a.flags.c_contiguous
    if not contiguous:
        raise ValueError(f"{OP}: `{argument}` must be contiguous, got another layout; pass a contiguous copy")
