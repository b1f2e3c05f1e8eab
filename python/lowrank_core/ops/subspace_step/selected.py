"""Adam on some lines of each of a list of weights, and the sign of the gradient elsewhere. Unchecked."""

from __future__ import annotations

from typing import Any

from lowrank_core import _core
from lowrank_core.ops.arrays import Array
from lowrank_core.ops.subspace_step.step import in_turn


def selected_list(
    params: list[Array],
    grads: list[Array],
    lines: list[Array],
    rows: list[bool],
    exp_avg: list[Array],
    exp_avg_scales: list[Array],
    exp_avg_sq: list[Array],
    exp_avg_sq_scales: list[Array],
    corrections: list[tuple[float, float]],
    steps: list[int],
    seeds: list[int],
    **options: Any,
) -> None:
    """W <- (1 - lr weight_decay) W - lr D in place. Weights that share memory are stepped in turn.

    D is scale N on the lines that are selected, N what Adam makes of the gradient there, and sign_scale sign(G)
    elsewhere.

    Args:
      params: [m, n] each, any floating dtypes and strides. Changed.
      grads: of their shapes, any floating dtypes and strides.
      lines: int64 [count] each, contiguous and ascending: which rows, or columns, are selected.
      rows: whether these are rows.
      exp_avg, exp_avg_scales, exp_avg_sq, exp_avg_sq_scales: moments [count, n] or [m, count], contiguous, as `parted`
        makes them for `subspace_step_`. Changed.
      corrections: 1 - beta1^t and sqrt(1 - beta2^t) for each weight.
      steps, seeds: of the draws.
      options: betas, eps, lr, weight_decay, scale, sign_scale, maximize, stochastic; and how torch rounds, as
        `adamw_list` takes it: fused, roots.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md); draws are D0 (same bits on every device),
    those of `subspace_step_`. Operation by operation as torch would take them. Source: Zmushko et al. 2024 (FRUGAL,
    arXiv 2411.07837).
    """
    moments = (exp_avg, exp_avg_scales, exp_avg_sq, exp_avg_sq_scales)
    in_turn(_core.selected_step, (params, grads, lines, rows, *moments, corrections, steps, seeds), options)
