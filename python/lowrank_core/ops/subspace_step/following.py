"""The power step of a list of subspaces that follow the gradient. Unchecked."""

from __future__ import annotations

from typing import Any

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named
from lowrank_core.ops.subspace_step.check import low_dtype, low_shape
from lowrank_core.ops.subspace_step.scratch import scratch


def follow_list(
    errors: list[Array],
    grads: list[Array],
    bases: list[Array],
    exp_avg: list[Array],
    exp_avg_sq: list[Array],
    right: list[bool],
    steps: list[int],
    **options: Any,
) -> list[Array]:
    """LDAdam's next subspaces, with the moments turned into them, and what they hold of A = G + E.

    Args:
      errors: E [m, n], float32 or float64. Becomes A + beta1 / (1 - beta1) P M.
      grads: G of their shapes, any floating dtypes and strides.
      bases: P [m, r], or [n, r] on the right, of the dtype of E. Become orth(B B^T P) with
        B = rho P M / (1 - beta1^t) + (1 - rho) A.
      exp_avg, exp_avg_sq: M and V [r, n], or [m, r], likewise, contiguous. Turned.
      right: whether the basis of each is on the right.
      steps: t >= 1, how many are finished.
      options: beta1, beta2, rho, maximize, precision.

    Returns:
      P^T A, or A P, for the new P, in memory that lasts for one step.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md). Source: Robert et al. 2024 (LDAdam,
    arXiv 2410.16103), algorithm 1, and its code for V.
    """
    shapes = [low_shape(g, p, turned) for g, p, turned in zip(grads, bases, right, strict=True)]
    low = scratch(grads, shapes, [low_dtype(error) for error in errors])
    lists = (errors, grads, bases, low, exp_avg, exp_avg_sq, right, steps)
    call_named("step", _core.follow_step, *lists, arrays={}, **options)
    return low
