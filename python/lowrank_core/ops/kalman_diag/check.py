"""The contract of the diagonal Kalman filter: one check for the real and the fake kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowrank_core.ops.arrays import Array, check_array, check_same, dtype_name, is_torch


def check_gain(p: Array, h: Array, r: Array) -> None:
    """Refuses arguments of `kalman_diag_gain` that do not fit each other."""
    op = "kalman_diag_gain"
    check_array(op, "h", h, ndim=0)
    if h.ndim != 2:
        raise ValueError(f"{op}: `h` must be [m, n], got shape {list(h.shape)}")
    m, n = h.shape
    _check_vector(op, "p", p, n, h)
    check_array(op, "r", r, ndim=0)
    check_same(op, "r", r, h)
    if tuple(r.shape) not in ((), (m,), (m, m)):
        raise ValueError(
            f"{op}: `r` must be a number, [{m}] or [{m}, {m}] for `h` of shape {[m, n]}, got shape {list(r.shape)}"
        )


def check_step(op: str, theta: Array, p: Array, jac: Array, score: Array, where: str = "") -> None:
    """Refuses a block of parameters whose arrays do not fit each other; `where`: its place in a list."""
    check_array(op, f"theta{where}", theta, ndim=0)
    check_array(op, f"jac{where}", jac, ndim=1)
    shape = tuple(theta.shape)
    for name, a in (("p", p), ("score", score)):
        check_array(op, f"{name}{where}", a, ndim=0)
        check_same(op, f"{name}{where}", a, theta)
        if tuple(a.shape) != shape:
            raise ValueError(
                f"{op}: `{name}{where}` must have the shape {list(shape)} of `theta{where}`, got {list(a.shape)}"
            )
    check_same(op, f"jac{where}", jac, theta)
    if tuple(jac.shape[1:]) not in (shape, (math.prod(shape),)):
        allowed = dict.fromkeys(f"[m, {', '.join(map(str, tail))}]" for tail in (shape, (math.prod(shape),)) if tail)
        raise ValueError(
            f"{op}: `jac{where}` must be {' or '.join(allowed)} for `theta{where}` of shape {list(shape)}, "
            f"got shape {list(jac.shape)}"
        )
    if dtype_name(p) not in ("float32", "float64"):
        raise TypeError(
            f"{op}: `p{where}` must be float32 or float64, got {dtype_name(p)}; half precision would stop shrinking it"
        )


def check_lists(
    op: str, theta: Sequence[Array], p: Sequence[Array], jac: Sequence[Array], score: Sequence[Array], *, single: bool
) -> None:
    """Refuses lists that do not fit each other, and what cannot be changed in place."""
    for name, entries in (("p", p), ("jac", jac), ("score", score)):
        if len(entries) != len(theta):
            raise ValueError(f"{op}: `{name}` must have one entry for each of {len(theta)} tensors, got {len(entries)}")
    for i in range(len(theta)):
        where = "" if single else f"[{i}]"
        check_step(op, theta[i], p[i], jac[i], score[i], where)
        check_same(op, f"theta{where}", theta[i], theta[0])
        if jac[i].shape[0] != jac[0].shape[0]:
            raise ValueError(
                f"{op}: `jac{where}` must have as many rows as `jac[0]`, {jac[0].shape[0]}, got {jac[i].shape[0]}"
            )
        for name, a in (("theta", theta[i]), ("p", p[i])):
            _check_flat(op, f"{name}{where}", a)


def check_numbers(op: str, lr: float, kl_limit: float | None) -> None:
    """Refuses a rate or a limit out of its range."""
    if not -math.inf < lr < math.inf:  # a comparison, because torch.compile hands symbolic numbers
        raise ValueError(f"{op}: `lr` must be a finite number, got {lr!r}")
    if kl_limit is not None and not kl_limit > 0.0:
        raise ValueError(f"{op}: `kl_limit` must be a number > 0 or None, got {kl_limit!r}")


def _check_vector(op: str, name: str, a: Array, n: int, like: Array) -> None:
    check_array(op, name, a, ndim=0)
    check_same(op, name, a, like)
    if tuple(a.shape) != (n,):
        raise ValueError(f"{op}: `{name}` must be [{n}], got shape {list(a.shape)}")


def _check_flat(op: str, argument: str, a: Array) -> None:
    """What is changed in place is a vector of any stride, or contiguous."""
    if a.ndim == 1:
        return
    if not (a.is_contiguous() if is_torch(a) else a.flags.c_contiguous):
        raise ValueError(f"{op}: `{argument}` must be contiguous, got another layout; pass a contiguous one")
