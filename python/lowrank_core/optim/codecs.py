"""Codecs: how a moment or a basis is stored between steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

State = dict[str, Any]  # of one parameter: flat keys, tensors and plain numbers
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # state key -> shape and dtype of its tensor


def work_dtype(weight: torch.dtype) -> torch.dtype:
    """The dtype that a weight's update is computed in: float64 for float64, else float32."""
    return torch.float64 if weight == torch.float64 else torch.float32


class Codec(Protocol):
    """Stores a tensor of the working dtype under `name`, or under `name.<field>` if it takes several."""

    def layout(self, name: str, shape: tuple[int, ...], weight: torch.dtype) -> Layout:
        """The entries that a tensor of `shape` occupies, for a weight of dtype `weight`."""
        ...

    def decode(self, state: State, name: str, work: torch.dtype) -> Tensor:
        """The stored value in dtype `work`; writing into it may or may not write into the state."""
        ...

    def encode(self, state: State, name: str, value: Tensor) -> None:
        """Stores `value`, in place where the entry has its shape; never keeps the storage of `value`."""
        ...


@dataclass(frozen=True)
class Float32:
    """Stores the working precision: float32, float64 for float64 weights. `decode` gives the state itself."""

    def layout(self, name: str, shape: tuple[int, ...], weight: torch.dtype) -> Layout:
        return {name: (shape, work_dtype(weight))}

    def decode(self, state: State, name: str, work: torch.dtype) -> Tensor:
        value: Tensor = state[name]
        return value

    def encode(self, state: State, name: str, value: Tensor) -> None:
        _hold(state, name, value, value.dtype)


@dataclass(frozen=True)
class BFloat16:
    """Stores bfloat16, rounded to nearest.

    An orthonormal basis keeps |p_i . p_j - delta_ij| <= 2u + u^2 with u = 2^-8, and stays like that until its
    next refresh.
    """

    def layout(self, name: str, shape: tuple[int, ...], weight: torch.dtype) -> Layout:
        return {name: (shape, torch.bfloat16)}

    def decode(self, state: State, name: str, work: torch.dtype) -> Tensor:
        value: Tensor = state[name]
        return value.to(work)

    def encode(self, state: State, name: str, value: Tensor) -> None:
        _hold(state, name, value, torch.bfloat16)


def basis_codec(weight: torch.dtype) -> Float32 | BFloat16:
    """The default codec of a basis: bfloat16 for bfloat16 weights, else the working precision."""
    return BFloat16() if weight == torch.bfloat16 else Float32()


def _hold(state: State, name: str, value: Tensor, dtype: torch.dtype) -> None:
    held = state.get(name)
    if held is value:  # written in place by whoever decoded it
        return
    if held is None or held.shape != value.shape:
        # A copy of its own: a basis may arrive as a view that would keep a whole SVD factor alive.
        held = state[name] = torch.empty(value.shape, dtype=dtype, device=value.device)
    held.copy_(value)
