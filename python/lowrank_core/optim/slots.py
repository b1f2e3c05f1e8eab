"""One parameter as a step sees it, and what is known of a step before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lowrank_core.memory.geometry import Geometry, check_stack, place_by
from lowrank_core.memory.plan import PlanRow, plan_row
from lowrank_core.optim.dtypes import work_dtype
from lowrank_core.optim.int8 import Int8Weight
from lowrank_core.optim.seeds import mix_seed

Placed = Callable[[tuple[int, ...], Mapping[str, Any]], tuple[Geometry | None, str]]
State = dict[str, Any]  # of one weight: flat keys, tensors and plain numbers
Key = tuple[Tensor, int | None]  # a parameter, and the number of a matrix in it where it is a stack


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
    """One weight and how it is treated: a parameter, or one of the matrices that are stacked in it.

    `seed` and `index`, its position among the weights of all groups, key its draws. So a stack of E matrices draws what
    E parameters in its place would.
    """

    param: Tensor  # the user's: the key of its state
    weight: Tensor  # what is stepped: `param`; of a complex one the real view [..., 2], of a stack one matrix
    index: int
    name: str
    geometry: Geometry | None  # of the largest rank
    note: str  # why it is not projected, or a remark
    seed: int = 0
    turn: tuple[int, int] = (0, 1)  # its number among the projected weights of its group, and how many these are
    expert: int | None = None  # its number in a stack
    made_for: tuple[Any, ...] = field(init=False)  # `param` may be given other values since

    def __post_init__(self) -> None:
        object.__setattr__(self, "made_for", _looks_of(self.param, self.weight is not self.param))

    @property
    def key(self) -> Key:
        """What tells it from all other weights, also from one call to the next."""
        return self.param, self.expert

    @property
    def param_name(self) -> str:
        """The name of `param`."""
        return self.name if self.expert is None else self.name.removesuffix(f"[{self.expert}]")

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the parameter, or of one matrix of a stack."""
        return tuple(self.param.shape if self.expert is None else self.param.shape[1:])

    @property
    def row(self) -> PlanRow:
        """The row of `param` in the plan."""
        shape, stacked = tuple(self.param.shape), self.expert is not None
        return plan_row(self.param_name, shape, self.geometry, self.note, stacked)

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

    def own(self, tensor: Tensor) -> Tensor:
        """What belongs to the weight of a tensor of the parameter's shape: all of it, or one matrix of a stack."""
        return tensor if self.expert is None else tensor[self.expert]

    def gradient(self, grad: Tensor) -> Tensor:
        """Of the parameter's gradient the matrix that is projected, or on the plain path in the weight's shape."""
        grad = self.own(grad)
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


# Of a group, that its slots depend on.
SLOT_KEYS = ("param_names", "seed", "force_projection", "rank", "proj_type", "stacked")


def slots(group: dict[str, Any], start: int, first: int, placed: Placed = place_by) -> Iterator[Slot]:
    """The weights of one group. Its first parameter is number `start`, and has the weight number `first`.

    `placed` says where a weight of a shape is projected.

    Raises:
      ValueError: the group is `stacked`, and a parameter is no stack.
    """
    params, seed, stacked = group["params"], group["seed"], group["stacked"]
    names = group.get("param_names") or [number_name(start + offset) for offset in range(len(params))]
    if stacked:
        for name, param in zip(names, params, strict=True):
            check_stack("step", name, tuple(param.shape))
    places = [_place(param, group, placed) for param in params]
    sizes = [len(param) if stacked else 1 for param in params]
    count = sum(size for size, (where, _) in zip(sizes, places, strict=True) if where is not None)
    turn, index = 0, first
    for name, param, (where, note) in zip(names, params, places, strict=True):
        for expert, weight in _weights(param, stacked):
            own_name = name if expert is None else f"{name}[{expert}]"
            yield Slot(param, weight, index, own_name, where, note, seed, (turn, count), expert)
            turn, index = turn + (where is not None), index + 1


def _weights(param: Tensor, stacked: bool) -> Iterable[tuple[int | None, Tensor]]:
    """What is stepped of `param`: all of it, or each matrix in its memory with its number."""
    weight = torch.view_as_real(param.detach()) if param.is_complex() else param
    return enumerate(weight.detach().unbind()) if stacked else [(None, weight)]


def fit(held: Iterable[Slot], params: Sequence[Tensor]) -> bool:
    """True if `held` are the slots of `params` as these are now."""
    firsts = [slot for slot in held if not slot.expert]
    return len(firsts) == len(params) and all(map(_fits, firsts, params))


def _fits(slot: Slot, param: Tensor) -> bool:
    is_view = slot.weight is not slot.param
    return slot.param is param and slot.made_for == _looks_of(param, is_view)


def by_param(found: Iterable[Slot]) -> list[list[Slot]]:
    """The weights in `found`, which are in order, of each parameter."""
    return [list(some) for _, some in groupby(found, key=lambda slot: id(slot.param))]


def _looks_of(param: Tensor, is_view: bool) -> tuple[Any, ...]:
    """What a slot is made for: its parameter, and the memory that its view is of, which no other can have meanwhile."""
    looks = param.shape, param.dtype
    return (*looks, param.device, param.data_ptr(), param.stride()) if is_view else looks


def _place(param: Tensor, group: dict[str, Any], placed: Placed) -> tuple[Geometry | None, str]:
    if param.is_complex():  # on the plain path, as torch's AdamW does
        return None, "complex"
    if not steppable(param.dtype):
        return None, f"{param.dtype}: never stepped"
    where, note = placed(tuple(param.shape[1:] if group["stacked"] else param.shape), group)
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
        if [slot.key for slot in self.slots] != [slot.key for slot in other.slots]:
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

    def each(self) -> Iterator[Draft]:
        """The draft of each of its slots."""
        for i, (slot, grad) in enumerate(zip(self.slots, self.grads, strict=True)):
            yield Draft([slot], [grad], None if self.low is None else [self.low[i]], self.finite, self.freed)

    def part(self, chosen: list[bool]) -> tuple[Draft, Draft]:
        """The slots that are `chosen`, and the others."""
        parts = []
        for wanted in (True, False):
            at = [i for i, choice in enumerate(chosen) if choice is wanted]
            low = None if self.low is None else [self.low[i] for i in at]
            some = [self.slots[i] for i in at], [self.grads[i] for i in at]
            parts.append(Draft(*some, low, self.finite, self.freed))
        return parts[0], parts[1]
