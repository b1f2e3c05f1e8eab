"""LDAdam."""

from __future__ import annotations

from typing import Any

import torch

from lowrank_core.memory.geometry import Rank
from lowrank_core.optim.base import Params
from lowrank_core.optim.dtypes import name_of
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, one_sided
from lowrank_core.optim.parts.codecs import basis_codec
from lowrank_core.optim.parts.projectors.following import Following
from lowrank_core.optim.parts.residuals.fed_back import FedBack
from lowrank_core.optim.parts.rules import check_keys
from lowrank_core.optim.parts.schedules.never import Never
from lowrank_core.optim.parts.transports import Rotate


class LDAdamW(LowRankOptimizer):
    """AdamW in a subspace that follows the gradient at each step, with feedback of what it misses.

    With A = G + E, the gradient and what was missed before: P <- qr(B B^T P), B = rho P M / (1 - b1^t) + (1 - rho) A;
    the moments turn with P; Adam on R = P^T A gives N, and W <- (1 - lr weight_decay) W - lr P N. What P then does not
    hold of A and of the old first moment is E. State: s r + 2 l r elements and E, m n elements in the dtype of the
    weight (float32 for float16): at rank 16 a little more than half of AdamW's. Gradients stay as they are.

    Which parameters, and all keys that are not named here: as `GaLoreAdamW`, of which those that say when and how to
    search, and `scale`, are not there.

    Args:
      params: as there.
      lr: >= 0, number or tensor of one element.
      betas: as there; the published values.
      rank: >= 1, a share of min(m, n) in (0, 1], "full", or None for plain AdamW.
      proj_type: "std", "reverse_std", "left" or "right", as there.
      rho: in [0, 1], the weight of the old first moment in what the subspace follows; 0 follows the gradient alone.

    Raises, warns, determinism: as there, with "rsvd".

    Source: Robert et al. 2024 (LDAdam, arXiv:2410.16103), algorithm 1, with the form of the second moment's turn of its
      code. Deviations: the first search is randomized; E is kept in the state, not in `.grad`; a rank that is not below
      min(m, n) means plain AdamW, not an error.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import LDAdamW
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = LDAdamW(layer.parameters(), lr=0.01)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state[layer.weight]["residual.error"].shape
      torch.Size([32, 64])
    """

    def __init__(
        self,
        params: Params,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.908, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: Rank | None = 16,
        proj_type: str = "std",
        rho: float = 0.908,
        moment_dtype: str = "auto",
        plain_moment_dtype: str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        nonfinite: str = "skip",
        force_projection: bool = False,
        maximize: bool = False,
        stacked: bool = False,
        **torch_keys: object,
    ) -> None:
        super().__init__(params, keys_of(locals()), torch_keys)

    @classmethod
    def parts(cls, group: dict[str, Any], weight: torch.Tensor) -> Parts:
        op, codec = cls.__name__, basis_codec(weight.dtype)
        check_keys(op, group["betas"], group["eps"])
        beta1 = group["betas"][0]
        return Parts.of(
            op,
            one_sided(op, group),
            weight,
            projector=Following(codec, rho=group["rho"], beta1=beta1),
            residual=FedBack(beta1=beta1, storage=codec, weight=name_of(weight.dtype)),
            schedule=Never(),
            transport=Rotate(),
        )
