"""What every start is given, and what it hands over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from lowrank_core.adapters.decompose import Search
from lowrank_core.adapters.find import Pair
from lowrank_core.adapters.starts.base_weight import BaseWeight

OP = "init_lora_"


class Factors(NamedTuple):
    """Of one pair, float32 or float64: `b` [m, r], `a` [r, n] and, between them, `square` [r, r] where there is one."""

    b: Tensor
    a: Tensor
    square: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Target:
    """One pair that is to be started."""

    pair: Pair
    base: BaseWeight | None  # None where the start does not look at it

    @property
    def name(self) -> str:
        return self.pair.name

    @property
    def weight(self) -> BaseWeight:
        if self.base is None:
            raise AssertionError("a start that was declared to need no weight asks for one")
        return self.base


@dataclass(frozen=True)
class Settings:
    """The arguments of `init_lora_` that the starts read."""

    batches: Iterable[Any] | None
    loss_fn: Callable[[nn.Module, Any], Tensor] | None
    search: Search
    gamma: float
    eta: float
    std: float
    cosine: float
    rho: float
    at_once: int | None


@dataclass(frozen=True)
class Start:
    """One method: how it finds its factors, and what it needs for that."""

    find: Callable[[nn.Module, list[Target], Settings], list[Factors]]
    data: bool = False  # looks at batches
    weight: bool = True  # reads W0 or its gradient
    moves: bool = False  # W0 - scale b a takes the place of W0
    square: bool = False  # the factors stay frozen around a trained matrix [r, r]
    ranks: int = 1  # so many times the rank is decomposed
