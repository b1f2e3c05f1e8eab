"""What all optimizers of the package share besides the step: groups, plan, memory, loading and saving."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrank_core.checks import called
from lowrank_core.memory.estimate import DECIDING
from lowrank_core.memory.geometry import Geometry, place_by, rank_of
from lowrank_core.memory.plan import PlanRow, format_plan
from lowrank_core.memory.storage import FORMAT, Layout, layout_bytes
from lowrank_core.optim.admission import admit, check_lengths, warn_if_plain
from lowrank_core.optim.checkpoint import Reader, placed, vet
from lowrank_core.optim.dtypes import name_of
from lowrank_core.optim.options import check_values, own_keys, plain_numbers
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.slots import SLOT_KEYS, Key, Slot, State, by_param, fit, slots
from lowrank_core.optim.states import flat, keep_state, open_state, resized, state_of
from lowrank_core.optim.takeover import Carried, carry, states_of
from lowrank_core.optim.watch import Watch
from lowrank_core.telemetry import Projection

logger = logging.getLogger("lowrank_core.optim")

Params = Iterable[Any]  # tensors, (name, tensor) pairs or groups, as every torch optimizer takes them

_NO_WEIGHT = torch.empty(0, device="meta")  # stands for any, where only the keys of a group are looked at


class StateOptimizer(torch.optim.Optimizer):
    """An optimizer whose groups name parts, and whose state is what those parts describe."""

    FORMAT: ClassVar[int] = FORMAT  # of the states it writes
    ADDED: ClassVar[Mapping[str, Any]] = {"stagger": False, "stacked": False}  # how states acted that lack these
    full_rank: ClassVar[str] = "plain"  # a matrix whose rank is not below min(m, n), as in `place_by`
    deciding: ClassVar[tuple[str, ...]] = ()  # the keys of its own that decide what its states look like

    def __init__(self, params: Params, defaults: dict[str, Any], torch_keys: dict[str, Any] | None = None) -> None:
        self.watches: tuple[Watch, ...] = ()  # those who are told what no state holds
        self._skipped: int | Tensor = 0
        self._bounds: dict[Key, int] = {}  # by weight: upper bounds of step counts that live on an accelerator
        self._made: dict[tuple[Any, ...], tuple[list[Any], Parts]] = {}  # by kind: keys, their parts
        self._held: dict[int, tuple[list[Any], list[Slot]]] = {}  # by group: what its slots were made of, and these
        self._asked: dict[int, tuple[Any, ...]] = {}  # by group: the keys that its states were last compared with
        own_keys(type(self).__name__, {**defaults, **(torch_keys or {})}, defaults)
        defaults = plain_numbers(defaults)
        if not isinstance(params, Tensor):  # which torch refuses itself
            params = list(params)
            if any(isinstance(entry, dict) and entry.get("rank") is not None for entry in params):
                defaults = {**defaults, "rank": None}  # as with GaLore: a group without a rank is plain then
        super().__init__(params, defaults)
        plan = self.plan()
        warn_if_plain(type(self).__name__, self.param_groups, plan)
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s\n%s", type(self).__name__, format_plan(plan))

    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        """The parts for weights of the dtype and on the device of `weight`. Raises ValueError for a bad value."""
        raise NotImplementedError(f"{cls.__name__}: an optimizer must name its `parts`")

    @classmethod
    def rank_of(cls, group: Mapping[str, Any], shorter: int) -> int | None:
        """The rank that `group` asks for in a matrix with `shorter` = min(m, n); None if it asks for none."""
        return rank_of(group, shorter)

    @classmethod
    def place_of(cls, shape: tuple[int, ...], group: Mapping[str, Any]) -> tuple[Geometry | None, str]:
        """Where a weight of `shape` in `group` is projected, as `place` says it."""
        return place_by(shape, group, cls.rank_of, cls.full_rank)

    def varied(self, group: dict[str, Any], slot: Slot) -> dict[str, Any]:
        """What `parts` is told of `slot` besides the keys of its `group`: where the weights of one group differ."""
        return {}

    @classmethod
    def migrate(cls, state: State, fresh: State, group: dict[str, Any]) -> State:
        """An older state in today's format.

        Args:
          state: of format 1, in which a parameter with zero gradients alone held its count of steps and nothing else,
            and a subspace was looked for if the count was a multiple of the gap.
          fresh: the state as it is opened today.
          group: the parameter's, as saved.
        """
        if "proj.rank" not in fresh:
            return state
        looked = {"proj.last_look": int(state["step"]) - 1} if "proj.rank" in state else {}
        return {**fresh, **state, **looked}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, for this class or from another optimizer.

        Raises:
          TypeError: a key is unknown, or a parameter is to be trained in a dtype that no step computes in.
          ValueError: a value is out of its range.
          NotImplementedError: a parameter is a wrapper, such as a DTensor.
        """
        op = type(self).__name__
        group = plain_numbers({**self.defaults, **own_keys(op, param_group, self.defaults)})
        self.check_group(group)
        admit(op, group, self.param_groups)
        check_lengths(op, group, lambda shape: place_by(shape, group, self.rank_of, self.full_rank)[0])
        super().add_param_group(group)

    def check_group(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a value of `group` is out of its range."""
        with called(type(self).__name__):
            check_values(type(self).__name__, group)
        self._parts(group, _NO_WEIGHT)

    def plan(self) -> list[PlanRow]:
        """How each parameter is treated, and why: one row each, in order. Matrices of a stack are treated alike."""
        return [slot.row for _, _, slot in self._slots() if not slot.expert]

    def projections(self) -> list[Projection]:
        """The subspace of each projected weight. It reads the captured shares and so waits for an accelerator."""
        found = []
        for _, group, slot in self._slots():
            if slot.geometry is not None:
                state = state_of(self.state, slot)
                refreshes = state.get("proj.refreshes", 0)
                captured = float(state["proj.captured"]) if refreshes and "proj.captured" in state else None
                side, rank = slot.geometry.side.name.lower(), state.get("proj.rank", slot.geometry.rank)
                last = state["proj.last_refresh"] if refreshes else None
                if captured is not None and self._parts_of(group, slot).projector.each_step:
                    refreshes = int(state["step"])
                    last = refreshes - 1
                found.append(Projection(slot.name, slot.shape, side, rank, captured, refreshes, last))
        return found

    def state_bytes(self) -> int:
        """Bytes of the state held now: whole storages, each counted once, so that a leaked view shows."""
        values = (value for state in self.state.values() for value in state.values())
        storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def slots(self) -> list[Slot]:
        """Every weight as a step sees it, in order: each parameter, or each matrix of one that is a stack."""
        return [slot for _, _, slot in self._slots()]

    def finished_steps(self, slot: Slot) -> int:
        """How many steps the weight of `slot` has taken; on an accelerator those that were skipped may count too."""
        state = state_of(self.state, slot)
        if not state:
            return 0
        return self._bounds[slot.key] if slot.key in self._bounds else int(state["step"])

    def planned_state_bytes(self) -> int:
        """Bytes of the state once every parameter has taken a step, each subspace at its largest rank."""
        return sum(layout_bytes(self._layout(group, slot)) for _, group, slot in self._slots())

    @property
    def skipped_steps(self) -> int:
        """Steps not taken because a gradient was not finite. It reads the count and so waits for an accelerator."""
        return int(self._skipped)

    def state_dict(self) -> dict[str, Any]:
        """It holds tensors and plain numbers only; a NumPy number in a group becomes a Python number.

        Tensors have the shapes of the largest rank; they are zero beyond the rank of the subspace (`proj.rank`).
        """
        packed: dict[str, Any] = super().state_dict()
        whole: dict[Tensor, Any] = {}
        for _, group, slot in self._slots():
            state = state_of(self.state, slot)
            if slot.geometry is not None and state.get("proj.rank", slot.geometry.rank) < slot.geometry.rank:
                state = resized(state, self._layout(group, slot))
            keep_state(whole, slot, state)
        states = {number: state for number, state in enumerate(map(flat, whole.values())) if state}
        groups = list(map(plain_numbers, packed["param_groups"]))
        return {**packed, "state": packed["state"] | states, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over groups and state: dtypes as saved, tensors moved to the device of their parameter.

        A key that an older version did not have yet gets the value that this version acted by.

        Raises:
          ValueError: another optimizer or a newer format version wrote it, or it is for parameters of other shapes,
            ranks or sides. Nothing is changed then.
        """
        fitting: dict[int, State] = {}

        def take(_: torch.optim.Optimizer, seen: dict[str, Any]) -> dict[str, Any]:
            added = {key: value for key, value in self.ADDED.items() if key in self.defaults}
            if isinstance(seen, dict) and "param_groups" in seen:
                seen = {**seen, "param_groups": [{**added, **group} for group in seen["param_groups"]]}
            fitting.update(vet(self._reader(), by_param(self.slots()), self.param_groups, seen))
            return {**seen, "state": {}}  # torch would cast all of it to the parameters' dtypes

        def put(_: torch.optim.Optimizer) -> None:
            self._asked = self._layout_keys()
            for _number, group, slot in self._slots():
                if (state := fitting.get(slot.index)) is not None:
                    layout = self._layout(group, slot, state.get("proj.rank"))
                    keep_state(self.state, slot, placed(state, slot, layout))

        # The last hook before and the first one after, so that hooks of the user's see what they always see.
        with (
            self.register_load_state_dict_pre_hook(take),
            self.register_load_state_dict_post_hook(put, prepend=True),
        ):
            super().load_state_dict(state_dict)

    def from_state(self, saved: torch.optim.Optimizer | Mapping[str, Any]) -> list[Carried]:
        """Takes over what fits of the state of torch's AdamW or of galore_torch, in the middle of a run.

        Plain weights get moments and step of AdamW; projected ones those of galore_torch with their basis, where rank
        and side are the same. What does not fit starts anew, its bias correction too. Groups stay as they are: a rate
        or a schedule is yours to carry.

        Args:
          saved: the optimizer, whose parameters are recognized as themselves; or its `state_dict()`, by names where
            both have them, else by position in the same groups. A Trainer's goes into the optimizer that wrote it.

        Returns:
          One row for each weight: its name, whether something was carried, and what, or why not.

        Raises:
          ValueError: the parameters cannot be told. Nothing is changed then.
        """
        places = [(group, slot) for _, group, slot in self._slots()]
        sizes = [len(group["params"]) for group in self.param_groups]
        states = states_of(saved, [slot for _, slot in places], sizes)
        rows, found = [], dict[Slot, State]()
        for group, slot in places:
            state, reason = None, "it has no state there: it starts anew"
            if slot in states:
                parts, fresh = self._parts(group, slot.weight), open_state(self._layout(group, slot), slot.param.device)
                state, reason = carry(slot, parts, states[slot], fresh, group.get("update_proj_gap", 1))
            rows.append(Carried(slot.name, state is not None, reason))
            found |= {slot: state} if state else {}
        self.state.clear()
        for slot, state in found.items():
            keep_state(self.state, slot, state)
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_skipped": self._skipped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds it; it is no key of ours
        self._bounds, self._made, self._held, self._asked = {}, {}, {}, self._layout_keys()
        self.watches = ()

    def _parts(self, group: dict[str, Any], weight: Tensor) -> Parts:
        """`parts`, whose refusals name this class."""
        with called(type(self).__name__):
            return self.parts(group, weight)

    def _parts_of(self, group: dict[str, Any], slot: Slot) -> Parts:
        return self._parts({**group, **self.varied(group, slot)}, slot.weight)

    def _layout(self, group: dict[str, Any], slot: Slot, rank: int | None = None) -> Layout:
        """Every entry of the state of `slot`, at the largest rank or at another one."""
        where = slot.geometry if rank is None or slot.geometry is None else slot.geometry.at(rank)
        return self._parts_of(group, slot).layout(where, tuple(slot.weight.shape), name_of(slot.weight.dtype))

    def _layout_keys(self) -> dict[int, tuple[Any, ...]]:
        """By group: the keys that decide what its states look like."""
        deciding = ("rank", "stacked", *sorted(DECIDING), *self.deciding)
        return {i: tuple(group.get(key) for key in deciding) for i, group in enumerate(self.param_groups)}

    def _reader(self) -> Reader:
        return Reader(
            kind=type(self).__name__,
            keys=self.defaults,
            format=self.FORMAT,
            migrate=self.migrate,
            check_group=self.check_group,
            varies=lambda group: self._parts(group, _NO_WEIGHT).projector.ranks_vary,
            layout=self._layout,
            open=lambda group, slot: open_state(self._layout(group, slot), slot.param.device),
        )

    def _slots(self) -> Iterator[tuple[int, dict[str, Any], Slot]]:
        """(number of the group, group, slot) of every weight."""
        start = first = 0
        for number, group in enumerate(self.param_groups):
            held = self._slots_held(number, group, start, first)
            for slot in held:
                yield number, group, slot
            start, first = start + len(group["params"]), first + len(held)

    def _slots_held(self, number: int, group: dict[str, Any], start: int, first: int) -> list[Slot]:
        """The slots of one group, made anew if it or one of its parameters has changed since the last call."""
        values: list[Any] = [start, first, *(group.get(key) for key in (*SLOT_KEYS, *self.deciding))]
        held, params = self._held.get(number), group["params"]
        if held is None or held[0] != values or not fit(held[1], params):
            names = group.get("param_names")
            values = [list(names) if value is names and names else value for value in values]
            held = self._held[number] = values, list(slots(group, start, first, self.place_of))
        return held[1]
