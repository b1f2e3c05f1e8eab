"""Flora."""

from __future__ import annotations

from typing import Any

import torch

from lowrank_core.checks import is_count, require
from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, one_sided
from lowrank_core.optim.parts.projectors.gaussian import Gaussian
from lowrank_core.optim.parts.residuals.sketched import SketchedMomentum
from lowrank_core.optim.parts.rules import check_keys
from lowrank_core.optim.parts.rules.adafactor import Adafactor
from lowrank_core.optim.parts.rules.average import Average
from lowrank_core.optim.parts.schedules.fixed_gap import FixedGap
from lowrank_core.optim.parts.transports import Rotate


class FloraAdamW(LowRankOptimizer):
    """Adafactor with a momentum that is kept as a random sketch of itself.

    x = G over the root of Adafactor's second moment, which is kept of the whole gradient as its means over rows and
    columns; C <- b1 C + (1 - b1) P^T x is the sketch of the momentum, and
    W <- (1 - lr weight_decay) W - lr u, u = y / max(1, rms(y)), y = (1 - b1) x + b1 P C with C before this step.
    P has independent normal entries of variance 1 / r, so that P P^T is 1 in the mean. It comes from `seed`, the place
    of the weight and the number of the draw, and is never stored; every `kappa` steps another one is drawn, and C turns
    into P_new^T P_old C. State: l r + m + n elements with l = max(m, n).

    A sketch gives its momentum back with noise, sqrt(m / r) times as long as the momentum itself, m the side that is
    projected. Each draw adds to it: it dies out only if `kappa` is well above ln(m / r) / (2 ln(1 / b1)) steps, 7 at
    m / r = 4 and b1 = 0.9. What is not projected is AdamW, with the same betas and eps.

    Which parameters, and all keys that are not named here: as `GaLoreAdamW`.

    Args:
      params: as there.
      lr: >= 0, number or tensor of one element. Change of a weight per step, in the root mean square, at most.
      betas: two numbers in [0, 1): of the momentum, and the largest decay of the second moment, which is 1 - t^-0.8 in
        step t.
      eps: >= 0, in units of the gradient; its square is added to the gradient's.
      rank: >= 1, rows or columns of the sketch; or None for plain AdamW.
      kappa: >= 1, steps from one draw of P to the next.
      proj_type: "std", "reverse_std", "left" or "right", as there.

    Raises, warns, determinism: as there.

    Source: Hao, Cao, Mou 2024 (arXiv:2402.03293), algorithm 2, on Adafactor (arXiv:1804.04235). Deviations: the rate is
      `lr` alone, not relative to the weight; a new sketch is drawn between two steps; embeddings and all other matrices
      are sketched alike; full rank and vectors are AdamW; the decay comes first. The compressed accumulation of
      algorithm 1 is `fused_backward(..., compressed=True)`.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import FloraAdamW
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = FloraAdamW(layer.parameters(), lr=0.01, rank=8)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state[layer.weight]["exp_avg"].shape  # AdamW's would be [32, 64]
      torch.Size([8, 64])
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
        kappa: int = 1000,
        proj_type: str = "std",
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
        op, betas, kappa = cls.__name__, group["betas"], group["kappa"]
        check_keys(op, betas, group["eps"])
        require(is_count(kappa, 1), op, "kappa", "be an int >= 1", kappa)
        return Parts.of(
            op,
            one_sided(op, group),
            weight,
            projector=Gaussian(),
            residual=SketchedMomentum(beta1=betas[0], adafactor=Adafactor(betas[1], group["eps"])),
            rule=Average(betas[0]),
            schedule=FixedGap(kappa, group["stagger"]),
            transport=Rotate(),
        )
