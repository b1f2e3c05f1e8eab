"""Adafactor of a list of weights: whose momentum is kept as a random sketch, or low-rank gradients. Unchecked."""

from __future__ import annotations

from typing import Any

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named
from lowrank_core.ops.subspace_step.check import OP, low_dtype, low_shape
from lowrank_core.ops.subspace_step.scratch import scratch
from lowrank_core.ops.subspace_step.step import in_turn


def sketched_list(
    params: list[Array],
    grads: list[Array],
    bases: list[Array],
    exp_avg: list[Array],
    exp_avg_scales: list[Array],
    row_means: list[Array],
    col_means: list[Array],
    right: list[bool],
    steps: list[int],
    seeds: list[int],
    decays: list[float],
    **options: Any,
) -> None:
    """One step of Adafactor with a sketched momentum in place. Weights that share memory are stepped in turn.

    Args:
      params, grads, bases, exp_avg, exp_avg_scales, right, steps, seeds: as `step_list` takes them.
      row_means, col_means: [m] and [n], float32: of the squares of each gradient. Changed.
      decays: of the means in this step.
      options: beta1, eps (in units of the gradient), threshold (of the root mean square), lr, weight_decay, maximize,
        stochastic, precision.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md); draws are D0 (same bits on every device),
    those of `subspace_step_`. Source: Hao, Cao, Mou 2024 (Flora, arXiv 2402.03293), algorithm 2, on Adafactor.
    """
    shapes = [low_shape(g, p, turned) for g, p, turned in zip(grads, bases, right, strict=True)]
    low = scratch(grads, shapes, [low_dtype(w) for w in params])
    moments = (exp_avg, exp_avg_scales, row_means, col_means)
    in_turn(_core.sketched_step, (params, grads, bases, low, *moments, right, steps, seeds, decays), options)


def factored_list(
    low: list[Array],
    row_means: list[Array],
    row_scales: list[Array],
    col_means: list[Array],
    col_scales: list[Array],
    steps: list[int],
    seeds: list[int],
    decays: list[float],
    *,
    eps: float,
    threshold: float,
) -> None:
    """The directions that Adafactor makes of low-rank gradients, in their place, all at once.

    Args:
      low: [m, n] each, contiguous, float32 or float64. Changed.
      row_means, col_means: [m] and [n] each, of the squares: in the dtype of `low`, or of float32 ones in bfloat16 or,
        with `row_scales` and `col_scales`, as codes, rounded stochastically as second moments are. Changed.
      steps, seeds: of the draws.
      decays: of the means in this step.
      eps: in units of `low`. threshold: of the root mean square of a direction.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md); draws are D0 (same bits on every device),
    those of `subspace_step_`. Source: Shazeer, Stern 2018 (Adafactor, arXiv 1804.04235), algorithm 4.
    """
    lists = (low, row_means, row_scales, col_means, col_scales, steps, seeds, decays)
    call_named(OP, _core.factored_directions, *lists, arrays={}, eps=eps, threshold=threshold)
