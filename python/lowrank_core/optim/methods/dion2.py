"""Dion2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from lowrank_core.checks import is_number, require
from lowrank_core.memory.atoms import share_rank
from lowrank_core.memory.geometry import FULL, Rank
from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, one_sided
from lowrank_core.optim.parts.orthogonal import orthogonal_parts
from lowrank_core.optim.parts.projectors.selection import EachStepSelection


class Dion2(LowRankOptimizer):
    """Muon of a part of each matrix: the rows or columns in which most momentum has gathered.

    B <- B + G; I = the `fraction` of the rows (columns, where they are fewer) of B with the largest norms;
    O = the orthogonal factor of B_I, roughly; B_I <- momentum B_I; W <- (1 - lr weight_decay) W, W_I <- W_I - lr c O.
    What was not chosen keeps its momentum, and is chosen soon. Newton-Schulz costs `fraction`^2 of Muon's; with
    `fraction=1` this is Muon without Nesterov's step. State: m n elements.

    Args:
      params: as in `GaLoreAdamW`.
      lr: >= 0, number or tensor of one element.
      weight_decay: as there, of the whole matrix.
      momentum: in [0, 1), what is kept of the momentum that was stepped.
      ns_coefficients, eps, ns_steps, adjust_lr_fn: as in `Muon`; c is that of the whole matrix.
      fraction: in (0, 1], of min(m, n); rounded up.
      norm_ord: 1 compares rows by the sum of magnitudes, 2 by that of squares.
      proj_type: "std" chooses on the shorter side, of a square matrix columns; "reverse_std", "left" (rows) or "right".
      rank: any int, share or "full" marks the matrices of a group as Dion2's, and changes nothing else; None means
        plain AdamW.
      plain_lr, plain_betas, moment_dtype, plain_moment_dtype, rounding, seed, nonfinite, maximize, stacked: as in
        `Muon`.

    Raises, warns, determinism: as in `GaLoreAdamW`.

    Source: Ahn et al. 2025 (Dion2, arXiv:2512.16928). Deviations: Muon's coefficients, of which theirs has a table;
      columns, where theirs has rows, of a square matrix; their factor on the rate is one of `adjust_lr_fn`'s.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import Dion2
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = Dion2(layer.parameters(), lr=0.02, plain_lr=0.001)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state[layer.weight]["proj.identity"].shape  # the rows that were stepped
      torch.Size([8])
    """

    full_rank: ClassVar[str] = "project"
    deciding: ClassVar[tuple[str, ...]] = ("fraction",)

    def __init__(
        self,
        params: Params,
        lr: float | torch.Tensor = 1e-2,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        fraction: float = 0.25,
        norm_ord: int = 1,
        proj_type: str = "std",
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
    def rank_of(cls, group: Mapping[str, Any], shorter: int) -> int | None:
        return share_rank(group, shorter)

    @classmethod
    def parts(cls, group: dict[str, Any], weight: torch.Tensor) -> Parts:
        op, fraction = cls.__name__, group["fraction"]
        met = is_number(fraction, 0.0) and 0 < fraction <= 1
        require(met, op, "fraction", "be a number in (0, 1]", fraction)
        selection = EachStepSelection("identity", group["norm_ord"], spectral=True)
        return orthogonal_parts(op, one_sided(op, group), weight, selection)
