"""Layers with a low-rank part, whose backward passes form no matrix of the weight's size and take no inverse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowrank_core import _core
from lowrank_core.ops.arrays import call_named, check_array, check_same, dtype_name, empty, is_torch
from lowrank_core.ops.chain_lr.matmul import finite_number
from lowrank_core.ops.declare import Op, declare, unchecked
from lowrank_core.ops.operators import call

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


def lora_linear(
    x: Tensor, w: Tensor | None, a: Tensor, b: Tensor, *, scale: float, bias: Tensor | None = None
) -> Tensor:
    """A linear layer with a low-rank correction: x wᵀ + scale (x aᵀ) bᵀ + bias.

    Args:
      x: [..., d_in], float32, float64, bfloat16 or float16; torch only, as all arguments.
      w: [d_out, d_in], the frozen weight as a rule; any floating dtype, as a, b and bias. None: x wᵀ alone is
        absent, for a base layer that computes it itself: `base(x) + lora_linear(x, None, a, b, ...)`.
      a: [r, d_in]. b: [d_out, r]; zero is a start like any other.
      scale: factor of the correction (alpha / r, or alpha / sqrt r).
      bias: [d_out] or None.

    Returns:
      [..., d_out] in the dtype of `x`, summed in float32 (float64 for float64) and rounded once.

    Raises:
      ValueError: shapes or devices that do not fit. TypeError: not floating-point tensors.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md). Differentiable any number of times, in
    reverse and forward mode. The backward pass computes a.grad = scale (dy b)ᵀ x and b.grad = scale dyᵀ (x aᵀ) from
    thin products; no [d_out, d_in] matrix is formed unless `w` requires a gradient.
    Source: Hu et al., arXiv 2106.09685, eq. 3; the order of the products as in arXiv 2406.03136.

    Example:
      >>> import torch, lowrank_core as lc
      >>> x, w = torch.ones(4, 6), torch.zeros(3, 6)
      >>> a, b = torch.ones(2, 6, requires_grad=True), torch.ones(3, 2, requires_grad=True)
      >>> lc.lora_linear(x, w, a, b, scale=0.5)[0].tolist()
      [6.0, 6.0, 6.0]
    """
    y: Tensor = call(_LORA, x, w, a, b, bias, scale=finite_number("lora_linear", "scale", scale))
    return y


def usv_linear(
    x: Tensor, w: Tensor | None, u: Tensor, s: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None
) -> Tensor:
    """A linear layer with a correction U S Vᵀ: x wᵀ + scale ((x v) sᵀ) uᵀ + bias, with GeoLoRA's gradients.

    Args:
      x: [..., d_in], float32, float64, bfloat16 or float16; torch only, as all arguments.
      w: [d_out, d_in]; any floating dtype, as u, s, v and bias. None: x wᵀ is absent, as in `lora_linear`.
      u: [d_out, r]. s: [r, r]; zero is a start like any other. v: [d_in, r]. Columns of u and v are orthonormal where
        the gradients below are to be used; nothing is assumed here.
      scale: factor of the correction.
      bias: [d_out] or None.

    Returns:
      [..., d_out] in the dtype of `x`, summed in float32 (float64 for float64) and rounded once.

    With G = dyᵀ x the gradient of the full weight, the backward pass puts `scale * G v` into u.grad and
    `scale * Gᵀ u` into v.grad: the gradients with respect to K = U S and L = V Sᵀ, not to u and v, from which the
    inverse of s would have to recover them. s.grad is `scale * uᵀ G v`. No [d_out, d_in] matrix is formed unless `w`
    requires a gradient.

    Raises:
      ValueError: shapes or devices that do not fit. TypeError: not floating-point tensors. NotImplementedError: a
      second derivative through `u` or `v`, for what stands in their gradients is not a derivative.

    Numerics: tier D1. Differentiable any number of times in x, w, s and bias, in reverse and forward mode; tangents of
    u and v are true ones.
    Source: Schotthöfer et al., arXiv 2410.18720 (GeoLoRA), with K- and L-gradients from one backward pass.

    Example:
      >>> import torch, lowrank_core as lc
      >>> x, w, u, v = torch.ones(4, 6), torch.zeros(3, 6), torch.eye(3, 2), torch.eye(6, 2)
      >>> s = torch.zeros(2, 2, requires_grad=True)
      >>> lc.usv_linear(x, w, u, s, v, scale=1.0).sum().backward()
      >>> s.grad.tolist()
      [[4.0, 4.0], [4.0, 4.0]]
    """
    y: Tensor = call(_USV, x, w, u, s, v, bias, scale=finite_number("usv_linear", "scale", scale))
    return y


# ---- contract ------------------------------------------------------------------------------------------------------


def _check_layer(
    op: str,
    x: Tensor,
    w: Tensor | None,
    bias: Tensor | None,
    d_out: Any,
    **factors: tuple[Tensor, tuple[Any, ...]],
) -> None:
    """`factors`: each with the shape that it must have."""
    if not is_torch(x):
        raise TypeError(f"{op}: `x` must be a torch.Tensor, got {type(x).__name__}; it is a layer, for torch only")
    check_array(op, "x", x, ndim=1)
    expected: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "w": (w, ("d_out", x.shape[-1])),
        **factors,
        "bias": (bias, (d_out,)),
    }
    for name, (array, shape) in expected.items():
        if array is None and name in ("w", "bias"):
            continue
        check_array(op, name, array, ndim=len(shape))
        check_same(op, name, array, x)
        fits = array.ndim == len(shape) and all(
            isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join(str(size) for size in shape)
            full = "without `w`" if w is None else f"and `w` of shape {list(w.shape)}"
            raise ValueError(
                f"{op}: `{name}` must be [{wanted}] for `x` of shape {list(x.shape)} {full}, "
                f"got shape {list(array.shape)}"
            )


def _check_lora(x: Tensor, w: Tensor | None, a: Tensor, b: Tensor, bias: Tensor | None, *, scale: float) -> None:
    d_out, rank = _size(b if w is None else w, 0, "d_out"), _size(a, 0, "r")
    _check_layer("lora_linear", x, w, bias, d_out, a=(a, ("r", _last(x))), b=(b, (d_out, rank)))


def _check_usv(
    x: Tensor, w: Tensor | None, u: Tensor, s: Tensor, v: Tensor, bias: Tensor | None, *, scale: float
) -> None:
    d_out, rank = _size(u if w is None else w, 0, "d_out"), _size(u, 1, "r")
    factors = {"u": (u, (d_out, "r")), "s": (s, (rank, rank)), "v": (v, (_last(x), rank))}
    _check_layer("usv_linear", x, w, bias, d_out, **factors)


def _size(matrix: Tensor, dim: int, letter: str) -> Any:
    """Rows or columns, or their letter where it is no matrix."""
    return matrix.shape[dim] if getattr(matrix, "ndim", 0) == 2 else letter


def _last(x: Tensor) -> Any:
    return x.shape[-1] if getattr(x, "ndim", 0) >= 1 else "d_in"


# ---- forward -------------------------------------------------------------------------------------------------------


def _output(x: Tensor, last: Tensor) -> Tensor:
    out: Tensor = empty(x, (*x.shape[:-1], last.shape[0]), dtype_name(x))
    return out


def _lora(out: Tensor, x: Tensor, w: Tensor | None, a: Tensor, b: Tensor, bias: Tensor | None, **options: Any) -> None:
    named = {"x": x, "w": w, "a": a, "b": b, "bias": bias}
    factors = (_rows(out), _rows(x), w, a.mT, b)
    call_named("lora_linear", _core.adapter_linear, *factors, arrays=named, bias=bias, **options)


def _usv(
    out: Tensor, x: Tensor, w: Tensor | None, u: Tensor, s: Tensor, v: Tensor, bias: Tensor | None, **options: Any
) -> None:
    named = {"x": x, "w": w, "u": u, "s": s, "v": v, "bias": bias}
    factors = (_rows(out), _rows(x), w, v, u)
    call_named("usv_linear", _core.adapter_linear, *factors, arrays=named, middle=s, bias=bias, **options)


def _turned(w: Tensor | None) -> Tensor | None:
    return None if w is None else w.mT


def _rows(x: Tensor) -> Tensor:
    """[..., d] as [t, d]."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


# ---- backward ------------------------------------------------------------------------------------------------------


def _gradients(
    dy: Tensor, x: Tensor, w: Tensor | None, *factors: Tensor, input_grad: bool, **_: Any
) -> tuple[Tensor, ...]:
    """Those of `x`, or nothing, and of the factors."""
    shapes = [tuple(x.shape) if input_grad else (0,), *(tuple(factor.shape) for factor in factors)]
    return tuple(empty(t, shape, dtype_name(t)) for t, shape in zip((x, *factors), shapes, strict=True))


def _lora_gradients(
    out: tuple[Tensor, ...],
    dy: Tensor,
    x: Tensor,
    w: Tensor | None,
    a: Tensor,
    b: Tensor,
    *,
    scale: float,
    input_grad: bool,
) -> None:
    dx, da, db = out
    if input_grad:
        _core.adapter_linear(_rows(dx), _rows(dy), _turned(w), b, a.mT, scale=scale)
    _core.adapter_gradient(da.mT, db, _rows(dy), _rows(x), a.mT, b, scale=scale)


def _usv_gradients(
    out: tuple[Tensor, ...],
    dy: Tensor,
    x: Tensor,
    w: Tensor | None,
    u: Tensor,
    s: Tensor,
    v: Tensor,
    *,
    scale: float,
    input_grad: bool,
) -> None:
    dx, du, ds, dv = out
    if input_grad:
        _core.adapter_linear(_rows(dx), _rows(dy), _turned(w), u, v, middle=s.mT, scale=scale)
    _core.adapter_gradient(dv, du, _rows(dy), _rows(x), v, u, middle_grad=ds, scale=scale)


# torch's autograd takes no keyword-only tensors, so the operators have `bias` before `scale`.
_LORA = Op(
    "lora_linear(Tensor x, Tensor? w, Tensor a, Tensor b, Tensor? bias=None, *, float scale) -> Tensor",
    check=_check_lora,
    outputs=lambda x, w, a, b, *_, **__: _output(x, b),
    kernel=_lora,
    leading=("x",),
)
_USV = Op(
    "usv_linear(Tensor x, Tensor? w, Tensor u, Tensor s, Tensor v, Tensor? bias=None, *, float scale) -> Tensor",
    check=_check_usv,
    outputs=lambda x, w, u, *_, **__: _output(x, u),
    kernel=_usv,
    leading=("x",),
)
_LORA_BACKWARD = Op(
    "lora_linear_backward(Tensor dy, Tensor x, Tensor? w, Tensor a, Tensor b, *, float scale, bool input_grad) "
    "-> (Tensor, Tensor, Tensor)",
    check=unchecked,
    outputs=_gradients,
    kernel=_lora_gradients,
)
_USV_BACKWARD = Op(
    "usv_linear_backward(Tensor dy, Tensor x, Tensor? w, Tensor u, Tensor s, Tensor v, *, float scale, "
    "bool input_grad) -> (Tensor, Tensor, Tensor, Tensor)",
    check=unchecked,
    outputs=_gradients,
    kernel=_usv_gradients,
)
declare("chain_lr", _LORA, _USV, _LORA_BACKWARD, _USV_BACKWARD)
