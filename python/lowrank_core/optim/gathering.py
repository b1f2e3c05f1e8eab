"""How the gradients of a step come to the loop: from `.grad` or from a source, sorted into buckets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from lowrank_core.memory.geometry import Side
from lowrank_core.optim import devices
from lowrank_core.optim.admission import all_ordinary, check_device, check_ready
from lowrank_core.optim.base import StateOptimizer
from lowrank_core.optim.bucket import Alike, Bucket
from lowrank_core.optim.checkpoint import check_state
from lowrank_core.optim.devices import can_draw
from lowrank_core.optim.draft import Draft
from lowrank_core.optim.options import check_rates
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.slots import Key, Slot
from lowrank_core.optim.states import keep_state, open_state, state_of

Drafts = dict[Bucket, Draft]


@dataclass
class Kind:
    """Weights of one group, device and dtype that have the same parts, in buckets by what else differs."""

    parts: Parts
    buckets: dict[tuple[bool, ...], tuple[Bucket, Draft]] = field(default_factory=dict)


@dataclass
class Sorting:
    """What is known while the gradients of one step are sorted into the drafts of their buckets."""

    asked: dict[int, tuple[Any, ...]]  # by group: the keys that decide what its states look like
    edited: set[int]  # the groups whose states were last compared with other ones
    kinds: dict[tuple[Any, ...], Kind] = field(default_factory=dict)
    drafts: Drafts = field(default_factory=dict)


class Source(Protocol):
    """Where the gradients of a step come from, if they are not left in `param.grad`."""

    def ready(self) -> bool:
        """Gets everything ready for a step. False: there is none to take, because a gradient is not finite."""
        ...

    def drafts(self) -> dict[Key, Draft]:
        """Hands over what it holds: a draft of each weight that has a gradient."""
        ...

    @property
    def clips_late(self) -> bool:
        """True if the gradients of the step are to be clipped together, once all subspaces are up to date."""
        ...

    def clip(self, drafts: Drafts) -> None:
        """Scales all gradients of a step. Weights and moments are as they were."""
        ...

    def drop(self) -> None:
        """Forgets what it holds."""
        ...


class GatheringOptimizer(StateOptimizer):
    """Gathers the gradients of a step by what their parameters have in common."""

    _source: Source | None = None  # of gradients that are not left in `param.grad`; no copy has it

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients of all parameters, as torch does, and forgets those that `fused_backward` holds."""
        if self._source is not None:
            self._source.drop()
        super().zero_grad(set_to_none)

    def _gather(self) -> Drafts:
        """All gradients, in drafts by what their parameters have in common.

        Nothing else reads `param.grad`, but for a source that has taken the gradients before.
        """
        sorting = self._sorting()
        if self._source is not None:
            held = self._source.drafts()
            for number, group, slot in self._slots():
                if (one := held.get(slot.key)) is not None:
                    self._sorted(sorting, number, group, slot, one)[1].extend(one)
        else:
            taking = [(*place, grad) for place in self._slots() if (grad := place[2].param.grad) is not None]
            ordinary = all_ordinary((slot for _, _, slot, _ in taking), (grad for *_, grad in taking))
            for number, group, slot, grad in taking:
                if not ordinary:
                    check_ready(slot, grad)
                draft = self._sorted(sorting, number, group, slot)[1]
                draft.add(slot, slot.as_matrix(slot.own(grad)) if ordinary else slot.gradient(grad))
        self._asked = sorting.asked
        return sorting.drafts

    def _sorting(self) -> Sorting:
        asked = self._layout_keys()
        return Sorting(asked, {number for number in asked if self._asked.get(number, asked[number]) != asked[number]})

    def _sorted(
        self, sorting: Sorting, number: int, group: dict[str, Any], slot: Slot, held: Draft | None = None
    ) -> tuple[Bucket, Draft]:
        """The bucket of `slot`, and its draft. `held`: what a source holds of the gradient, if it has taken it."""
        where, weight, varied = slot.geometry, slot.weight, self.varied(group, slot)
        key = (number, weight.device, weight.dtype, *varied.values())
        kind = sorting.kinds.get(key)
        if kind is None:
            check_rates(type(self).__name__, group, waiting=False)
            kind = sorting.kinds[key] = Kind(self._parts_held(key, {**group, **varied}, weight))
        if number in sorting.edited:
            self._check_edit(group, slot)
        projected = where is not None
        two_sided = where is not None and where.side == Side.BOTH
        settled, freed = held is not None and held.settled, held is not None and held.freed
        due = projected and not settled and self._due(slot, kind.parts)
        differs = projected, two_sided, slot.is_stored_as_matrix, due
        place = *differs, settled, freed
        found = kind.buckets.get(place)
        if found is None:
            alike = Alike(*differs, weight.device, weight.dtype)
            bucket = Bucket.of(group, kind.parts, alike, watches=self.watches)
            check_device(bucket)
            found = kind.buckets[place] = bucket, Draft()
            sorting.drafts[bucket] = found[1]
        return found

    def _parts_held(self, kind: tuple[Any, ...], group: dict[str, Any], weight: Tensor) -> Parts:
        """The parts of one `kind` of weights, made anew if a key of their group has changed since the last step.

        They do not depend on the rates, which the loop reads itself.
        """
        values: list[Any] = [can_draw(weight.device)]
        for key in self.defaults:
            if key not in ("lr", "weight_decay"):
                value = group[key]
                values.append(tuple(value) if isinstance(value, list) else value)
        held = self._made.get(kind)
        if held is None or held[0] != values:
            held = self._made[kind] = values, self._parts(group, weight)
        return held[1]

    def _due(self, slot: Slot, parts: Parts) -> bool:
        """True if the subspace of `slot` is to be looked for before this step."""
        state = state_of(self.state, slot)
        if parts.projector.each_step:
            return parts.projector.searches_first and not state.get("proj.refreshes")
        if not state:
            return True
        bound = self._bounds.get(slot.key) if self._bounds else None
        if bound is not None and not parts.schedule.due(slot, bound, state):
            return False
        steps = int(state["step"])  # waits for an accelerator, where a refresh seems due
        if devices.deferred(slot.param.device):
            self._bounds[slot.key] = steps
        return parts.schedule.due(slot, steps, state)

    def _check_edit(self, group: dict[str, Any], slot: Slot) -> None:
        """Raises ValueError if the state of `slot` is not what its group, which was edited, asks for now."""
        state = state_of(self.state, slot)
        if not state:
            return
        if slot.geometry is not None and state.get("proj.refreshes") == 0:  # no subspace yet: still free to choose
            fresh = open_state(self._layout(group, slot), slot.param.device)
            keep_state(self.state, slot, {**fresh, "step": state["step"]})
            return
        rank = state.get("proj.rank") if self._parts_of(group, slot).projector.ranks_vary else None
        check_state("step", slot, state, self._layout(group, slot, rank), rank is not None)
