"""FRUGAL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from lowrank_core.checks import is_number, require
from lowrank_core.memory.frugal import DENSITY, SUBSPACES, idle_bytes, place_frugal, share_of
from lowrank_core.memory.geometry import Geometry, Rank, Side
from lowrank_core.memory.storage import layout_bytes
from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, choose
from lowrank_core.optim.parts.codecs import basis_codec
from lowrank_core.optim.parts.projectors.orthonormal import RandomFrame, RandomizedSVD
from lowrank_core.optim.parts.projectors.selected import Blocks, DrawnLines
from lowrank_core.optim.parts.residuals.sign import SignRest
from lowrank_core.optim.parts.transports import Reset


class FrugalAdamW(LowRankOptimizer):
    """AdamW in a part of each gradient, and the sign of the rest: all of the gradient with a part of the state.

    W <- (1 - lr weight_decay) W - lr (up(N) + sign_scale sign(G - up(R))), R = down(G), N what Adam makes of R. The
    part is drawn anew every `update_proj_gap` steps; the moments and the count of their bias correction then start from
    zero. State: two moments of R, and what says which part it is.

    Which parameters: every matrix in a group that has a rank; vectors, scalars, complex weights and groups with
    `rank=None` are plain AdamW, and so is a matrix of which all is taken. Every argument but `params` may also be a key
    of a group; those that are not named here are as in `GaLoreAdamW`.

    Args:
      params: as there.
      lr: >= 0, number or tensor of one element. Change of a weight per step, for |N| = 1.
      rank: how much of each matrix, where `density` does not say it: a number of columns or rows, or of dimensions of
        the shorter side; or a share of them in (0, 1]. "block" takes a share, and a quarter for a number.
      density: in [0, 1]: that share of columns, rows, dimensions of the shorter side or matrices of the group; the rank
        then only marks the matrices. 0: the sign alone, without state. None: as `rank` says.
      subspace: "columns" or "rows" (drawn without replacement), "random" (an orthonormal basis drawn at random, on the
        shorter side), "svd" (the leading singular vectors there, by the randomized search) or "block" (some of the
        matrices of a group whole, others each time; the rest is stepped by the sign alone and has no state).
      sign_scale: >= 0, factor on the sign.
      update_proj_gap: >= 1, steps from one draw to the next.

    Raises, warns: as there.

    Determinism: D1 (same bits for any number of threads; docs/numerics.md).
    Source: Zmushko et al. 2024 (arXiv:2411.07837) in torch's Adam form, with AdamW and signSGD. Deviations: behind a
      basis, the sign of what is below 8 u sqrt(r) max|G| is 0, for it is rounding; at least one line or matrix is taken
      where density is above 0; bfloat16 moments are rounded without bias; no rates of their own for the two parts.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import FrugalAdamW
      >>> layer = torch.nn.Linear(64, 32)
      >>> optimizer = FrugalAdamW(layer.parameters(), lr=0.001, density=0.125)
      >>> layer(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> optimizer.state[layer.weight]["exp_avg"].shape  # of 8 columns; AdamW's would be [32, 64]
      torch.Size([32, 8])
    """

    deciding: ClassVar[tuple[str, ...]] = ("density", "subspace")

    def __init__(
        self,
        params: Params,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: Rank | None = DENSITY,
        density: float | None = None,
        subspace: str = "columns",
        sign_scale: float = 1.0,
        update_proj_gap: int = 200,
        moment_dtype: str = "auto",
        plain_moment_dtype: str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        nonfinite: str = "skip",
        maximize: bool = False,
        stagger: bool | str = "auto",
        stacked: bool = False,
        **torch_keys: object,
    ) -> None:
        super().__init__(params, keys_of(locals()), torch_keys)

    @classmethod
    def place_of(cls, shape: tuple[int, ...], group: Mapping[str, Any]) -> tuple[Geometry | None, str]:
        return place_frugal(shape, group)

    @classmethod
    def parts(cls, group: dict[str, Any], weight: torch.Tensor) -> Parts:
        op, density, codec = cls.__name__, group["density"], basis_codec(weight.dtype)
        met = density is None or (is_number(density, 0.0) and density <= 1)
        require(met, op, "density", "be a number in [0, 1], or None", density)
        lines, block = DrawnLines(), Blocks(share_of(group) or 0.0, group["update_proj_gap"])
        kinds = dict(zip(SUBSPACES, (lines, lines, RandomFrame(codec), block, RandomizedSVD(codec)), strict=True))
        chosen = choose(op, group, "subspace", kinds)
        if density == 0 and chosen is not block:  # nothing is looked for then
            chosen = lines
        residual = SignRest(1.0, group["sign_scale"])
        return Parts.of(op, group, weight, projector=chosen, residual=residual, transport=Reset())

    def planned_state_bytes(self) -> int:
        moments: dict[int, list[int]] = {}
        for number, group, slot in self._slots():
            if slot.geometry is not None and slot.geometry.side == Side.WHOLE:
                whole, none = (layout_bytes(self._layout(group, slot, rank)) for rank in (slot.geometry.rank, 0))
                moments.setdefault(number, []).append(whole - none)
        idle = [idle_bytes(share_of(self.param_groups[i]) or 0.0, sizes) for i, sizes in moments.items()]
        return super().planned_state_bytes() - sum(idle)
