"""Loading a state: which states are refused, and what an older one lacks. This module knows no optimizer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lowrank_core.memory.geometry import Side
from lowrank_core.memory.storage import Layout
from lowrank_core.optim.dtypes import name_of
from lowrank_core.optim.slots import Slot, State
from lowrank_core.optim.states import StackedState, resized

_OP = "load_state_dict"
GEOMETRY_KEYS = ("rank", "proj_type", "force_projection", "stacked")

Group = dict[str, Any]


class Reader(NamedTuple):
    """How one optimizer reads what was saved."""

    kind: str  # its name
    keys: Collection[str]  # of its groups
    format: int  # of the states it writes
    migrate: Callable[[State, State, Group], State]  # an older state, a new one, its group -> one of this format
    check_group: Callable[[Group], None]
    varies: Callable[[Group], bool]  # whether ranks change while it trains
    layout: Callable[[Group, Slot], Layout]  # of the largest rank
    open: Callable[[Group, Slot], State]


def vet(reader: Reader, slots: Sequence[list[Slot]], groups: Sequence[Group], saved: Any) -> dict[int, State]:
    """The states in `saved`, a state dict, by the index of their weight; changes nothing.

    Args:
      slots: those of every parameter.
      groups: the groups of the optimizer that loads.

    Raises:
      ValueError: `saved` does not fit; the message names the first thing that does not.
    """
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= saved.keys():
        raise ValueError(f"{_OP}: `state_dict` must be what {reader.kind}.state_dict() returned, got no such dict")
    theirs = saved["param_groups"]
    _vet_groups(reader, groups, theirs)
    ids = [key for group in theirs for key in group["params"]]
    states: Mapping[Any, State] = saved["state"]
    if not states.keys() <= set(ids):
        strangers = sorted(map(str, states.keys() - set(ids)))
        raise ValueError(f"{_OP}: `state` must belong to the groups' parameters, got also {', '.join(strangers)}")
    fitting = {}
    of_group = [group for group in theirs for _ in group["params"]]
    for key, group, weights in zip(ids, of_group, slots, strict=True):
        if states.get(key):
            for slot, state in zip(weights, _states_in(states[key], weights), strict=True):
                fitting[slot.index] = _vet_state(reader, slot, group, state)
    return fitting


def _states_in(saved: State, weights: list[Slot]) -> list[State]:
    """The state of each of the `weights` of one parameter."""
    if weights[0].expert is None:
        return [saved]
    try:
        return StackedState.of(saved, len(weights)).parts
    except KeyError as error:
        raise ValueError(
            f"{_OP}: the state of `{weights[0].param_name}` must be of {len(weights)} matrices, got the key {error}; "
            "it is of another model, or damaged"
        ) from None


def _vet_groups(reader: Reader, ours: Sequence[Group], theirs: Sequence[Group]) -> None:
    for saved in theirs:
        missing = sorted(set(reader.keys) - saved.keys())
        if missing:
            raise ValueError(
                f"{_OP}: `state_dict` must come from {reader.kind}, got groups without {', '.join(missing)}; "
                "what fits of a state of AdamW or galore_torch is taken over by `from_state`"
            )
    sizes, asked = [len(group["params"]) for group in theirs], [len(group["params"]) for group in ours]
    if sizes != asked:
        raise ValueError(
            f"{_OP}: `state_dict` must hold groups of {asked} parameters, got {sizes}; "
            "give the optimizer the same model and the same groups as when it was saved"
        )
    for number, (saved, own) in enumerate(zip(theirs, ours, strict=True)):
        for key in GEOMETRY_KEYS:
            if saved.get(key) != own.get(key):
                raise ValueError(
                    f"{_OP}: `{key}` of group {number} must be {saved[key]!r} as saved, got {own[key]!r}; "
                    f"build the optimizer with {key}={saved[key]!r}, or start without the saved state"
                )
        reader.check_group(saved)


def _vet_state(reader: Reader, slot: Slot, group: Group, state: State) -> State:
    written = state.get("format")
    if not isinstance(written, int) or not 1 <= written <= reader.format:
        raise ValueError(
            f"{_OP}: `format` of the state of `{slot.name}` must be 1 to {reader.format}, got {written}; "
            "load it with the version of lowrank_core that wrote it"
        )
    if written < reader.format:
        state = {**reader.migrate(state, reader.open(group, slot), group), "format": reader.format}
    check_state(_OP, slot, state, reader.layout(group, slot), reader.varies(group))
    return state


def check_state(op: str, slot: Slot, state: State, layout: Layout, varies: bool) -> None:
    """Raises ValueError if `state` does not hold what `layout` says; `varies`: its rank may be below the largest."""
    check_geometry(op, slot, state, varies)
    if state.keys() != layout.keys():
        raise ValueError(
            f"{op}: the state of `{slot.name}` must hold {', '.join(sorted(layout))}, "
            f"got {', '.join(sorted(state))}; it is of another optimizer, of other keys of its group, or damaged"
        )
    for key, field in layout.items():
        held, number = state[key], not isinstance(field.dtype, str)
        got = f"{tuple(held.shape)} {name_of(held.dtype)}" if isinstance(held, Tensor) else type(held).__name__
        wanted = field.dtype.__name__ if not isinstance(field.dtype, str) else f"{field.shape} {field.dtype}"
        if got != wanted:
            raise ValueError(
                f"{op}: `{key}` of `{slot.name}` must be {wanted}, got {got}; "
                + ("it is damaged" if number else "the saved model has other shapes or another dtype")
            )


def check_geometry(op: str, slot: Slot, state: State, varies: bool = False) -> None:
    """Raises ValueError if `state` was made on another side or at another rank than its group asks for.

    `varies`: the rank may also be lower.
    """
    where, held = slot.geometry, (state.get("proj.side"), state.get("proj.rank"))
    fits = held == ((None, None) if where is None else (int(where.side), where.rank))
    if where is not None and varies and isinstance(held[1], int):
        fits = held[0] == int(where.side) and 0 <= held[1] <= where.rank
    if not fits:
        asked = None if where is None else (int(where.side), where.rank)
        raise ValueError(
            f"{op}: `rank` and `proj_type` of `{slot.name}` must stay what its state was made with, "
            f"got {_describe(asked)} for a state of {_describe(held)}; "
            "keep them, or start a new optimizer without this state"
        )


def placed(state: State, slot: Slot, layout: Layout) -> State:
    """A copy of `state` for `slot`: dtypes as saved, on its device, cut to the shapes of `layout`."""
    device = slot.param.device
    return {
        key: value.detach().to(device, copy=True) if isinstance(value, Tensor) else value
        for key, value in resized(state, layout).items()
    }


def _describe(held: tuple[int | None, int | None] | None) -> str:
    if held is None or held[0] is None:
        return "no projection"
    return f"side {Side(held[0]).name.lower()}, rank {held[1]}"
