"""States: of one weight, opened from its layout and resized to the largest rank when saved; and of one parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from lowrank_core.memory.storage import Layout
from lowrank_core.optim.dtypes import dtype_of
from lowrank_core.optim.slots import Slot, State


def open_state(layout: Layout, device: torch.device) -> State:
    """The state before the first step: every entry of `layout`, at what it starts with.

    A subspace of zeros means a step of zero; `proj.refreshes` says that none was found yet.
    """
    state: State = {}
    for key, (shape, dtype, _, start) in layout.items():
        if isinstance(dtype, str):
            state[key] = torch.full(shape, start, dtype=dtype_of(dtype), device=device)
        else:
            state[key] = dtype(start)
    return state


def stored(states: list[State], name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Values and scales of a moment; no scales where it is stored without, nothing where the rule does not have it."""
    codes = f"{name}.codes"
    if states and codes in states[0]:
        return [state[codes] for state in states], [state[f"{name}.scales"] for state in states]
    return [state[name] for state in states if name in state], []


def resized(state: State, layout: Layout) -> State:
    """`state` with each tensor in the shape that `layout` gives it: cut, or filled up with zeros; else itself.

    Memory holds the current rank of a subspace; a saved state has the largest rank, so that a template fits it.
    """
    return {key: _resized(value, layout[key].shape) if key in layout else value for key, value in state.items()}


def _resized(value: object, shape: tuple[int, ...]) -> object:
    if not isinstance(value, Tensor) or tuple(value.shape) == shape:
        return value
    common = tuple(slice(min(sizes)) for sizes in zip(value.shape, shape, strict=True))
    out = value.new_zeros(shape)
    out[common] = value[common]
    return out


# ---- of a parameter ----------------------------------------------------------------------------------------------


class StackedState(MutableMapping[str, Any]):
    """The state of a stack: `parts` has that of each matrix. As a mapping it is flat, with keys like "3.exp_avg"."""

    def __init__(self, parts: list[State]) -> None:
        self.parts = parts

    @classmethod
    def of(cls, values: Mapping[str, Any], count: int) -> StackedState:
        """What flat `values` say of `count` matrices.

        Raises:
          KeyError: a key is of none of them.
        """
        state = cls([{} for _ in range(count)])
        state.update(values)
        return state

    def flat(self) -> State:
        """The same as a dict."""
        return {f"{expert}.{key}": value for expert, part in enumerate(self.parts) for key, value in part.items()}

    def __getitem__(self, key: str) -> Any:
        part, own = self._place(key)
        return part[own]

    def __setitem__(self, key: str, value: Any) -> None:
        part, own = self._place(key)
        part[own] = value

    def __delitem__(self, key: str) -> None:
        part, own = self._place(key)
        del part[own]

    def __iter__(self) -> Iterator[str]:
        return (f"{expert}.{key}" for expert, part in enumerate(self.parts) for key in part)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __repr__(self) -> str:
        return repr(self.flat())

    def _place(self, key: str) -> tuple[State, str]:
        expert, _, own = key.partition(".") if isinstance(key, str) else ("", "", "")
        if not expert.isdecimal() or int(expert) >= len(self.parts) or str(int(expert)) != expert:
            raise KeyError(key)
        return self.parts[int(expert)], own


def flat(state: State | StackedState) -> State:
    """`state` as a dict."""
    return state.flat() if isinstance(state, StackedState) else state


def state_of(states: Mapping[Tensor, Any], slot: Slot) -> State:
    """What `states` has by parameters, as it concerns `slot`; empty where there is nothing."""
    held: Any = states.get(slot.param)
    if slot.expert is not None and isinstance(held, StackedState):
        return held.parts[slot.expert]
    return {} if held is None else held


def keep_state(states: MutableMapping[Tensor, Any], slot: Slot, state: State) -> None:
    """Makes `state` that of `slot` in `states`."""
    if slot.expert is None:
        states[slot.param] = state
        return
    held = states.get(slot.param)
    if not isinstance(held, StackedState):
        held = states[slot.param] = StackedState([{} for _ in slot.param])
    held.parts[slot.expert] = state
