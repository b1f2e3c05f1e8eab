"""How torch's AdamW rounds on this machine, which the kernel of plain weights repeats."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank_core.ops.subspace_step.plain import adamw_list, known_roots
from lowrank_core.optim.parts.rules.adam import Adam

_SIZES = (1, 7, 4099)  # no vector, the rest of one, many
_RULE, _LR, _WEIGHT_DECAY, _STEP = Adam(), 0.01, 0.1, 3


class TorchRounding(NamedTuple):
    """Arguments of `adamw_list`."""

    fused: bool  # whether lerp and addcmul have a fused multiply-add: by the vectors that torch runs
    roots: str  # "mkl": by the library that torch was built with; "rounded": correctly


class _Sample(NamedTuple):
    weight: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


@lru_cache
def torchs_rounding() -> TorchRounding | None:
    """The way of the kernel that has the bits of torch's operations on a sample; None if there is none.

    docs/adr/0016-plain-weights.md says what differs between machines.
    """
    expected = [_by_torch(sample) for sample in _samples()]
    for fused, roots in product((True, False), known_roots()):
        way = TorchRounding(fused, roots)
        if all(map(_equal, (_by_kernel(sample, way) for sample in _samples()), expected)):
            return way
    return None


def _samples() -> list[_Sample]:
    draw = torch.Generator(device="cpu").manual_seed(0)
    samples = []
    for size, dtype in product(_SIZES, (torch.float32, torch.float64)):
        weight, grad, exp_avg = (torch.randn(size, generator=draw, dtype=dtype, device="cpu") for _ in range(3))
        exp_avg_sq = torch.rand(size, generator=draw, dtype=dtype, device="cpu")
        samples.append(_Sample(weight, grad, exp_avg, exp_avg_sq))
    return samples


def _by_torch(sample: _Sample) -> _Sample:
    direction = _RULE.update(sample.grad, {"exp_avg": sample.exp_avg, "exp_avg_sq": sample.exp_avg_sq}, _STEP)
    direction.subtract_from_(sample.weight.mul_(1 - _LR * _WEIGHT_DECAY), _LR)
    return sample


def _by_kernel(sample: _Sample, way: TorchRounding) -> _Sample:
    adamw_list(
        [sample.weight], [sample.grad], [sample.exp_avg], [], [sample.exp_avg_sq], [], [_RULE.corrections(_STEP)],
        [_STEP], [0], betas=_RULE.betas, eps=_RULE.eps, lr=_LR, weight_decay=_WEIGHT_DECAY, maximize=False,
        stochastic=False, **way._asdict(),
    )  # fmt: skip
    return sample


def _equal(left: _Sample, right: _Sample) -> bool:
    return all(map(torch.equal, left, right))
