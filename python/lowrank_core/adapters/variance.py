"""What a Kalman filter keeps of each parameter, and what it starts from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from lowrank_core.adapters.find import Pair, find_pairs
from lowrank_core.adapters.square import square_of
from lowrank_core.adapters.starts.base_weight import BaseWeight, base_weight
from lowrank_core.memory.storage import WORK, Field, Layout, Role
from lowrank_core.optim.parts.rules.adam import Adam

P0 = 0.3  # of a parameter that is no factor of an adapter


@dataclass(frozen=True)
class Variance(Adam):
    """The variance of each element in place of Adam's moments. Only its layout is asked for."""

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return {"variance": Field(shape, WORK, Role.SECOND_MOMENT), "p0": Field((), float, Role.NUMBER)}


@torch.no_grad()
def starts(model: nn.Module) -> dict[Tensor, float]:
    """The variances at the start of the factors of all adapters in `model`, where nobody gives them.

    Drawn with it, a factor moves the product c B A by the norm of the weight W [m, n] beside it: of B [m, r] and A
    [r, n], given each other,

        p_B = ‖W‖² / (c² m ‖A‖²),   p_A = ‖W‖² / (c² n (‖B‖² + m r p_B)),

    the last with what B may become, so that B = 0 gives the mean square of A; where A = 0 the roles change. Of a matrix
    S between frozen factors, or of numbers e between factors, p = ‖W‖² / (c² ‖B‖² ‖A‖²), or with the sum over k of
    ‖b_k‖² ‖a_k‖²; the factors around e have their own mean square. A weight that cannot be looked at counts as one with
    rows of norm 1. Experts that share a parameter share the mean.
    """
    found: dict[Tensor, list[float]] = defaultdict(list)
    for pair in find_pairs(model):
        for parameter, value in _of_pair(pair):
            found[parameter].append(value)
    return {parameter: fmean(values) for parameter, values in found.items()}


def _of_pair(pair: Pair) -> Iterator[tuple[Tensor, float]]:
    a, b = pair.a_of(pair.a).float(), pair.b_of(pair.b).float()
    weight = base_weight(pair)
    size = _square(weight.matrix.float()) if isinstance(weight, BaseWeight) else float(len(b))
    target = size / pair.scale**2
    between = square_of(pair)
    if between is not None:
        outer, square = between
        yield square, _over(target, _square(outer.float()) * _square(a))
    elif pair.values is not None:
        yield pair.values, _over(target, float(b.square().sum(0) @ a.square().sum(1)))
        yield pair.a, _square(a) / a.numel() or P0
        yield pair.b, _square(b) / b.numel() or P0
    else:
        near, far = ((pair.a, a), (pair.b, b)) if a.any() else ((pair.b, b), (pair.a, a))
        m, n = (far[1].numel() // pair.rank, near[1].numel() // pair.rank)
        first = _over(target, m * _square(near[1]))
        yield far[0], first
        yield near[0], _over(target, n * (_square(far[1]) + far[1].numel() * first))


def _square(matrix: Tensor) -> float:
    return float(matrix.square().sum())


def _over(target: float, size: float) -> float:
    return target / size if target > 0 and size > 0 else P0
