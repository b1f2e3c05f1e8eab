"""What a task is: a pretrained model and samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

HELD_OUT = 0.2  # of the samples
RANK = 4  # of the adapters


class Stream(NamedTuple):
    """Samples in the order of a seed, and others that are held out: every tensor has the samples first."""

    inputs: tuple[Tensor, ...]
    targets: Tensor
    held_inputs: tuple[Tensor, ...]
    held_targets: Tensor


@dataclass(frozen=True)
class Task:
    """`model(seed)` is pretrained and called with the inputs of a batch; `heads` are what is new in it."""

    name: str
    model: Callable[[int], nn.Module]
    stream: Callable[[int], Stream]
    rank: int = RANK
    heads: tuple[str, ...] = ()
