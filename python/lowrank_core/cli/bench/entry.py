"""A rival at work: its first step, which is checked, its state, and its steps after that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from lowrank_core.cli.bench.peers import quiet
from lowrank_core.cli.bench.rivals import TRIAL, TRIAL_RANK, Params, Rival, parameters, state_bytes
from lowrank_core.cli.bench.shapes import Shapes
from lowrank_core.cli.bench.timing import Call, seconds_of
from lowrank_core.cli.errors import CliError
from lowrank_core.memory.geometry import Side
from lowrank_core.optim import LowRankOptimizer


@dataclass
class Entry:
    """What was measured of one rival."""

    rival: Rival
    optimizer: torch.optim.Optimizer | None  # None once it has been measured, for its memory
    first_s: float
    state: int  # bytes
    low: int | None  # bytes of the low-rank gradients of one of ours
    between: list[Times] = field(default_factory=list)
    refresh: list[Times] = field(default_factory=list)
    products: list[Times] = field(default_factory=list)

    @property
    def running(self) -> torch.optim.Optimizer:
        if self.optimizer is None:
            raise RuntimeError(f"{self.rival.name} has been taken down")
        return self.optimizer

    def step(self) -> Call:
        return self.running.step


@dataclass(frozen=True)
class Times:
    """Seconds of a call, and of its references in the same round."""

    seconds: float
    adamw: float
    galore: float


def started(rival: Rival, shapes: Shapes, grads: Sequence[Tensor], rank: int, before: Call) -> Entry:
    """The rival after its first step.

    Raises:
      CliError: the step is none: its time would say nothing.
    """
    own = [grad.clone() for grad in grads] if rival.spoils else grads
    params = parameters(shapes, own)
    watched = list(dict(zip(reversed(shapes), reversed(params), strict=True)).values())  # the first of each shape
    old = [param.detach().clone() for param in watched]
    with quiet():
        warm_up(rival)
        optimizer = rival.build(params, rank)
        before()
        seconds = seconds_of(optimizer.step)
    if wrong := fault(params, watched, old):
        raise CliError(f"the first step of {rival.name} ({rival.source}) {wrong}; its times would say nothing")
    held = state_bytes(optimizer)
    if isinstance(optimizer, LowRankOptimizer) and held > optimizer.planned_state_bytes():
        planned = optimizer.planned_state_bytes()
        raise CliError(f"the state of {rival.name} must have at most the {planned} bytes of its plan, got {held}")
    return Entry(rival, optimizer, seconds, held, low_rank_bytes(optimizer))


def warm_up(rival: Rival) -> torch.optim.Optimizer:
    """A few steps of small matrices, which bring the code in; the optimizer that took them."""
    optimizer = rival.build(parameters(TRIAL), TRIAL_RANK)
    for _ in range(2):
        optimizer.step()
    return optimizer


def fault(params: Params, watched: Params, old: list[Tensor]) -> str:
    """What is wrong with a step from the weights `old` of `watched`; empty if each went against its gradient."""
    if not all(bool(param.isfinite().all()) for param in params):
        return "leaves weights that are not finite"
    for param, before in zip(watched, old, strict=True):
        moved = param.detach() - before
        if param.grad is None or not bool((moved.double() * param.grad.double()).sum() < 0):
            return f"does not move the weight [{', '.join(map(str, param.shape))}] against its gradient"
    return ""


def low_rank_bytes(optimizer: torch.optim.Optimizer) -> int | None:
    """Bytes of the low-rank gradients of one of ours, in float32, without those that are whole; None of others."""
    if not isinstance(optimizer, LowRankOptimizer):
        return None
    places = [slot.geometry for slot in optimizer.slots() if slot.geometry is not None]
    return sum(4 * prod(where.low_shape) for where in places if where.side != Side.WHOLE)
