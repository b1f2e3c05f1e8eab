"""Muon."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from lowrank_core.memory.geometry import FULL, Rank
from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.parts.orthogonal import orthogonal_parts
from lowrank_core.optim.parts.projectors.selected import Whole


class Muon(LowRankOptimizer):
    """Momentum whose singular values are all brought near 1, for matrices; AdamW for everything else.

    B <- momentum B + G; O = the orthogonal factor of G + momentum B (`nesterov`) or of B, roughly, by `ns_steps` steps
    of Newton and Schulz; W <- (1 - lr weight_decay) W - lr c O, c = sqrt(max(1, m / n)) for a weight [m, n].
    State: m n elements.

    Arguments and defaults are those of torch.optim.Muon, which this can take the place of. It also takes what that
    refuses: what is no matrix is stepped by AdamW, and weights of more than two dimensions are seen as [d0, the rest],
    or as matrices by `stacked`.

    Args:
      params: as in `GaLoreAdamW`.
      lr: >= 0, number or tensor of one element.
      weight_decay: as there.
      momentum: in [0, 1).
      nesterov: whether the gradient counts once more in the step.
      ns_coefficients: a, b, c of X <- a X + (b A + c A^2) X with A = X X^T.
      eps: > 0, in units of the mean gradient; a shorter momentum than that is divided by eps instead of its length.
      ns_steps: >= 0 and < 100.
      adjust_lr_fn: None or "original": c as above; "match_rms_adamw": c = 0.2 sqrt(max(m, n)), so that rates and decays
        of AdamW can be kept.
      rank: any int, share or "full" marks the matrices of a group as Muon's, and changes nothing else; None means plain
        AdamW, which embeddings and heads should have (`param_groups(model, rank="full")`).
      plain_lr: the rate of what is no matrix; None: `lr`. A scheduler's factor on `lr` holds for both.
      plain_betas: AdamW's there; None: (0.9, 0.999).
      moment_dtype, plain_moment_dtype: as in `GaLoreAdamW`, of the momentum and of AdamW's moments.
      rounding, seed, nonfinite, maximize, stacked: as there.

    Raises, warns, determinism: as there.

    Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), Liu et al. 2025 (arXiv:2502.16982) for the second
      factor. Deviations: the momentum is a sum where torch holds a mean, which changes no direction; Newton-Schulz as
      in `NewtonSchulz`; momentum of bfloat16 weights is rounded without bias.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import Muon
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = Muon(layer.parameters(), lr=0.02, plain_lr=0.001)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state[layer.weight]["residual.feedback"].shape  # the momentum
      torch.Size([32, 64])
    """

    full_rank: ClassVar[str] = "whole"

    def __init__(
        self,
        params: Params,
        lr: float | torch.Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        rank: Rank | None = FULL,
        plain_lr: float | None = None,
        plain_betas: tuple[float, float] | None = None,
        moment_dtype: str = "auto",
        plain_moment_dtype: str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        nonfinite: str = "skip",
        maximize: bool = False,
        stacked: bool = False,
        **torch_keys: object,
    ) -> None:
        super().__init__(params, keys_of(locals()), torch_keys)

    @classmethod
    def parts(cls, group: dict[str, Any], weight: torch.Tensor) -> Parts:
        return orthogonal_parts(cls.__name__, group, weight, Whole())
