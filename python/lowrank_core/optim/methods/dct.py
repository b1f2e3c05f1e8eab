"""DCT-AdamW."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from lowrank_core.checks import require, require_choice
from lowrank_core.memory.geometry import Rank
from lowrank_core.memory.storage import MOMENT_DTYPES
from lowrank_core.optim.base import Params
from lowrank_core.optim.dtypes import name_of
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, one_sided
from lowrank_core.optim.parts.codecs import moment_codec
from lowrank_core.optim.parts.projectors.selection import EachStepSelection, Selection
from lowrank_core.optim.parts.residuals.drop import Drop
from lowrank_core.optim.parts.residuals.feedback import Feedback
from lowrank_core.optim.parts.rules.column_adam import ColumnAdam
from lowrank_core.optim.parts.transports import Rotate


class DCTAdamW(LowRankOptimizer):
    """AdamW in the coordinates of a few cosines, chosen anew at every step; there is no search and no stored basis.

    With the orthonormal basis Q of a cosine transform on the shorter side and the coordinates S = G Q + E (basis on the
    right): I = the r columns of S with the most energy, R = S_I, Adam on R gives N, and
    W <- (1 - lr weight_decay) W - lr N Q_I^T, E <- S with the columns I set to zero. No part of a gradient is lost:
    what was not chosen waits in E. Moments move with their atoms, which is copying; an atom that enters starts at zero,
    and its bias correction counts its own steps.
    State: 2 l r elements with l = max(m, n), m n of E (none without `error_feedback`), r numbers and counts.

    Which parameters, and all keys that are not named here: as `GaLoreAdamW`. There is no `scale`.

    Args:
      params: as there.
      lr: >= 0, number or tensor of one element. Change of a weight per step, for |N| = 1.
      rank: >= 1, a share of min(m, n), or None for plain AdamW.
      update_proj_gap: >= 1, steps from one choice of atoms to the next.
      proj_type: "std", "reverse_std", "left" or "right", as there.
      basis: "dct2" (atom k is the cosine of frequency k), "dct3", "hadamard" (sides that are powers of two),
        "identity" (rows or columns themselves), or "auto": for each weight "identity" or "dct2". It takes the one whose
        atoms, chosen as `norm_ord` says, hold more of the squared norm of its first gradient that is finite and not
        zero; at a tie "identity", which costs no transform. It keeps it; `proj.auto_basis` of its state is 0 or 1.
      norm_ord: 2 chooses by energy, which keeps most of S; 1 by the sum of magnitudes, as the authors' code.
      error_feedback: whether E is kept.
      error_feedback_dtype: how E is stored, with the values of `moment_dtype`.
      stagger: as there, where the gap is above 1.

    Raises, warns, determinism: as there; ValueError where `basis` is "hadamard" and the side is no power of two.

    Source: Modoranu et al. 2025 (arXiv:2505.17967), in torch's Adam form. Deviations: feedback in coordinates, which is
      the same and costs no product; ranking by energy, ties to the lower index; counts of each atom; choices fall
      before steps 0, gap, 2 gap, ...; feedback and rotation are on by default; "auto" is ours.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import DCTAdamW
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = DCTAdamW(layer.parameters(), lr=0.01, rank=8)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state[layer.weight]["proj.dct2"].shape  # the frequencies that were chosen
      torch.Size([8])
    """

    deciding: ClassVar[tuple[str, ...]] = ("basis", "error_feedback", "error_feedback_dtype")

    def __init__(
        self,
        params: Params,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: Rank | None = 0.25,
        update_proj_gap: int = 1,
        proj_type: str = "std",
        basis: str = "dct2",
        norm_ord: int = 2,
        error_feedback: bool = True,
        error_feedback_dtype: str = "auto",
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
        op, basis, fed_back = cls.__name__, group["basis"], group["error_feedback"]
        require(isinstance(fed_back, bool), op, "error_feedback", "be True or False", fed_back)
        require_choice(op, "error_feedback_dtype", group["error_feedback_dtype"], MOMENT_DTYPES)
        kind = EachStepSelection if group["update_proj_gap"] == 1 else Selection
        codec = moment_codec(group["error_feedback_dtype"], weight)
        return Parts.of(
            op,
            one_sided(op, group),
            weight,
            projector=kind(basis, group["norm_ord"], spectral=fed_back),
            residual=Feedback(basis=basis, codec=codec, weight=name_of(weight.dtype)) if fed_back else Drop(),
            rule=ColumnAdam(group["betas"], group["eps"]),
            transport=Rotate(),
        )
