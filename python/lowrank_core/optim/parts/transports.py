"""Transports: how the moments are carried over when their subspace changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lowrank_core.optim.parts.rules import Moments, Rule, Turn


class Transport(Protocol):
    """Carries the moments of `rule` over a change of subspace."""

    @property
    def restarts(self) -> bool:
        """True if the moments start again from zero, and with them the count of the bias correction."""
        ...

    def carry(self, moments: Moments, turn: Turn, rule: Rule, step: float | Tensor) -> Moments:
        """The moments in the new subspace, after `step` >= 1 finished steps."""
        ...


@dataclass(frozen=True)
class Keep:
    """The numbers stay as they are and are read in the new basis, whose signs are aligned with the old one.

    Source: GaLore's code, which does the same without aligning the signs.
    """

    restarts: ClassVar[bool] = False

    def carry(self, moments: Moments, turn: Turn, rule: Rule, step: float | Tensor) -> Moments:
        return moments


@dataclass(frozen=True)
class Rotate:
    """The moments are expressed in the new basis; the part that it cannot hold is lost."""

    restarts: ClassVar[bool] = False

    def carry(self, moments: Moments, turn: Turn, rule: Rule, step: float | Tensor) -> Moments:
        return rule.turned(moments, turn, step)


@dataclass(frozen=True)
class Reset:
    """The moments are zero in the new subspace."""

    restarts: ClassVar[bool] = True

    def carry(self, moments: Moments, turn: Turn, rule: Rule, step: float | Tensor) -> Moments:
        return {name: torch.zeros_like(moment) for name, moment in moments.items()}


TRANSPORTS: dict[str, Transport] = {"keep": Keep(), "rotate": Rotate()}
