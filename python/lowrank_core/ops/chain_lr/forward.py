"""Forward-mode derivatives of adapter layers and of their gradients: sums of chains, one factor replaced in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lowrank_core.ops.chain_lr.backward import NO_SECOND, wide
from lowrank_core.ops.operators import torch_ops
from lowrank_core.ops.torch_autograd import multilinear

Pair = tuple[Tensor | None, Tensor | None]
"""A factor and its tangent; a factor may be absent, and its chains with it."""


def lora_forward(overload: Any, tangents: Sequence[Any], inputs: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """Of y = x wᵀ + scale (x aᵀ) bᵀ + bias."""
    x, w, a, b, bias = _pairs(inputs, tangents)
    low = _chain(x, _turned(a), _turned(b))
    return _like(inputs[0], b[0].shape[0], _sum(_chain(x, _turned(w)), _times(options["scale"], low), bias[1]))


def usv_forward(overload: Any, tangents: Sequence[Any], inputs: Sequence[Any], options: dict[str, Any]) -> Tensor:
    """Of y = x wᵀ + scale ((x v) sᵀ) uᵀ + bias; in u and v too, where reverse mode has other gradients."""
    x, w, u, s, v, bias = _pairs(inputs, tangents)
    low = _chain(x, v, _turned(s), _turned(u))
    return _like(inputs[0], u[0].shape[0], _sum(_chain(x, _turned(w)), _times(options["scale"], low), bias[1]))


def lora_gradient_forward(
    overload: Any, tangents: Sequence[Any], inputs: Sequence[Any], options: dict[str, Any]
) -> tuple[Tensor | None, ...]:
    """Of dx = dy w + scale (dy b) a, da = scale (dy b)ᵀ x, db = scale dyᵀ (x aᵀ)."""
    dy, x, w, a, b = _pairs(inputs, tangents)
    dx = _sum(_chain(dy, w), _times(options["scale"], _chain(dy, b, a))) if options["input_grad"] else None
    factors = (_chain(_turned(b), _turned(dy), x), _chain(_turned(dy), x, _turned(a)))
    return _gradients(dx, [_times(options["scale"], f) for f in factors], inputs[1], inputs[3:])


def usv_gradient_forward(
    overload: Any, tangents: Sequence[Any], inputs: Sequence[Any], options: dict[str, Any]
) -> tuple[Tensor | None, ...]:
    """Of dx = dy w + scale ((dy u) s) vᵀ, du = scale dyᵀ (x v), ds = scale (dy u)ᵀ (x v), dv = scale xᵀ (dy u)."""
    if tangents[3] is not None or tangents[5] is not None:
        raise NotImplementedError(NO_SECOND)
    dy, x, w, u, s, v = _pairs(inputs, tangents)
    low = _chain(dy, u, s, _turned(v))
    dx = _sum(_chain(dy, w), _times(options["scale"], low)) if options["input_grad"] else None
    factors = (
        _chain(_turned(dy), x, v),
        _chain(_turned(u), _turned(dy), x, v),
        _chain(_turned(x), dy, u),
    )
    return _gradients(dx, [_times(options["scale"], f) for f in factors], inputs[1], inputs[3:])


def _pairs(inputs: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
    """Factors with their tangents, as matrices of one dtype."""
    both = wide(*inputs, *tangents)
    return list(zip(both[: len(inputs)], both[len(inputs) :], strict=True))


def _turned(pair: Pair) -> Pair:
    value, tangent = (None if t is None else t.mT for t in pair)
    return value, tangent


def _chain(*pairs: Pair) -> Tensor | None:
    """The tangent of the product of a chain; None where no factor has one, or one is absent."""
    values, tangents = [value for value, _ in pairs], [tangent for _, tangent in pairs]
    if any(value is None for value in values):
        return None
    return multilinear(torch_ops().chain_matmul, [tangents], [values], {})


def _times(scale: float, x: Tensor | None) -> Tensor | None:
    return None if x is None else scale * x


def _sum(*parts: Tensor | None) -> Any:
    """Of those that are there; None where there are none."""
    found: Tensor | None = None
    for part in parts:
        if part is not None:
            found = part if found is None else found + part
    return found


def _like(x: Tensor, columns: int, rows: Tensor) -> Tensor:
    """[..., columns] beside x, rounded once; `rows` may be one row for all."""
    return rows.expand(x.shape[:-1].numel(), columns).reshape(*x.shape[:-1], columns).to(x.dtype)


def _gradients(
    dx: Tensor | None, factors: Sequence[Tensor | None], x: Tensor, arrays: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    of_x = None if dx is None else dx.reshape(x.shape).to(x.dtype)
    rest = (None if f is None else f.to(t.dtype) for f, t in zip(factors, arrays, strict=True))
    return of_x, *rest
