"""The state of one parameter: opened from its layout, and resized to the largest rank when it is saved."""

from __future__ import annotations

import torch
from torch import Tensor

from lowrank_core.memory.storage import Layout
from lowrank_core.optim.dtypes import dtype_of
from lowrank_core.optim.slots import State


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
