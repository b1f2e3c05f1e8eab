"""Fira."""

from __future__ import annotations

from typing import Any

import torch

from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, choose, one_sided, svd_projector, transport
from lowrank_core.optim.parts.residuals.limited import ScaledRest, resolution


class FiraAdamW(LowRankOptimizer):
    """GaLore whose update is of full rank: what the subspace does not hold is added, as long as Adam would make it.

    With R = P^T G and Adam's N of R, as in `GaLoreAdamW`:
    W <- (1 - lr weight_decay) W - lr (scale P N + S), S = c phi_j (G - P R)_j, phi_j = |N_j| / |R_j|.
    j is a column where the basis is on the left, a row where it is on the right; c <= 1 holds |S| below `limiter` times
    that of the last step. State: that of GaLore and one number.

    Which parameters, and all keys that are not named here: as `GaLoreAdamW`.

    Args:
      params: as there.
      lr: >= 0, number or tensor of one element. Change of a weight per step, for |N| = 1 and scale = 1.
      scale: factor on P N, the part inside the subspace.
      proj_type: "std", "reverse_std", "left" or "right", as there; "full" has no channels to scale.
      limiter: >= 1, or None for no limit. It compares norms before the bias correction, as the authors' code does, so
        that it damps the first steps (for a constant gradient S is 0.53 of its size in step 9, and free from step 44
        on). A previous S of rounding size holds nothing down: such is that of a gradient that the subspace holds
        whole, as it does where fewer tokens than the rank made it.
      residual: "paper", or "code": the authors' code subtracts scale P R instead of P R, so that `scale` hardly acts.

    Raises, warns, determinism: as there.

    Source: Chen et al. 2024 (arXiv:2410.01623), in torch's Adam form. Deviations: eps defaults to 1e-8 where the code
      has 1e-6, and those of `GaLoreAdamW`.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import FiraAdamW
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = FiraAdamW(layer.parameters(), lr=0.01, rank=8, scale=1.0)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state[layer.weight]["residual.limit"].shape  # besides what GaLore holds
      torch.Size([1])
    """

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
        projector: str = "rsvd",
        oversample: int = 10,
        niter: int = 2,
        moments: str = "keep",
        limiter: float | None = 1.01,
        residual: str = "paper",
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
        op, scale = cls.__name__, group["scale"]
        kappa = choose(op, group, "residual", {"paper": 1.0, "code": scale})
        return Parts.of(
            op,
            one_sided(op, group),
            weight,
            projector=svd_projector(op, group, weight),
            residual=ScaledRest(scale, group["limiter"], resolution(weight.dtype), kappa),
            transport=transport(op, group),
        )
