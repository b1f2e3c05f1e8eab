"""What an optimizer is made of, and what the state of one parameter is made of by it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Geometry, place
from lowrank_core.memory.storage import Layout, state_layout
from lowrank_core.optim.codecs import Codec, Draw, State, name_of, work_dtype
from lowrank_core.optim.projectors import Bases, NoProjection, Projector, Space
from lowrank_core.optim.residuals import Drop, Residual
from lowrank_core.optim.rules import Moments, Rule
from lowrank_core.optim.schedules import Schedule
from lowrank_core.optim.seeds import mix_seed
from lowrank_core.optim.transports import Transport

FORMAT = 1  # of the state of one parameter; goes up when a key or its meaning changes


@dataclass(frozen=True)
class Parts:
    """One point of the product that every optimizer of the package is."""

    projector: Projector
    residual: Residual
    rule: Rule
    schedule: Schedule
    transport: Transport
    moment_codec: Codec  # of projected weights
    basis_codec: Codec
    plain_codec: Codec  # of the moments of what is not projected

    def layout(self, slot: Slot) -> Layout:
        """Every tensor in the state of a parameter that has its moments, by key."""
        weight, geometry = name_of(slot.weight.dtype), slot.geometry
        return state_layout(
            geometry,
            tuple(slot.weight.shape),
            weight,
            moments=self.rule.moments,
            moment=self.codec_of(slot),
            basis=self.basis_codec,
            residual={} if geometry is None else self.residual.layout(geometry, weight),
        )

    def bases(self, slot: Slot, state: State) -> Bases:
        """The bases held in `state`, decoded; empty where there are none (yet)."""
        if slot.geometry is None or "proj.rank" not in state:
            return {}
        codec, entries = self.basis_codec, slot.geometry.bases()
        return {side: codec.decode(state, key, slot.work) for key, side, _ in entries}

    def moments(self, slot: Slot, state: State) -> Moments:
        """The moments held in `state`, decoded."""
        return {name: self.codec_of(slot).decode(state, name, slot.work) for name in self.rule.moments}

    def hold_moments(self, slot: Slot, state: State, moments: Moments, draw: Draw) -> None:
        """Stores `moments` in `state`."""
        for name, value in moments.items():
            self.codec_of(slot).encode(state, name, value, draw)

    def codec_of(self, slot: Slot) -> Codec:
        """How the moments of `slot` are stored."""
        return self.plain_codec if slot.geometry is None else self.moment_codec


@dataclass(frozen=True, eq=False)
class Slot:
    """One parameter and how it is treated; `index`, its position among all groups, keys its draws."""

    param: Tensor  # the user's: the key of its state
    weight: Tensor  # what is stepped: `param`, or its real view [..., 2] where it is complex
    index: int
    name: str
    geometry: Geometry | None
    note: str  # why it is not projected, or a remark

    @property
    def work(self) -> torch.dtype:
        return work_dtype(self.weight.dtype)

    @property
    def low_shape(self) -> tuple[int, ...]:
        """The shape of the moments."""
        return tuple(self.weight.shape) if self.geometry is None else self.geometry.low_shape

    @property
    def grad(self) -> Tensor:
        """The gradient in the weight's shape; a slot without one reaches no step."""
        grad = cast(Tensor, self.param.grad)
        return torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad.resolve_neg()

    def matrix(self) -> Tensor:
        """The gradient as the matrix that is projected, or as it is on the plain path."""
        where, grad = self.geometry, self.grad
        return grad if where is None or grad.ndim == 2 else grad.reshape(where.rows, where.cols)


def slots(group: dict[str, Any], start: int) -> Iterator[Slot]:
    """The parameters of one group, the first being number `start`."""
    names = group.get("param_names")
    asked = group["rank"], group["proj_type"], group["force_projection"]
    for offset, param in enumerate(group["params"]):
        name = names[offset] if names else number_name(start + offset)
        if param.is_complex():  # as torch's AdamW does
            yield Slot(param, torch.view_as_real(param.detach()), start + offset, name, None, "complex")
        elif not steppable(param.dtype):
            yield Slot(param, param, start + offset, name, None, f"{param.dtype}: never stepped")
        else:
            yield Slot(param, param, start + offset, name, *place(tuple(param.shape), *asked))


def steppable(dtype: torch.dtype) -> bool:
    """True for the dtypes of weights that a step computes in; others can only be frozen."""
    return dtype.is_complex or dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def number_name(index: int) -> str:
    """What a parameter without a name is called."""
    return f"parameter {index}"


@dataclass(frozen=True, eq=False)
class Bucket:
    """Parameters of one group that are stepped alike: by the same parts, on one device, in one dtype."""

    parts: Parts
    space: Space  # the parts' projector, or the whole space on the plain path
    residual: Residual
    lr: float
    weight_decay: float
    maximize: bool
    rounding: str
    seed: int
    nonfinite: str
    slots: list[Slot] = field(default_factory=list)

    @classmethod
    def of(cls, group: dict[str, Any], parts: Parts, projected: bool) -> Bucket:
        """An empty bucket of `group`."""
        return cls(
            parts=parts,
            space=parts.projector if projected else NoProjection(),
            residual=parts.residual if projected else Drop(),
            lr=float(group["lr"]),
            weight_decay=float(group["weight_decay"]),
            maximize=group["maximize"],
            rounding=group["rounding"],
            seed=group["seed"],
            nonfinite=group["nonfinite"],
        )

    def draw(self, slot: Slot, step: float | Tensor) -> Draw:
        """Keys the random words of `slot` in step number `step`; 0 for one that is not on the host."""
        return Draw(mix_seed(self.seed, slot.index), 0 if isinstance(step, Tensor) else int(step))


def batches(due: list[tuple[Bucket, Slot]], size: int) -> Iterator[tuple[Bucket, list[Slot]]]:
    """The slots of each bucket, at most `size` at a time."""
    by_bucket: dict[Bucket, list[Slot]] = {}
    for bucket, slot in due:
        by_bucket.setdefault(bucket, []).append(slot)
    for bucket, members in by_bucket.items():
        for start in range(0, len(members), size):
            yield bucket, members[start : start + size]
