"""AdamW whose gradients of two factors are changed first, pair by pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowrank_core.adapters.find import Pair, require_pairs
from lowrank_core.adapters.fixed import UNPROJECTED, check_fixed
from lowrank_core.checks import require
from lowrank_core.optim.base import Params
from lowrank_core.optim.gathering import Drafts
from lowrank_core.optim.loop import LowRankOptimizer
from lowrank_core.optim.options import keys_of, own_keys
from lowrank_core.optim.parts import Parts, taken_whole
from lowrank_core.optim.parts.rules.adam import Adam


class Gradients(NamedTuple):
    """Of a pair: what it has, and where what an optimizer takes for it goes."""

    pair: Pair
    ga: Tensor  # [r, n]
    gb: Tensor  # [m, r]
    new_a: Tensor  # [r, n]
    new_b: Tensor  # [m, r]


class PairOptimizer(LowRankOptimizer):
    """What the optimizers of pairs share: a subclass says in `turn` what becomes of the gradients of pairs.

    All that is trained in the model is stepped, by AdamW; the gradients of factors of which both are trained and have a
    gradient are turned before. `.grad` stays as it is. A gradient that is not finite skips the whole step.
    """

    def __init__(self, model: nn.Module, params: Params | None, arguments: dict[str, Any]) -> None:
        self.pairs: list[Pair] = require_pairs(type(self).__name__, model)
        if params is None:
            params = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        keys = {key: value for key, value in keys_of(arguments).items() if key != "model"}
        own_keys(type(self).__name__, arguments["torch_keys"], keys)  # `UNPROJECTED` has none that can be given
        super().__init__(params, {**UNPROJECTED, **keys}, arguments["torch_keys"])
        given = {param for group in self.param_groups for param in group["params"]}
        rule = "hold both factors of one of the adapters of `model` or more"
        met = any(pair.a in given and pair.b in given for pair in self.pairs)
        require(met, type(self).__name__, "params", rule, f"{len(given)} without", "pass those of this model")

    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        return taken_whole(cls.__name__, group, weight, rule=Adam(group["betas"], group["eps"]))

    def check_group(self, group: dict[str, Any]) -> None:
        check_fixed(type(self).__name__, group, UNPROJECTED)
        super().check_group(group)

    def turn(self, some: list[Gradients]) -> None:
        """Writes what AdamW is to take for the gradients of `some` pairs."""
        raise NotImplementedError(f"{type(self).__name__}: an optimizer of pairs must say in `turn` what it takes")

    def by_param(self, key: str) -> dict[Tensor, Any]:
        """What the group of each parameter has under `key`."""
        return {param: group[key] for group in self.param_groups for param in group["params"]}

    def _apply(self, drafts: Drafts) -> None:
        at = {slot.param: (draft.grads, i) for draft in drafts.values() for i, slot in enumerate(draft.slots)}
        for param, new in self._turned({param: grads[i] for param, (grads, i) in at.items()}).items():
            grads, i = at[param]
            grads[i] = new
        super()._apply(drafts)

    def _turned(self, grads: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """What is taken for the gradients of pairs among `grads`, which are by parameter."""
        found = [pair for pair in self.pairs if pair.a in grads and pair.b in grads]
        new: dict[Tensor, Tensor] = {}
        for param in (param for pair in found for param in (pair.a, pair.b)):
            if param not in new:
                new[param] = torch.empty_like(grads[param], memory_format=torch.contiguous_format)
        some = []
        for pair in found:
            a, b, a_of, b_of = pair.a, pair.b, pair.a_of, pair.b_of
            some.append(Gradients(pair, a_of(grads[a]), b_of(grads[b]), a_of(new[a]), b_of(new[b])))
        if some:
            self.turn(some)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "pairs": self.pairs}
