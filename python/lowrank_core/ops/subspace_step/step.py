"""The fused step of a list of weights whose moments live in a subspace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowrank_core import _core
from lowrank_core.ops.arrays import (
    Array,
    call_named,
    check_in_place,
    check_memory,
    is_torch,
    plain_ints,
    resolve_precision,
)
from lowrank_core.ops.declare import Op, declare
from lowrank_core.ops.operators import flag, torch_ops
from lowrank_core.ops.subspace_step.check import (
    NO_CAP,
    OP,
    ROUNDINGS,
    Stored,
    check_lists,
    check_numbers,
    low_dtype,
    low_shape,
    parted,
    rights,
)
from lowrank_core.ops.subspace_step.scratch import scratch


def subspace_step_(
    params: Sequence[Array],
    grads: Sequence[Array],
    bases: Sequence[Array],
    exp_avg: Sequence[Stored],
    exp_avg_sq: Sequence[Stored] | None = None,
    *,
    sides: Sequence[str],
    steps: Sequence[int],
    lr: float,
    rule: str = "adam",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    residual: str = "drop",
    residual_scale: float = 1.0,
    cap: float = NO_CAP,
    limits: Sequence[Array] | None = None,
    growth: float = 1.01,
    rounding: str = "nearest",
    seeds: Sequence[int] | None = None,
    maximize: bool = False,
    precision: str | None = None,
) -> bool:
    """One optimizer step in place, for a list of weights, without a temporary of any weight's size.

    With R = Pᵀ G (left; right: the same of the transposed matrices) and N what the rule makes of R:

        W <- (1 - lr weight_decay) W - lr (scale P N + S)

        residual   S                                                       method
        "drop"     0                                                       GaLore
        "scaled"   c phi_j (G - residual_scale P R)_j, phi_j = |N_j|/|R_j|  Fira; residual_scale=scale: its code
        "sign"     residual_scale sign(G - P R), 0 for rounding noise      FRUGAL
        "channel"  c scale phi_j G_j in place of scale P N                 APOLLO
        "tensor"   the same with one phi = |N|/|R|                         APOLLO-Mini

    j is a column (left) or a row (right). Nothing is changed where a low-rank gradient is not finite.

    Args:
      params: W [m, n] each, float32, bfloat16 or float16, or all float64; any strides. Changed.
      grads: G [m, n] each, any floating dtype and strides.
      bases: P [m, r] (left) or [n, r] (right) each.
      exp_avg: first moments [r, n] (left) or [m, r] (right), contiguous: float32 (float64 for float64 weights),
        bfloat16, rounded stochastically, or a pair (int8 codes of that shape, float32 scales, one for each 256
        consecutive elements), rounded stochastically. Changed.
      exp_avg_sq: second moments of "adam", variances of "adabelief", the same; codes are uint8. None for other rules.
      sides: "left" or "right" each.
      steps: number of this step for each weight, from 1: for the bias correction and the draws.
      lr: >= 0, change of a weight per step for |N| = 1 and scale = 1.
      rule: "adam" (eps outside the bias correction), "adabelief" (there and beside the variance), "lion" or "momentum"
        (heavy ball, no dampening).
      betas: decays per step of the moments; "momentum" uses the first one.
      eps: in units of R.
      weight_decay: decoupled; a weight loses lr * weight_decay of itself per step, first.
      scale: factor on P N.
      residual, residual_scale: what becomes of the rest of the gradient, above.
      cap: >= 1, for "channel": no phi_j is above that multiple of their median, of those that are not 0 (the lower one
        of two). inf: no cap.
      limits: for "scaled", "channel" and "tensor", one float32 array of one element for each weight: the norm of its
        last S, 0 at first. c <= 1 then keeps |S| below `growth` times that. Changed. None: c = 1.
      growth: >= 1.
      rounding: "nearest" or "stochastic" (unbiased), of bfloat16 weights. Other dtypes are rounded to nearest.
      seeds: of the draws, one for each weight; None: 0.
      maximize: climb instead of descend.
      precision: of float32 products; None follows torch's setting, as in `rsvd`.

    Returns:
      True if the step was taken; False if a gradient is not finite.

    Raises:
      ValueError: lists of different lengths, a shape or value that does not fit, what is changed shares memory with
        another array or with itself. TypeError: a wrong dtype or library.

    Numerics: tier D1 (same bits for any number of threads; docs/numerics.md); draws are D0 (same bits on every device
    and level; docs/numerics.md): Philox by (seed, step, element). Not differentiable; call it under no_grad.
    Source: Zhao et al. 2024 (arXiv 2403.03507), Chen et al. 2024 (2410.01623), Zmushko et al. 2024 (2411.07837), Zhu et
    al. 2024 (2412.05270), Zhuang et al. 2020 (AdaBelief, 2010.07468). Deviations: torch's form of Adam; the limiter
    forgets a norm of rounding size; the sign of what is below 8 u sqrt(r) max|G| is 0; `cap`.

    Example:
      >>> import torch, lowrank_core as lc
      >>> w, g, basis = torch.zeros(4, 3), torch.ones(4, 3), torch.eye(4, 1)
      >>> m, v = torch.zeros(1, 3), torch.zeros(1, 3)  # moments of basisᵀ g, which is [1, 3]
      >>> lc.subspace_step_([w], [g], [basis], [m], [v], sides=["left"], steps=[1], lr=0.5)
      True
      >>> w[:, 0].round(decimals=6).tolist()
      [-0.5, 0.0, 0.0, 0.0]
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"{OP}: `rounding` must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    seeds = [0] * len(params) if seeds is None else seeds
    lists = (
        list(params), list(grads), list(bases), *parted("exp_avg", exp_avg), *parted("exp_avg_sq", exp_avg_sq or ()),
        list(limits or ()), rights(sides), list(plain_ints(*steps)), list(plain_ints(*seeds)),
    )  # fmt: skip
    options: dict[str, Any] = {
        "rule": rule, "betas": tuple(betas), "eps": eps, "lr": float(lr), "weight_decay": weight_decay, "scale": scale,
        "residual": residual, "residual_scale": residual_scale, "cap": float(cap), "growth": growth,
        "maximize": maximize, "stochastic": rounding == "stochastic", "precision": resolve_precision(OP, precision),
    }  # fmt: skip
    _check(*lists, **options)
    for name, changed in (("params", 0), ("exp_avg", 3), ("exp_avg_sq", 5), ("limits", 7)):
        for i, array in enumerate(lists[changed]):
            check_memory(OP, f"{name}[{i}]", array)
            check_in_place(OP, f"{name}[{i}]", array)
    if not any(is_torch(param) for param in params):
        return step_list(*lists, **options)
    return bool(torch_ops().subspace_step_(*lists, **options))


def project_list(
    params: list[Array], grads: list[Array], bases: list[Array], right: list[bool], *, maximize: bool, precision: str
) -> tuple[list[Array], bool]:
    """Low-rank gradients in the dtype that each weight is stepped in, and whether all of them are finite. Unchecked."""
    shapes = [low_shape(g, p, turned) for g, p, turned in zip(grads, bases, right, strict=True)]
    low = scratch(grads, shapes, [low_dtype(w) for w in params])
    options = {"maximize": maximize, "precision": precision}
    return low, call_named(OP, _core.subspace_project, low, grads, bases, right, arrays={}, **options)


def step_list(
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
    low: list[Array] | None = None,
    **options: Any,
) -> bool:
    """`subspace_step_` without its checks. `low`: what `project_list` found, which is overwritten; then weights that
    share memory are stepped one after the other.
    """
    drafted = low is not None
    if low is None:
        shared = {key: options[key] for key in ("maximize", "precision")}
        low, finite = project_list(params, grads, bases, right, **shared)
        if not finite:
            return False
    moments = (exp_avg, exp_avg_scales, exp_avg_sq, exp_avg_sq_scales)
    lists = (params, grads, bases, low, *moments, limits, right, steps, seeds)
    if drafted:
        in_turn(_core.subspace_update, lists, options)
    else:
        call_named(OP, _core.subspace_update, *lists, arrays={}, **options)
    return True


def in_turn(kernel: Any, lists: tuple[list[Any], ...], options: dict[str, Any]) -> None:
    """Calls `kernel` with lists of which the first are weights; one after the other where weights share memory."""
    try:
        call_named(OP, kernel, *lists, arrays={}, **options)
    except _core.SharingError:  # raised before anything was changed
        if not _core.share_memory(lists[0]):
            raise
        for i in range(len(lists[0])):
            call_named(OP, kernel, *(one[i : i + 1] for one in lists), arrays={}, **options)


def count_step(counts: list[Array]) -> None:
    """Adds one to each of `counts`, float32 of one element: the steps that weights have taken."""
    call_named(OP, _core.count_step, counts, arrays={})


def _check(*lists: Any, **options: Any) -> None:
    check_numbers(**options)
    check_lists(*lists, rule=options["rule"], residual=options["residual"])


def _step(*lists: Any, **options: Any) -> Any:
    import torch

    _check(*lists, **options)
    return torch.tensor(step_list(*lists, **options), device="cpu")


_STEP = Op(
    "subspace_step_(Tensor(a!)[] params, Tensor[] grads, Tensor[] bases, Tensor(b!)[] exp_avg, "
    "Tensor(c!)[] exp_avg_scales, Tensor(d!)[] exp_avg_sq, Tensor(e!)[] exp_avg_sq_scales, Tensor(f!)[] limits, "
    "bool[] right, int[] steps, int[] seeds, *, str rule, float[] betas, float eps, float lr, "
    "float weight_decay, float scale, str residual, float residual_scale, float cap, float growth, bool maximize, "
    "bool stochastic, str precision) -> Tensor",
    check=_check,
    outputs=flag,
    kernel=_step,
    fills=False,
)
declare("subspace_step", _STEP)
