"""Loading a state: what is refused, and how the rest is taken over with its dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lowrank_core.memory.geometry import Side
from lowrank_core.memory.storage import Layout
from lowrank_core.optim.codecs import State, name_of
from lowrank_core.optim.parts import FORMAT, Parts, Slot

if TYPE_CHECKING:
    from lowrank_core.optim.base import StateOptimizer

_OP = "load_state_dict"
_GEOMETRY_KEYS = ("rank", "proj_type", "force_projection")
_OPENED = {"format", "step"}  # all there is while a projected parameter has seen zero gradients only
_PROJECTED = {"proj.side", "proj.rank", "proj.refreshes", "proj.last_refresh"}


def check_geometry(op: str, slot: Slot, state: State) -> None:
    """Raises ValueError if `state` was made on another side or at another rank than its group asks for."""
    asked = None if slot.geometry is None else (int(slot.geometry.side), slot.geometry.rank)
    held = (state["proj.side"], state["proj.rank"]) if "proj.rank" in state else None
    fits = asked is not None if state.keys() == _OPENED else held == asked
    if state and not fits:
        raise ValueError(
            f"{op}: `rank` and `proj_type` of `{slot.name}` must stay what its state was made with, "
            f"got {_describe(asked)} for a state of {_describe(held)}; "
            "keep them, or start a new optimizer without this state"
        )


def vet(optimizer: StateOptimizer, state_dict: dict[str, Any]) -> dict[int, State]:
    """The states in `state_dict` by the index of their parameter; changes nothing.

    Raises:
      ValueError: it does not fit `optimizer`, by the first thing that does not.
    """
    kind = type(optimizer).__name__
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(f"{_OP}: `state_dict` must be what {kind}.state_dict() returned, got no such dict")
    saved, groups = state_dict["param_groups"], optimizer.param_groups
    sizes, asked = [len(group["params"]) for group in saved], [len(group["params"]) for group in groups]
    if sizes != asked:
        raise ValueError(
            f"{_OP}: `state_dict` must hold groups of {asked} parameters, got {sizes}; "
            "give the optimizer the same model and the same groups as when it was saved"
        )
    for number, (theirs, ours) in enumerate(zip(saved, groups, strict=True)):
        missing = sorted(optimizer.defaults.keys() - theirs.keys())
        if missing:
            raise ValueError(
                f"{_OP}: `state_dict` must come from {kind}, got groups without {', '.join(missing)}; "
                "a state of another optimizer cannot be taken over"
            )
        for key in _GEOMETRY_KEYS:
            if theirs[key] != ours[key]:
                raise ValueError(
                    f"{_OP}: `{key}` of group {number} must be {theirs[key]!r} as saved, got {ours[key]!r}; "
                    f"build the optimizer with {key}={theirs[key]!r}, or start without the saved state"
                )
        optimizer.check_group(theirs)
    ids = [key for group in saved for key in group["params"]]
    state = state_dict["state"]
    if not state.keys() <= set(ids):
        strangers = sorted(map(str, state.keys() - set(ids)))
        raise ValueError(f"{_OP}: `state` must belong to the groups' parameters, got also {', '.join(strangers)}")
    fitting = {}
    for key, (number, _, slot) in zip(ids, optimizer._slots(), strict=True):
        if state.get(key):
            _vet_state(slot, state[key], optimizer._parts(saved[number], slot.weight))
            fitting[slot.index] = state[key]
    return fitting


def restore(optimizer: StateOptimizer, states: dict[int, State]) -> None:
    """Puts copies of `states` (by index of the parameter) in place: dtypes as saved, on its device."""
    for _, _, slot in optimizer._slots():
        if slot.index in states:
            optimizer.state[slot.param] = {
                key: value.detach().to(slot.param.device, copy=True) if isinstance(value, Tensor) else value
                for key, value in states[slot.index].items()
            }


def _vet_state(slot: Slot, state: State, parts: Parts) -> None:
    if state.get("format") != FORMAT:
        raise ValueError(
            f"{_OP}: `format` of the state of `{slot.name}` must be {FORMAT}, got {state.get('format')}; "
            "load it with the version of lowrank_core that wrote it"
        )
    check_geometry(_OP, slot, state)
    layout: Layout = {"step": ((), "float32")} if state.keys() == _OPENED else parts.layout(slot)
    numbers = _PROJECTED if "proj.rank" in state else set()
    expected = layout.keys() | numbers | _OPENED
    if state.keys() != expected:
        raise ValueError(
            f"{_OP}: the state of `{slot.name}` must hold {', '.join(sorted(expected))}, "
            f"got {', '.join(sorted(state))}; it is of another optimizer or damaged"
        )
    for key, (shape, dtype) in layout.items():
        held = state[key]
        got = f"{tuple(held.shape)} {name_of(held.dtype)}" if isinstance(held, Tensor) else type(held).__name__
        if got != f"{shape} {dtype}":
            raise ValueError(
                f"{_OP}: `{key}` of `{slot.name}` must be {shape} {dtype}, got {got}; "
                "the saved model has other shapes or another dtype"
            )


def _describe(held: tuple[int, int] | None) -> str:
    return "no projection" if held is None else f"side {Side(held[0]).name.lower()}, rank {held[1]}"
