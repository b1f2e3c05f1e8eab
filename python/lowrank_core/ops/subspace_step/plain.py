"""The step of a list of weights that are not projected, and the check of gradients before any step. Unchecked."""

from __future__ import annotations

from typing import Any

from lowrank_core import _core
from lowrank_core.ops.arrays import Array, call_named


def adamw_list(
    params: list[Array],
    grads: list[Array],
    exp_avg: list[Array],
    exp_avg_scales: list[Array],
    exp_avg_sq: list[Array],
    exp_avg_sq_scales: list[Array],
    corrections: list[tuple[float, float]],
    steps: list[int],
    seeds: list[int],
    **options: Any,
) -> bool:
    """One step of AdamW in place, with all weights at once.

    Args:
      params: any shapes and floating dtypes; what is stepped in float32 or float64, as `low_dtype` says.
      grads: of their shapes, any floating dtypes.
      exp_avg, exp_avg_scales, exp_avg_sq, exp_avg_sq_scales: moments, as `parted` makes them for `subspace_step_`.
      corrections: 1 - beta1^t and sqrt(1 - beta2^t) for each weight.
      steps, seeds: of the draws.
      options: betas, eps, lr, weight_decay, maximize, stochastic; and how torch rounds, see `torchs_rounding`: fused,
        for a fused multiply-add in lerp and addcmul, and roots, one of `known_roots`.

    Returns:
      False if what is to be changed shares memory with another array, or one is not contiguous; nothing was changed.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md); draws are D0 (same bits on every device),
    those of `subspace_step_`. Source: torch.optim.AdamW's loop over single tensors.
    """
    moments = (exp_avg, exp_avg_scales, exp_avg_sq, exp_avg_sq_scales)
    lists = (params, grads, *moments, corrections, steps, seeds)
    try:
        call_named("step", _core.adamw_step, *lists, arrays={}, **options)
    except _core.ArrayError:  # raised before anything was changed
        return False
    return True


def known_roots() -> tuple[str, ...]:
    """The square roots that `adamw_list` can take here: MKL's, where torch has it, and correctly rounded ones."""
    return ("mkl", "rounded") if _core.mkl_roots() else ("rounded",)


def nonfinite_list(arrays: list[Array]) -> list[int] | None:
    """The positions of those that hold inf or nan, of any shapes and floating dtypes.

    None if the kernel cannot read one: it is not contiguous or has more dimensions than kernels take.
    """
    try:
        found: list[int] = call_named("step", _core.nonfinite, arrays, arrays={})
    except _core.ArrayError:
        return None
    return found


def norms_list(arrays: list[Array]) -> list[float]:
    """The Frobenius norm of each of some float matrices of any strides, summed in float64. Tier D1."""
    found: list[float] = call_named("step", _core.norms, arrays, arrays={})
    return found
