"""GaLore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, rule, svd_projector, transport
from lowrank_core.optim.parts.residuals.drop import Drop


class GaLoreAdamW(LowRankOptimizer):
    """AdamW whose moments live in the leading singular subspace of each weight's gradient.

    For a weight [m, n] with m < n: R = P^T G [r, n], Adam on R gives N, and
    W <- (1 - lr weight_decay) W - lr scale P N. A search at that weight's steps 0, gap, 2 gap, ... finds the basis
    P [m, r] from the gradient of that step. State: s r + 2 l r elements with s, l = min, max(m, n), against 2 m n of
    AdamW.

    Which parameters: every weight of two or more dimensions in a group that has a rank; more than two are seen as
    [d0, the rest], or [E, m, n] as E matrices by `stacked`. If any group names `rank` itself, the groups that do not
    are plain AdamW, as with GaLore; if none does, the constructor's rank holds for all. `rank=None` means plain AdamW.
    Vectors, scalars, empty tensors, and weights with rank >= min(m, n) unless `force_projection`, are plain too: there
    `scale` does not act, and the result equals torch.optim.AdamW's to the bit for float32 and float64. `plan()` says
    what is done with each parameter and why.

    Every argument but `params` may also be a key of a group.

    Args:
      params: tensors, (name, tensor) pairs or groups, also those of another optimizer; float64, float32, bfloat16,
        float16, complex (through their real view, on the plain path), and frozen ones of any dtype. Half-precision
        weights are updated in float32 and rounded once.
      lr: >= 0, number or tensor of one element. Change of a weight per step, for |N| = 1 and scale = 1.
      betas: two numbers in [0, 1): decay per step of the first and second moment.
      eps: >= 0, in units of the (projected) gradient; added outside the bias correction.
      weight_decay: >= 0, decoupled: a weight loses lr * weight_decay of itself per step, before the update.
      rank: >= 1, or None for plain AdamW.
      update_proj_gap: >= 1, steps from one search for the basis to the next.
      scale: factor on the update of projected weights.
      proj_type: "std" (basis on the shorter side, a square matrix right), "reverse_std" (on the longer one, a
        square matrix left), "left" ([m, r]), "right" ([n, r]) or "full" (both, R = U^T G V is [r, r]).
      rule: what is done with R: "adam"; "lion", the sign of a mean (one moment; `betas` of its paper are (0.9, 0.99), a
        rate a tenth of Adam's); "adabelief" (the variance of R around its mean in place of its square, `eps` inside the
        root, too); "adafactor" (no first moment, and of the second one the means over rows and columns: r + l elements;
        betas[1] bounds its decay 1 - t^-0.8, R^2 + eps^2 is averaged). What is not projected has AdamW.
      projector: "rsvd" (randomized, started from the basis held) or "svd" (exact).
      oversample, niter: of the randomized search; a warm one takes one power iteration.
      moments: at a refresh: "keep" (read in the new basis, signs aligned) or "rotate" (expressed in it).
      moment_dtype: how moments are stored: "float32" (float64 for float64 weights), "bfloat16" or "int8" (codes with a
        scale for each 256 elements), both rounded without bias and on the CPU only in this version; or "auto":
        bfloat16 for bfloat16 weights on the CPU, else as "float32".
      plain_moment_dtype: the same for what is not projected; None: as `moment_dtype`.
      rounding: of bfloat16 weights, "nearest" or "stochastic" (without bias, CPU only); other dtypes: to nearest.
      seed: any int. With the parameter's position and the refresh or step number it decides every draw.
      nonfinite: what a gradient with inf or nan does: "skip" the whole step (counted in `skipped_steps`,
        nothing changes) or "raise" RuntimeError (nothing changes either). The group of the gradient decides;
        on an accelerator "raise" waits for the device at every step.
      force_projection: project at rank min(m, n) if `rank` is not below it.
      maximize: climb instead of descend.
      stagger: True: after step 0 the weights of a group are refreshed in turns, each every `update_proj_gap` steps, so
        that no step pays for all. "auto": so in groups of 8 or more with a gap of 8 or more. False: all at once.
      stacked: True: every parameter of the group is a stack [E, m, n] of E matrices, as the experts of a mixture are.
        It trains to the bit as E parameters [m, n] in its place; its state has "e." before the keys of matrix e.
      torch_keys: keys of torch's AdamW that change nothing here are taken: `foreach`, `fused`, `capturable=False`,
        `amsgrad=False`, `differentiable=False`, `no_deprecation_warning`.

    Raises:
      TypeError: an unknown key, or a trainable parameter of another dtype.
      ValueError: a value out of its range, a key of torch's with a value that has no meaning here, or a parameter that
        is no stack in a group with `stacked`.

    Warns:
      UserWarning: a rank was asked for, and no parameter is projected.

    Determinism: D1 (same bits for any number of threads; docs/numerics.md) with "rsvd", D2 (within a stated bound,
      for the threads are LAPACK's) with "svd".
    Source: Zhao et al. 2024 (arXiv:2403.03507), in torch's Adam form (arXiv:1711.05101 for the decay): decay
      comes first, eps acts outside the bias correction and defaults to 1e-8, where GaLore's code decays last
      and has 1e-6. Other deviations: signs are aligned at a refresh, a gradient of zeros does not refresh,
      bfloat16 moments are rounded without bias, and refreshes are randomized by default.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import GaLoreAdamW
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = GaLoreAdamW(layer.parameters(), lr=0.01, rank=8)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state[layer.weight]["exp_avg"].shape  # AdamW's would be [32, 64]
      torch.Size([8, 64])
    """

    ADDED: ClassVar[Mapping[str, Any]] = {**LowRankOptimizer.ADDED, "rule": "adam"}
    deciding: ClassVar[tuple[str, ...]] = ("rule",)

    def __init__(
        self,
        params: Params,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | None = 128,
        update_proj_gap: int = 200,
        scale: float = 0.25,
        proj_type: str = "std",
        rule: str = "adam",
        projector: str = "rsvd",
        oversample: int = 10,
        niter: int = 2,
        moments: str = "keep",
        moment_dtype: str = "auto",
        plain_moment_dtype: str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        nonfinite: str = "skip",
        force_projection: bool = False,
        maximize: bool = False,
        stagger: bool | str = "auto",
        stacked: bool = False,
        **torch_keys: object,
    ) -> None:
        super().__init__(params, keys_of(locals()), torch_keys)

    @classmethod
    def parts(cls, group: dict[str, Any], weight: torch.Tensor) -> Parts:
        op = cls.__name__
        return Parts.of(
            op,
            group,
            weight,
            projector=svd_projector(op, group, weight),
            residual=Drop(group["scale"]),
            rule=rule(op, group),
            transport=transport(op, group),
        )
