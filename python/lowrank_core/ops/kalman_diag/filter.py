"""A Kalman filter with a diagonal covariance: its gain, and its step in whitened form."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from lowrank_core import _core
from lowrank_core.ops.arrays import (
    Array,
    call_named,
    check_array,
    check_in_place,
    check_memory,
    dtype_name,
    empty,
    is_cupy,
    is_torch,
)
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.kalman_diag.check import check_gain, check_lists, check_numbers, check_step
from lowrank_core.ops.operators import call, flag, torch_ops

GAIN, STEP, STEP_ = "kalman_diag_gain", "kalman_diag_step", "kalman_diag_step_"


class KalmanStep(NamedTuple):
    """Parameters and variances after a step."""

    theta: Array
    p: Array


def kalman_diag_gain(p: Array, h: Array, r: Array | float) -> Array:
    """The gain `K = diag(p) Hᵀ (H diag(p) Hᵀ + R)⁻¹` of a filter with the variances p.

    Args:
      p: [n], >= 0, variances of the parameters, floating.
      h: [m, n], Jacobian of the outputs, float32, float64, bfloat16 or float16 (NumPy: float32, float64). Any strides.
      r: noise of the outputs: a number, its diagonal [m] or [m, m], of which the symmetric part counts.

    Returns:
      [n, m] in `h`'s dtype; computed in float64.

    Raises:
      ValueError: a shape or device that does not fit; NaN, infinity, a negative p; H diag(p) Hᵀ + R is not positive
        definite. TypeError: not a floating-point array.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md). Differentiable twice, in reverse mode, in
    p, h and r.
    Source: Kalman 1960 with a diagonal covariance; Puskorius, Feldkamp 1994.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> p, h = np.ones(2), np.array([[1.0, 0.0]])  # one output, which sees the first parameter
      >>> lc.kalman_diag_gain(p, h, 1.0).round(6)
      array([[0.5],
             [0. ]])
    """
    check_array(GAIN, "h", h, ndim=0)
    noise = _noise(r, h)
    return call(_GAIN, p, h, noise)


def kalman_diag_step(
    theta: Array, p: Array, jac: Array, score: Array, *, lr: float = 1.0, kl_limit: float | None = None
) -> KalmanStep:
    """One Kalman step of parameters whose covariance is kept diagonal.

    With M the Jacobian of the outputs, whitened by the noise, g the score and S = I + M diag(p) Mᵀ:

        theta <- theta + lr p ∘ (g - Mᵀ S⁻¹ M (p ∘ g)) = theta + lr (diag(1/p) + MᵀM)⁻¹ g
        p     <- p ∘ (1 - s),  s_i = p_i M_iᵀ S⁻¹ M_i,  within [p_i / (1 + p_i |M_i|²), p_i]

    Args:
      theta: [n] or any shape, parameters: float32, float64, bfloat16 or float16 (NumPy: float32, float64).
      p: as `theta`, >= 0, their variances, in units of theta squared: float32 or float64. 0 holds a parameter.
      jac: [m, n] or [m, *theta.shape], M: row j is the gradient of whitened output j. Floating, any strides.
      score: as `theta`, g: **minus** the gradient of the loss (the gradient of the log-likelihood; Mᵀ ẽ for whitened
        residuals ẽ). It is added.
      lr: factor on the change of theta; p does not see it.
      kl_limit: > 0; scales the change of theta so that ½ ‖M Δtheta‖², the divergence of the predictions before and
        after to second order where MᵀM is a Fisher matrix, stays below it. None: no limit.

    Returns:
      KalmanStep(theta, p) in the dtypes and shapes given; computed in float64. m = 0 changes nothing.

    Raises:
      ValueError: a shape, value or device that does not fit; NaN or infinity in p, jac or score; a negative p.
      TypeError: a wrong dtype or library.

    Numerics: tier D1. 0 < p_new <= p for every p > 0, whatever the rounding. Not differentiable.
    Source: Puskorius, Feldkamp 1994; LoKO, arXiv 2410.11551. Deviations: whitened, hence any noise; the bounds of
    p; the limit.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> theta, p, jac = np.zeros(2), np.ones(2), np.array([[1.0, 0.0]])
      >>> theta, p = lc.kalman_diag_step(theta, p, jac, score=np.array([2.0]) @ jac)  # the output is 2 too small
      >>> theta.round(6), p.round(6)
      (array([1., 0.]), array([0.5, 1. ]))
    """
    return KalmanStep(*call(_STEP, theta, p, jac, score, lr=lr, kl_limit=kl_limit))


def kalman_diag_step_(
    theta: Array | Sequence[Array],
    p: Array | Sequence[Array],
    jac: Array | Sequence[Array],
    score: Array | Sequence[Array],
    *,
    lr: float = 1.0,
    kl_limit: float | None = None,
) -> bool:
    """`kalman_diag_step` in place, of one tensor or of a list of them, which are one filter.

    In lists, M is all of `jac` side by side: A = M diag(p) Mᵀ and M (p ∘ g) are sums over all tensors, and every
    tensor's step depends on them.

    Args:
      theta, p: as `kalman_diag_step`, or lists of equal length; vectors of any stride, or contiguous. Changed.
      jac, score: as `kalman_diag_step`, or lists of that length; all of `jac` have the same m.
      lr, kl_limit: as `kalman_diag_step`; the limit is on the change by all tensors together.

    Returns:
      True if the step was taken; False, with nothing changed, if p, jac or score hold NaN or infinity.

    Raises:
      ValueError: as above, and lists of different lengths; a negative p, or theta or p share memory with another array
        or with themselves, with nothing changed. TypeError: a wrong dtype or library.

    Numerics, source: as `kalman_diag_step`. Call it under no_grad.

    Example:
      >>> import numpy as np, lowrank_core as lc
      >>> theta, p, jac = np.zeros(2), np.ones(2), np.array([[1.0, 0.0]])
      >>> lc.kalman_diag_step_(theta, p, jac, np.array([2.0]) @ jac)
      True
      >>> theta.round(6)
      array([1., 0.])
    """
    single = not isinstance(theta, (list, tuple))
    lists = [[a] if single else list(a) for a in (theta, p, jac, score)]
    check_lists(STEP_, *lists, single=single)
    check_numbers(STEP_, lr, kl_limit)
    for name, arrays in (("theta", lists[0]), ("p", lists[1])):
        for i, a in enumerate(arrays):
            check_memory(STEP_, name if single else f"{name}[{i}]", a)
            check_in_place(STEP_, name if single else f"{name}[{i}]", a)
    run = torch_ops().kalman_diag_step_ if lists[0] and is_torch(lists[0][0]) else _step_list
    if not single:
        return bool(run(*lists, lr=lr, kl_limit=kl_limit))
    try:
        return bool(run(*lists, lr=lr, kl_limit=kl_limit))
    except ValueError as error:  # of a kernel that takes lists
        raise ValueError(str(error).replace("[0]`", "`")) from None


def _noise(r: Array | float, h: Array) -> Array:
    """`r` as an array of `h`'s kind."""
    if not isinstance(r, (int, float)) or isinstance(r, bool):
        return r
    if is_torch(h):
        torch = sys.modules["torch"]
        return torch.full((), float(r), dtype=torch.float64, device=h.device)
    return sys.modules["cupy"].asarray(float(r)) if is_cupy(h) else np.asarray(float(r))


def _gain_like(p: Array, h: Array, r: Array) -> Array:
    return empty(h, (h.shape[1], h.shape[0]), dtype_name(h))


def _gain(k: Array, p: Array, h: Array, r: Array) -> None:
    try:
        call_named(GAIN, _core.kalman_diag_gain, k, p, h, r, arrays={"p": p, "h": h, "r": r})
    except FloatingPointError:
        _refuse(GAIN, [p], {"p": [p], "h": [h]})


def _check_step(theta: Array, p: Array, jac: Array, score: Array, *, lr: float, kl_limit: float | None) -> None:
    check_step(STEP, theta, p, jac, score)
    check_numbers(STEP, lr, kl_limit)


def _step_like(theta: Array, p: Array, *_: Any, **__: Any) -> tuple[Array, Array]:
    shape = tuple(theta.shape)
    return empty(theta, shape, dtype_name(theta)), empty(p, shape, dtype_name(p))


def _step(
    out: tuple[Array, Array],
    theta: Array,
    p: Array,
    jac: Array,
    score: Array,
    *,
    lr: float,
    kl_limit: float | None,
) -> None:
    given = _flattened([theta], [p], [jac], [score])
    new = ([out[0].reshape(-1)], [out[1].reshape(-1)])
    named = {"theta": theta, "p": p, "jac": jac, "score": score}
    options = {"lr": lr, "limit": _limit(kl_limit)}
    if not call_named(STEP, _core.kalman_diag_step, *new, *given, arrays=named, **options):
        _refuse(STEP, [p], {"p": [p], "jac": [jac], "score": [score]})


def _step_list(
    theta: list[Array], p: list[Array], jac: list[Array], score: list[Array], *, lr: float, kl_limit: float | None
) -> bool:
    """Checked lists; False where something is not finite."""
    given = _flattened(theta, p, jac, score)
    if call_named(STEP_, _core.kalman_diag_step_, *given, arrays={}, lr=lr, limit=_limit(kl_limit)):
        return True
    if any(_is_negative(a) for a in p):
        _refuse(STEP_, p, {})
    return False


def _flattened(*lists: list[Array]) -> list[list[Array]]:
    """Every tensor as a vector, its Jacobian as a matrix; a view of what is changed."""
    theta, p, jac, score = lists
    rows = [a.reshape(a.shape[0], math.prod(a.shape[1:])) for a in jac]
    return [[a.reshape(-1) for a in theta], [a.reshape(-1) for a in p], rows, [a.reshape(-1) for a in score]]


def _limit(kl_limit: float | None) -> float:
    return math.inf if kl_limit is None else float(kl_limit)


def _is_negative(a: Array) -> bool:
    return bool((a < 0).any())


def _refuse(op: str, p: list[Array], named: dict[str, list[Array]]) -> NoReturn:
    """Says what the kernel met."""
    if any(_is_negative(a) for a in p):
        raise ValueError(f"{op}: `p` must be >= 0, got a negative variance")
    for name, arrays in named.items():
        for a in arrays:
            if not bool(a.isfinite().all() if is_torch(a) else np.isfinite(a).all()):
                raise ValueError(f"{op}: `{name}` must be finite, got NaN or infinity")
    jac = "h" if op == GAIN else "jac"
    raise ValueError(f"{op}: `{jac}` must have products with p that fit float64, got larger ones; scale it down")


def _check_list(*lists: list[Array], lr: float, kl_limit: float | None) -> None:
    check_lists(STEP_, *lists, single=False)
    check_numbers(STEP_, lr, kl_limit)


def _step_tensors(*lists: list[Array], **options: Any) -> Any:
    import torch

    _check_list(*lists, **options)
    return torch.tensor(_step_list(*lists, **options), device="cpu")


_GAIN = Op(
    "kalman_diag_gain(Tensor p, Tensor h, Tensor r) -> Tensor", check=check_gain, outputs=_gain_like, kernel=_gain
)
_STEP = Op(
    "kalman_diag_step(Tensor theta, Tensor p, Tensor jac, Tensor score, *, float lr, float? kl_limit) "
    "-> (Tensor, Tensor)",
    check=_check_step,
    outputs=_step_like,
    kernel=_step,
)
_STEP_LIST = Op(
    "kalman_diag_step_(Tensor(a!)[] theta, Tensor(b!)[] p, Tensor[] jac, Tensor[] score, *, float lr, "
    "float? kl_limit) -> Tensor",
    check=_check_list,
    outputs=flag,
    kernel=_step_tensors,
    fills=False,
)
declare("kalman_diag", _GAIN, _STEP, _STEP_LIST)
