"""One parameter as a step sees it, and what is known of a step before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Geometry, place_by
from lowrank_core.optim.dtypes import work_dtype
from lowrank_core.optim.int8 import Int8Weight
from lowrank_core.optim.seeds import mix_seed

Placed = Callable[[tuple[int, ...], Mapping[str, Any]], tuple[Geometry | None, str]]
State = dict[str, Any]  # of one parameter: flat keys, tensors and plain numbers


class Draw(NamedTuple):
    """Keys the random words of one parameter in one step."""

    seed: int
    step: float | Tensor

    def number(self) -> int:
        """The number of the step.

        Raises:
          RuntimeError: it is on a device, behind a gate.
        """
        if isinstance(self.step, Tensor):
            raise RuntimeError("step: random words need the number of the step, which is not on the host here")
        return int(self.step)


NO_DRAW = Draw(0, 0)  # for what draws nothing


@dataclass(frozen=True, eq=False)
class Slot:
    """One parameter and how it is treated; `seed` and `index`, its position among all groups, key its draws."""

    param: Tensor  # the user's: the key of its state
    weight: Tensor  # what is stepped: `param`, or its real view [..., 2] if it is complex
    index: int
    name: str
    geometry: Geometry | None  # of the largest rank
    note: str  # why it is not projected, or a remark
    seed: int = 0
    turn: tuple[int, int] = (0, 1)  # its number among the projected weights of its group, and how many these are
    made_for: tuple[torch.Size, torch.dtype] = field(init=False)  # `param` may be given other values since

    def __post_init__(self) -> None:
        object.__setattr__(self, "made_for", (self.param.shape, self.param.dtype))

    @property
    def work(self) -> torch.dtype:
        return work_dtype(self.weight.dtype)

    @property
    def is_stored_as_matrix(self) -> bool:
        """True if the weight's memory can be stepped as the matrix that is projected."""
        dense = not isinstance(self.weight, Int8Weight)
        return dense and (self.weight.ndim == 2 or self.weight.is_contiguous())

    def as_matrix(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as the matrix that is projected; as it is on the plain path."""
        where = self.geometry
        return tensor if where is None or tensor.ndim == 2 else tensor.reshape(where.rows, where.cols)

    def gradient(self, grad: Tensor) -> Tensor:
        """The parameter's gradient as the matrix that is projected, or in the weight's shape on the plain path."""
        return self.as_matrix(torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad.resolve_neg())

    def where(self, state: State) -> Geometry:
        """The geometry of a projected weight, at the rank that its state has."""
        return cast(Geometry, self.geometry).at(state["proj.rank"])

    def draw(self, step: float | Tensor) -> Draw:
        """Keys the random words of step number `step`."""
        return Draw(mix_seed(self.seed, self.index), step)

    def search_seed(self, refresh: int) -> int:
        """The seed of the search number `refresh` for a subspace."""
        return mix_seed(self.seed, self.index, refresh)

    def period_seed(self, refresh: int) -> int:
        """Keys the random words of the steps after refresh number `refresh`, where their count starts again with it."""
        return mix_seed(self.seed, self.index, refresh, 1)


SLOT_KEYS = ("param_names", "seed", "force_projection", "rank", "proj_type")  # of a group, that its slots depend on


def slots(
    group: dict[str, Any],
    start: int,
    placed: Placed = place_by,
) -> Iterator[Slot]:
    """The parameters of one group, the first being number `start`.

    `placed` says where a weight of a shape is projected.
    """
    names, seed = group.get("param_names"), group["seed"]
    places = [_place(param, group, placed) for param in group["params"]]
    count, turn = sum(where is not None for where, _ in places), 0
    for offset, (param, (where, note)) in enumerate(zip(group["params"], places, strict=True)):
        name = names[offset] if names else number_name(start + offset)
        weight = torch.view_as_real(param.detach()) if param.is_complex() else param
        yield Slot(param, weight, start + offset, name, where, note, seed, (turn, count))
        turn += where is not None


def fits(slot: Slot, param: Tensor) -> bool:
    """True if `slot` is that of `param` as it is now. A complex one's view may be of other memory by now."""
    return slot.weight is param and slot.made_for == (param.shape, param.dtype)


def _place(param: Tensor, group: dict[str, Any], placed: Placed) -> tuple[Geometry | None, str]:
    if param.is_complex():  # on the plain path, as torch's AdamW does
        return None, "complex"
    if not steppable(param.dtype):
        return None, f"{param.dtype}: never stepped"
    where, note = placed(tuple(param.shape), group)
    return where, ", ".join(filter(None, (note, "stored in 8 bits" if isinstance(param, Int8Weight) else "")))


def steppable(dtype: torch.dtype) -> bool:
    """True for the dtypes of weights that a step computes in; others can only be frozen."""
    return dtype.is_complex or dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def number_name(index: int) -> str:
    """The name of a parameter that was given none."""
    return f"parameter {index}"


@dataclass(eq=False)
class Draft:
    """The part of a step that is known before anything is changed: gradients, whole or already in their subspaces.

    Everything before the rule is linear in the gradient, so drafts of several backward passes may be added up.
    What changes a draft in place overwrites its tensors: only who owns them may call it.
    """

    slots: list[Slot] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)  # matrices of projected weights; untouched, not yet negated
    low: list[Tensor] | None = None  # the same in the subspaces held, in the working dtype; negated to maximize
    finite: bool = False  # True: all of `grads` are known to be
    freed: bool = False  # True: `grads` have shapes only, and `low` is all that is left of them

    def add(self, slot: Slot, grad: Tensor) -> None:
        """Takes up one more parameter."""
        self.slots.append(slot)
        self.grads.append(grad)

    def seeds(self, drawn: bool) -> list[int]:
        """The seeds of the draws of each weight; zeros if nothing is `drawn`."""
        return [slot.draw(0).seed for slot in self.slots] if drawn else [0] * len(self.slots)

    def extend(self, other: Draft) -> None:
        """Takes up the parameters of another draft, which must be in its subspaces as this one is."""
        self.finite = other.finite and (self.finite or not self.slots)
        self.freed = other.freed
        self.low = other.low if not self.slots else None if other.low is None else [*(self.low or []), *other.low]
        self.slots += other.slots
        self.grads += other.grads

    def free_(self) -> None:
        """Lets go of the gradients. Whoever reads one all the same finds that no entry is a number."""
        self.grads = [torch.full((), torch.nan, dtype=g.dtype, device=g.device).expand(g.shape) for g in self.grads]
        self.freed = True

    @property
    def evidence(self) -> list[Tensor]:
        """What is left of each gradient, and not finite if the gradient was not."""
        return self.low if self.freed and self.low is not None else self.grads

    def add_(self, other: Draft) -> None:
        """Adds the draft of another backward pass, of the same slots, to this one.

        Raises:
          ValueError: one of them is in its subspaces and the other one is not, or they are of other slots.
        """
        if [slot.param for slot in self.slots] != [slot.param for slot in other.slots]:
            raise ValueError("Draft: `other` must be of the same parameters, got others")
        if (self.low is None, self.freed) != (other.low is None, other.freed):
            raise ValueError("Draft: `other` must be in its subspaces as this one is, got only one that is")
        if self.low is not None and other.low is not None:
            torch._foreach_add_(self.low, other.low)
        if not self.freed:
            torch._foreach_add_(self.grads, other.grads)
        self.finite = False  # a sum may overflow

    def scale_(self, factor: float | Tensor) -> None:
        """Multiplies the draft, as the mean over backward passes does. A 0-d tensor is not read."""
        for tensor in (*(self.low or ()), *(() if self.freed else self.grads)):
            tensor.mul_(factor.to(tensor.device) if isinstance(factor, Tensor) else factor)
        self.finite = False

    def squared_norm(self) -> Tensor:
        """0-d float64 on the gradients' device: |G|_F^2 of all of them together. Does not wait."""
        squares = [torch.linalg.vector_norm(grad, dtype=torch.float64).square() for grad in self.grads]
        return torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)

    def part(self, chosen: list[bool]) -> tuple[Draft, Draft]:
        """The slots that are `chosen`, and the others."""
        parts = []
        for wanted in (True, False):
            at = [i for i, choice in enumerate(chosen) if choice is wanted]
            low = None if self.low is None else [self.low[i] for i in at]
            some = [self.slots[i] for i in at], [self.grads[i] for i in at]
            parts.append(Draft(*some, low, self.finite, self.freed))
        return parts[0], parts[1]
