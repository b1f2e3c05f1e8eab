"""The step of a list of weights along gradients with balanced lines. Unchecked."""

from __future__ import annotations

from typing import Any

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named

LINES = ("none", "rows", "columns", "both")


def lines_list(
    params: list[Array], grads: list[Array], scales: list[float], steps: list[int], seeds: list[int], **options: Any
) -> bool:
    """W <- (1 - lr weight_decay) W - lr scale N in place, with all weights at once.

    N is the gradient, its lines divided by their root mean square.

    Args:
      params: matrices of any strides, float32, bfloat16 or float16.
      grads: of their shapes and any of these dtypes, rows along memory.
      scales: one for each weight.
      steps, seeds: of the draws.
      options: lines, one of `LINES`: those that are divided, "both" for rows and columns in turns, `iterations` times;
        lr, weight_decay, maximize, stochastic.

    Returns:
      False if what is to be changed shares memory with another array; nothing was changed.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md); draws are D0 (same bits on every device),
    those of `subspace_step_`. Source: Glentis et al. 2025 (arXiv:2506.16659), Scetbon et al. 2025 (arXiv:2502.06742).
    """
    try:
        call_named("step", _core.lines_step, params, grads, scales, steps, seeds, arrays={}, **options)
    except _core.ArrayError:  # raised before anything was changed
        return False
    return True
