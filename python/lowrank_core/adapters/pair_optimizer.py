"""AdamW whose gradients of two factors are changed first, pair by pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.adapters.find import Pair, require_pairs
from lowrank_core.checks import require
from lowrank_core.optim.base import Params
from lowrank_core.optim.gathering import Drafts
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of
from lowrank_core.optim.parts import Parts, taken_whole
from lowrank_core.optim.parts.rules.adam import Adam

Grads = list[Tensor]
# Keys that the loop reads, which have one value here: nothing is projected.
_FIXED: Mapping[str, Any] = {"rank": None, "stacked": False, "plain_moment_dtype": None}


class PairOptimizer(LowRankOptimizer):
    """What the optimizers of pairs share: a subclass says in `turned` what becomes of the gradients of a pair.

    All that is trained in the model is stepped, by AdamW; the gradients of factors of which both are trained and have a
    gradient are turned before. `.grad` stays as it is. A gradient that is not finite skips the whole step.
    """

    def __init__(self, model: nn.Module, params: Params | None, arguments: dict[str, Any]) -> None:
        self.pairs: list[Pair] = require_pairs(type(self).__name__, model)
        if params is None:
            params = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        keys = {key: value for key, value in keys_of(arguments).items() if key != "model"}
        super().__init__(params, {**_FIXED, **keys}, arguments["torch_keys"])

    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        return taken_whole(cls.__name__, group, weight, rule=Adam(group["betas"], group["eps"]))

    def check_group(self, group: dict[str, Any]) -> None:
        for key, value in _FIXED.items():
            require(group[key] == value, type(self).__name__, key, "be left out of its groups", group[key])
        super().check_group(group)

    def turned(self, pairs: list[Pair], ga: Grads, gb: Grads) -> tuple[Grads, Grads]:
        """What AdamW is to take for the gradients `ga` [r, n] and `gb` [m, r] of each pair; new tensors."""
        raise NotImplementedError

    def _apply(self, drafts: Drafts) -> None:
        super()._apply(self._changed(drafts))

    def _changed(self, drafts: Drafts) -> Drafts:
        """`drafts` with the gradients of pairs turned."""
        at = {slot.param: (draft, i) for draft in drafts.values() for i, slot in enumerate(draft.slots)}
        found = [pair for pair in self.pairs if pair.a in at and pair.b in at]
        whole = {param: _grad(at, param) for pair in found for param in (pair.a, pair.b)}
        if not found:
            return drafts
        ga, gb = [pair.a_of(whole[pair.a]) for pair in found], [pair.b_of(whole[pair.b]) for pair in found]
        fresh = {param: torch.empty_like(grad, memory_format=torch.contiguous_format) for param, grad in whole.items()}
        for pair, a, b in zip(found, *self.turned(found, ga, gb), strict=True):
            pair.a_of(fresh[pair.a]).copy_(a)
            pair.b_of(fresh[pair.b]).copy_(b)
        for param, grad in fresh.items():
            draft, i = at[param]
            draft.grads[i] = grad.view_as(draft.grads[i])
        return drafts

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "pairs": self.pairs}


def _grad(at: dict[Tensor, Any], param: Tensor) -> Tensor:
    draft, i = at[param]
    grad: Tensor = draft.grads[i]
    return grad.view(param.shape)


def by_rank(pairs: Iterable[Pair]) -> list[list[int]]:
    """The numbers of the pairs of one rank and device together."""
    found: dict[Any, list[int]] = {}
    for number, pair in enumerate(pairs):
        found.setdefault((pair.rank, pair.a.device), []).append(number)
    return list(found.values())
