"""APOLLO and APOLLO-Mini."""

from __future__ import annotations

from typing import Any

import torch

from lowrank_core.checks import is_number, require
from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, choose, one_sided
from lowrank_core.optim.parts.codecs import basis_codec
from lowrank_core.optim.parts.projectors.gaussian import Gaussian
from lowrank_core.optim.parts.projectors.orthonormal import ExactSVD
from lowrank_core.optim.parts.residuals.limited import ScaledGradient, resolution
from lowrank_core.optim.parts.transports import Keep


class ApolloAdamW(LowRankOptimizer):
    """The gradient itself, each channel as long as Adam would make it, judged from a random projection.

    With R = P^T G and Adam's N of R: W <- (1 - lr weight_decay) W - lr S, S = c sqrt(scale) phi_j G_j with
    phi_j = |N_j| / |R_j| of each channel, or one phi = |N| / |R| of the whole matrix. P has independent normal entries
    of variance 1 / r and is drawn anew every `update_proj_gap` steps; it is never stored. j is a column where P is on
    the left ([m, r]), a row where it is on the right; c <= 1 holds |S| below `limiter` times that of the last step.
    State: 2 l r elements with l = max(m, n), and one number.

    APOLLO-Mini is `rank=1, scale_type="tensor", scale=128`. Which parameters, and all keys that are not named here: as
    `GaLoreAdamW`.

    Args:
      params: as there.
      lr: >= 0, number or tensor of one element.
      rank: >= 1, or None for plain AdamW.
      update_proj_gap: >= 1, steps from one draw of P to the next; the moments are kept.
      scale: >= 0; its square root multiplies the update, as in the authors' code and in transformers' options.
      proj_type: "std", "reverse_std", "left" or "right", as there.
      projector: "random", or "svd": the leading singular vectors as an orthonormal P, which is stored.
      scale_type: "channel" or "tensor".
      limiter: >= 1, or None for no limit; as in `FiraAdamW`, but for the whole step.
      scale_cap: >= 1: no phi_j is above that multiple of the median channel's, of those that are not zero; None: no
        cap. At small ranks R_j can be short by chance, and phi_j then is large.

    Raises, warns, determinism: as there.

    Source: Zhu et al. 2024 (arXiv:2412.05270), algorithm 1, in torch's Adam form. Deviations: P is not stored, eps
      defaults to 1e-8 where the code has 1e-6, decay comes first, `scale_cap`.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import ApolloAdamW
      >>> layer = torch.nn.Linear(64, 32)
      >>> mini = ApolloAdamW(layer.parameters(), lr=0.01, rank=1, scale_type="tensor", scale=128)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> mini.step()
      >>> mini.state[layer.weight]["exp_avg"].shape  # AdamW's would be [32, 64]
      torch.Size([1, 64])
    """

    def __init__(
        self,
        params: Params,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: int | None = 256,
        update_proj_gap: int = 200,
        scale: float = 1.0,
        proj_type: str = "std",
        projector: str = "random",
        scale_type: str = "channel",
        limiter: float | None = 1.01,
        scale_cap: float | None = None,
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
        require(is_number(scale, 0.0), op, "scale", "be a number >= 0", scale)
        whole = choose(op, group, "scale_type", {"channel": False, "tensor": True})
        exact = ExactSVD(basis_codec(weight.dtype))
        return Parts.of(
            op,
            one_sided(op, group),
            weight,
            projector=choose(op, group, "projector", {"random": Gaussian(), "svd": exact}),
            residual=ScaledGradient(
                float(scale) ** 0.5, group["limiter"], resolution(weight.dtype), whole, group["scale_cap"]
            ),
            transport=Keep(),
        )
