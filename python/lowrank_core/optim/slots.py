"""One parameter, or one matrix of a stack, as a step sees it."""

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
    if len(names) != len(params):
        raise ValueError(
            f"step: `params` of a group must be the {len(names)} that it was made with, got {len(params)}; what "
            "flattens parameters, such as DeepSpeed's ZeRO, leaves no matrices to project: shard nothing"
        )
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
