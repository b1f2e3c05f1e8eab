"""SCALE."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from lowrank_core.checks import require
from lowrank_core.memory.geometry import Rank
from lowrank_core.memory.methods import last_matrices
from lowrank_core.memory.plan import PlanRow
from lowrank_core.optim.base import Params
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, taken_whole
from lowrank_core.optim.parts.rules.lines import Lines, MomentumLines
from lowrank_core.optim.slots import Key, Slot


class SCALE(LowRankOptimizer):
    """The gradient with normalized lines, and momentum for the last layer alone: a control without matrix state.

    W <- (1 - lr weight_decay) W - lr N(G), N divides each row of [out, in] by its root mean square; of an embedding
    [vocabulary, width], whose name has "embed" in it, each column. The last layer steps along N(M) with
    M <- momentum M + (1 - momentum) G. State: m n elements of the last layer, nothing of other matrices.

    Which parameters: every matrix in a group that has a rank, whole. The rank itself, any int, share or "full", only
    marks them, so that groups of `param_groups` serve here too; weights of more than two dimensions are seen as
    [d0, the rest]. In a group with `rank=None` they are plain AdamW; so are vectors, scalars and complex weights.

    Args:
      params: as `GaLoreAdamW` takes them.
      lr: >= 0, number or tensor of one element. Change of a weight per step, for an entry of N of size 1.
      betas, eps: of AdamW, for what is no matrix.
      weight_decay: >= 0, decoupled.
      rank: marks the matrices; None: plain AdamW.
      momentum: in [0, 1), of the last layer.
      last: whether the matrices of this group are the last layer. None: that are those whose name has "lm_head" in it;
        or, if no parameter has such a name, the last matrix there is at the first step. A head that is left to
        AdamW has its moments there, and no other matrix has momentum then.
      moment_dtype: of the last layer's momentum.
      plain_moment_dtype, rounding, seed, nonfinite, maximize, stacked, torch_keys: as there.

    Raises, warns: as there.

    Determinism: D1 (same bits for any number of threads; docs/numerics.md).
    Source: Glentis et al. 2025 (arXiv:2506.16659), algorithm 1; lines and their root mean square as in the authors'
      code. Deviation: a line of zeros stays, with no epsilon anywhere.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import SCALE
      >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 10))
      >>> optimizer = SCALE(model.parameters(), lr=0.01)
      >>> model(torch.ones(4, 64)).square().mean().backward()
      >>> optimizer.step()
      >>> ["exp_avg" in optimizer.state[layer.weight] for layer in model]
      [False, True]
    """

    full_rank: ClassVar[str] = "whole"
    deciding: ClassVar[tuple[str, ...]] = ("last",)

    def __init__(
        self,
        params: Params,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rank: Rank | None = "full",
        momentum: float = 0.9,
        last: bool | None = None,
        moment_dtype: str = "auto",
        plain_moment_dtype: str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        nonfinite: str = "skip",
        maximize: bool = False,
        stacked: bool = False,
        **torch_keys: object,
    ) -> None:
        self._last: tuple[int, set[Key]] = 0, set()  # how many groups there were; those that `last=None` means
        super().__init__(params, keys_of(locals()), torch_keys)

    @classmethod
    def parts(cls, group: dict[str, Any], weight: torch.Tensor) -> Parts:
        op, last = cls.__name__, group["last"]
        require(last is None or isinstance(last, bool), op, "last", "be True, False or None", last)
        momentum = MomentumLines(rows := not group.get("embedding", False), group["momentum"])
        return taken_whole(op, group, weight, rule=momentum if last else Lines(rows))

    def plan(self) -> list[PlanRow]:
        last, rows = {s.param_name for _, group, s in self._slots() if self.varied(group, s)["last"]}, super().plan()
        return [row._replace(reason=f"{row.reason}, last: with momentum") if row.name in last else row for row in rows]

    def varied(self, group: dict[str, Any], slot: Slot) -> dict[str, Any]:
        last = slot.key in self._last_found() if group["last"] is None else group["last"]
        return {"last": last and slot.geometry is not None, "embedding": "embed" in slot.name}

    def _last_found(self) -> set[Key]:
        if self._last[0] != len(self.param_groups) and not self.state:  # settled by the first step
            places = [(group, slot) for _, group, slot in self._slots()]
            names, asked = [slot.name for _, slot in places], [group["last"] for group, _ in places]
            chosen = last_matrices(names, asked, [slot.geometry is not None for _, slot in places])
            self._last = len(self.param_groups), {places[i][1].key for i, hit in enumerate(chosen) if hit}
        return self._last[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": self._last}
