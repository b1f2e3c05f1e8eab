"""Trion."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from lowrank_core.memory.geometry import Rank
from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, one_sided
from lowrank_core.optim.parts.orthogonal import orthogonal_parts
from lowrank_core.optim.parts.projectors.selection import EachStepSelection


class Trion(LowRankOptimizer):
    """Muon in a few cosines: `Dion2` after a cosine transform of the shorter side.

    With the orthonormal basis Q of the transform on the right: S <- S + G Q; I = the r columns of S with most energy;
    O = the orthogonal factor of S_I, roughly; S_I <- momentum S_I; W <- (1 - lr weight_decay) W - lr c O Q_I^T.
    S is the momentum, in coordinates. State: m n elements.

    Args:
      params: as in `GaLoreAdamW`.
      lr: >= 0, number or tensor of one element.
      weight_decay: as there.
      momentum: in [0, 1), what is kept of the momentum that was stepped.
      ns_coefficients, eps, ns_steps, adjust_lr_fn: as in `Muon`; c is that of the whole matrix.
      rank: >= 1, a share of min(m, n), "full", or None for plain AdamW; a rank above min(m, n) is that.
      basis: "dct2", "dct3", "hadamard" (sides that are powers of two), "identity", which makes this `Dion2`, or "auto",
        as in `DCTAdamW`.
      norm_ord: 2 chooses by energy, 1 by the sum of magnitudes.
      proj_type: the side that is transformed: "std", "reverse_std", "left" or "right", as there.
      plain_lr, plain_betas, moment_dtype, plain_moment_dtype, rounding, seed, nonfinite, maximize, stacked: as in
        `Muon`.

    Raises, warns, determinism: as in `GaLoreAdamW`; ValueError where `basis` is "hadamard" and the side is no power of
      two.

    Source: Modoranu et al. 2025 (arXiv:2505.17967). Deviations: momentum in coordinates, which is the same and costs no
      product; ranking by energy, ties to the lower index.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import Trion
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = Trion(layer.parameters(), lr=0.02, plain_lr=0.001, rank=8)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state[layer.weight]["proj.dct2"].shape  # the frequencies that were chosen
      torch.Size([8])
    """

    full_rank: ClassVar[str] = "project"
    deciding: ClassVar[tuple[str, ...]] = ("basis",)

    def __init__(
        self,
        params: Params,
        lr: float | torch.Tensor = 2e-2,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        rank: Rank | None = 0.25,
        basis: str = "dct2",
        norm_ord: int = 2,
        proj_type: str = "std",
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
        op, basis = cls.__name__, group["basis"]
        selection = EachStepSelection(basis, group["norm_ord"], spectral=True)
        return orthogonal_parts(op, one_sided(op, group), weight, selection, basis)
