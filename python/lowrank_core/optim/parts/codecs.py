"""Codecs: how a moment or a basis is stored between steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lowrank_core.memory.storage import (
    WORK,
    AsBFloat16,
    AsBlocks8,
    AsWork,
    Field,
    Layout,
    Role,
    Storage,
    basis_storage,
    moment_storage,
)
from lowrank_core.ops.subspace_step.codecs import decode_moment, encode_moment
from lowrank_core.optim.devices import can_draw
from lowrank_core.optim.dtypes import dtype_of, name_of
from lowrank_core.optim.slots import NO_DRAW, Draw, State


class Codec(Storage, Protocol):
    """Writes and reads what its `layout` describes. `role` is the role of the field."""

    @property
    def host_only(self) -> bool:
        """True if it has no kernel for accelerators in this version."""
        ...

    def decode(self, state: State, name: str, work: torch.dtype, role: Role) -> Tensor:
        """The stored value in dtype `work`; writing into it may or may not write into the state."""
        ...

    def encode(self, state: State, name: str, value: Tensor, role: Role, draw: Draw = NO_DRAW) -> None:
        """Stores `value`, in place if the entry has its shape; never keeps the storage of `value`."""
        ...


@dataclass(frozen=True)
class Float32(AsWork):
    """Stores the working precision: float32, float64 for float64 weights. `decode` gives the state itself."""

    host_only: ClassVar[bool] = False

    def decode(self, state: State, name: str, work: torch.dtype, role: Role) -> Tensor:
        value: Tensor = state[name]
        return value

    def encode(self, state: State, name: str, value: Tensor, role: Role, draw: Draw = NO_DRAW) -> None:
        _hold(state, name, value, value.dtype)


@dataclass(frozen=True)
class BFloat16(AsBFloat16):
    """Stores bfloat16, rounded to nearest.

    An orthonormal basis keeps |p_i . p_j - delta_ij| <= 2u + u^2 with u = 2^-8, and stays like that until its
    next refresh.
    """

    host_only: ClassVar[bool] = False

    def decode(self, state: State, name: str, work: torch.dtype, role: Role) -> Tensor:
        value: Tensor = state[name]
        return value.to(work)

    def encode(self, state: State, name: str, value: Tensor, role: Role, draw: Draw = NO_DRAW) -> None:
        _hold(state, name, value, torch.bfloat16)


@dataclass(frozen=True)
class StochasticBFloat16(AsBFloat16):
    """Stores a moment in bfloat16, rounded without bias: a second moment rounded to nearest would never decay.

    Determinism: D0 (same bits on every device and level; docs/numerics.md).
    """

    host_only: ClassVar[bool] = True

    def decode(self, state: State, name: str, work: torch.dtype, role: Role) -> Tensor:
        value: Tensor = state[name]
        return value.to(work)

    def encode(self, state: State, name: str, value: Tensor, role: Role, draw: Draw = NO_DRAW) -> None:
        codes = _room(state, name, value.shape, torch.bfloat16)
        _encode(codes, None, value, role, draw)


@dataclass(frozen=True)
class Blocks8(AsBlocks8):
    """Stores a moment in 8-bit codes with a float32 scale for each 256 elements, rounded without bias.

    The codes of a second moment are evenly spaced in its root, so that small values survive beside large ones.
    Determinism: D0. Source: Dettmers et al. 2021 (arXiv:2110.02861) for the blocks.
    """

    host_only: ClassVar[bool] = True

    def decode(self, state: State, name: str, work: torch.dtype, role: Role) -> Tensor:
        codes: Tensor = state[f"{name}.codes"]
        value = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
        decode_moment(value, codes, state[f"{name}.scales"], second=role is Role.SECOND_MOMENT)
        return value.to(work)

    def encode(self, state: State, name: str, value: Tensor, role: Role, draw: Draw = NO_DRAW) -> None:
        layout = self.layout(name, Field(tuple(value.shape), WORK, role), name_of(value.dtype))
        codes, scales = (_room(state, key, torch.Size(f.shape), dtype_of(str(f.dtype))) for key, f in layout.items())
        _encode(codes, scales, value, role, draw)


def decoded(codec: Codec, fields: Layout, state: State, work: torch.dtype) -> dict[str, Tensor]:
    """The values of `fields` in `state`, those of dtype `WORK` decoded."""
    return {
        name: codec.decode(state, name, work, field.role) if field.dtype == WORK else state[name]
        for name, field in fields.items()
    }


def encode(codec: Codec, fields: Layout, state: State, values: dict[str, Tensor], draw: Draw) -> None:
    """Stores the `values` of `fields` in `state`; tensors in place, so that a gate can undo it."""
    for name, field in fields.items():
        if field.dtype == WORK:
            codec.encode(state, name, values[name], field.role, draw)
        elif isinstance(values[name], Tensor):
            _hold(state, name, values[name], values[name].dtype)
        else:
            state[name] = values[name]


_MOMENT_CODECS: dict[str, Codec] = {"float32": Float32(), "bfloat16": StochasticBFloat16(), "int8": Blocks8()}
_BASIS_CODECS: dict[str, Float32 | BFloat16] = {"float32": Float32(), "bfloat16": BFloat16()}


def moment_codec(name: str, weight: Tensor) -> Codec:
    """The codec of the moments of `weight` that the key `moment_dtype` calls `name`."""
    return _MOMENT_CODECS[moment_storage(name, name_of(weight.dtype), host=can_draw(weight.device))]


def basis_codec(weight: torch.dtype) -> Float32 | BFloat16:
    """The default codec of a basis."""
    return _BASIS_CODECS[basis_storage(name_of(weight))]


def _encode(codes: Tensor, scales: Tensor | None, value: Tensor, role: Role, draw: Draw) -> None:
    second = role is Role.SECOND_MOMENT
    encode_moment(codes, scales, value.float().contiguous(), second=second, seed=draw.seed, step=draw.number())


def _hold(state: State, name: str, value: Tensor, dtype: torch.dtype) -> None:
    if state.get(name) is not value:  # else the caller has changed it in place
        _room(state, name, value.shape, dtype, value.device).copy_(value)


def _room(state: State, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The entry `name`, or a new one if it has another shape."""
    held: Tensor | None = state.get(name)
    if held is None or held.shape != shape:
        # Of its own: a basis may arrive as a view that would keep a whole SVD factor alive.
        held = state[name] = torch.empty(shape, dtype=dtype, device=device)
    return held
