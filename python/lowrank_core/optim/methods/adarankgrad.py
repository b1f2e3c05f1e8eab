"""AdaRankGrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from lowrank_core.checks import require
from lowrank_core.memory.geometry import RANKS, Rank, is_rank
from lowrank_core.memory.methods import rank_at_most
from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, one_sided
from lowrank_core.optim.parts.codecs import basis_codec
from lowrank_core.optim.parts.projectors.by_energy import ByEnergy
from lowrank_core.optim.parts.residuals.drop import Drop
from lowrank_core.optim.parts.schedules.convergence import Convergence
from lowrank_core.optim.parts.transports import Rotate


class AdaRankGradAdamW(LowRankOptimizer):
    """GaLore whose rank follows the gradient: at each refresh as many directions as hold most of it.

    With R = P^T G and Adam's N of R, as in `GaLoreAdamW`: W <- (1 - lr weight_decay) W - lr scale P N. A refresh takes
    the fewest leading singular vectors that hold `energy` of |G|_F^2, rounded up to a multiple of 8 as far as the
    gradient has directions, and expresses the moments in them. It comes every `update_proj_gap` steps, and sooner where
    the projected gradient has faded. State: s r + 2 l r elements at the rank r of the moment, and two numbers.

    Which parameters, and all keys that are not named here: as `GaLoreAdamW`.

    Args:
      params: as there.
      lr: >= 0, number or tensor of one element.
      rank: the largest rank; >= 1, a share of min(m, n) in (0, 1], "full", or None for plain AdamW.
      update_proj_gap: >= 1, steps from one refresh to the next, at most.
      proj_type: "std", "reverse_std", "left" or "right", as there.
      niter: >= 0, power iterations for each block of directions.
      energy: in (0, 1], the share of |G|_F^2 to hold.
      min_rank: >= 1, the smallest rank; a gradient of fewer directions has a smaller one all the same.
      max_rank: another name of `rank` that goes before it; None: `rank` holds.
      convergence: in [0, 1): a refresh comes sooner where a mean of |R| has fallen to that share of the first |R| after
        the last refresh; looked at every tenth step. 0: never sooner.

    Raises, warns, determinism: as there, with "rsvd".

    Source: Refael et al. 2024 (arXiv:2410.17881), in torch's Adam form; no code of the authors' is known. Deviations:
      the rank is the smallest that holds the energy (as printed it is always the largest); second moments travel in
      LDAdam's form (printed: T V, which can be negative); `convergence` is relative; decay comes first.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import AdaRankGradAdamW
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = AdaRankGradAdamW(layer.parameters(), lr=0.01, rank=24)
      >>> layer(torch.eye(4, 64)).square().mean().backward()  # four samples: a gradient of four directions
      >>> optimizer.step()
      >>> optimizer.projections()[0].rank
      4
    """

    deciding: ClassVar[tuple[str, ...]] = ("max_rank",)

    def __init__(
        self,
        params: Params,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: Rank | None = 128,
        update_proj_gap: int = 200,
        scale: float = 0.25,
        proj_type: str = "std",
        niter: int = 1,
        energy: float = 0.95,
        min_rank: int = 1,
        max_rank: Rank | None = None,
        convergence: float = 0.3,
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
    def rank_of(cls, group: Mapping[str, Any], shorter: int) -> int | None:
        return rank_at_most(group, shorter)

    @classmethod
    def parts(cls, group: dict[str, Any], weight: torch.Tensor) -> Parts:
        op, largest = cls.__name__, group["max_rank"]
        require(largest is None or is_rank(largest), op, "max_rank", RANKS, largest)
        projector = ByEnergy(
            basis_codec(weight.dtype), energy=group["energy"], min_rank=group["min_rank"], niter=group["niter"]
        )
        return Parts.of(
            op,
            one_sided(op, group),
            weight,
            projector=projector,
            residual=Drop(group["scale"]),
            schedule=Convergence(group["update_proj_gap"], group["stagger"], group["convergence"]),
            transport=Rotate(),
        )
