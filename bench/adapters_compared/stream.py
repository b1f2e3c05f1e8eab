"""What a task is: a pretrained model and samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

HELD_OUT = 0.2  # of the samples
RANK = 4  # of the adapters


class Stream(NamedTuple):
    """Samples in the order of a seed, and others that are held out: every tensor has the samples first."""

    inputs: tuple[Tensor, ...]
    targets: Tensor
    held_inputs: tuple[Tensor, ...]
    held_targets: Tensor


def drawn(inputs: tuple[Tensor, ...], classes: Tensor, seed: int, samples: int, held_out: int) -> Stream:
    """`samples` at most in the order of `seed`; the same `held_out` are held out with every seed."""
    fixed = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    held, rest = fixed[:held_out], fixed[held_out:]
    order = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))][:samples]
    return Stream(tuple(x[order] for x in inputs), classes[order], tuple(x[held] for x in inputs), classes[held])


@dataclass(frozen=True)
class Task:
    """`model(seed)` is pretrained and called with the inputs of a batch; `heads` are what is new in it."""

    name: str
    model: Callable[[int], nn.Module]
    stream: Callable[[int], Stream]
    rank: int = RANK
    heads: tuple[str, ...] = ()
