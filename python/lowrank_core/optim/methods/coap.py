"""COAP."""

from __future__ import annotations

from typing import Any

import torch

from lowrank_core.checks import require_choice
from lowrank_core.memory.geometry import Rank
from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, one_sided, transport
from lowrank_core.optim.parts.codecs import basis_codec
from lowrank_core.optim.parts.projectors.correlated import Correlated
from lowrank_core.optim.parts.residuals.drop import Drop


class CoapAdamW(LowRankOptimizer):
    """GaLore with frequent refreshes, most of which are a gradient step on the basis, not a search.

    With R = P^T G and Adam's N of R, as in `GaLoreAdamW`: W <- (1 - lr weight_decay) W - lr scale P N. P is looked at
    every `update_proj_gap` steps: at every `reproject_factor`-th time a warm search starts from it, at the others
    P <- P - 0.1 dL/dP with L = mse(P P^T G, G) (1 - the mean cosine of the rows of G and P exp_avg). State: that of
    GaLore.

    Which parameters, and all keys that are not named here: as `GaLoreAdamW`.

    Args:
      params: as there.
      lr: >= 0, number or tensor of one element.
      rank: >= 1, a share of min(m, n) in (0, 1] (default: a quarter), "full", or None for plain AdamW.
      update_proj_gap: >= 1, steps from one change of P to the next.
      proj_type: "std", "reverse_std", "left" or "right", as there.
      reproject_factor: >= 1, changes of P from one search to the next; 1: every change is a search.
      eq5: "reference", the published step, whose length is quadratic in G: at gradients of usual size it changes
        nothing that can be seen, and P then leaves the orthonormal ones by as little; or "normalized": of G over its
        root mean square, 0.05 |P| long, orthonormalized. The benefit of either is unproven.

    Raises, warns, determinism: as there, with "rsvd".

    Source: Xiao et al. 2024 (arXiv:2412.00071), in torch's Adam form. Deviations: searches draw `oversample` columns
      more and iterate as GaLore's here (none in the code), each weight from a draw of its own (there one for all);
      signs are aligned at a change; eps defaults to 1e-8 where the code has 1e-6, decay comes first; no Tucker form.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import CoapAdamW
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = CoapAdamW(layer.parameters(), lr=0.01)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state[layer.weight]["exp_avg"].shape  # a quarter of 32
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
        rank: Rank | None = 0.25,
        update_proj_gap: int = 32,
        scale: float = 1.0,
        proj_type: str = "std",
        oversample: int = 10,
        niter: int = 2,
        reproject_factor: int = 5,
        eq5: str = "reference",
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
        require_choice(op, "eq5", group["eq5"], ("reference", "normalized"))
        return Parts.of(
            op,
            one_sided(op, group),
            weight,
            projector=Correlated(
                basis_codec(weight.dtype),
                group["oversample"],
                group["niter"],
                reproject_factor=group["reproject_factor"],
                normalized=group["eq5"] == "normalized",
            ),
            residual=Drop(group["scale"]),
            transport=transport(op, group),
        )
