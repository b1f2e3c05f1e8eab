"""What a Kalman filter keeps of each parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowrank_core.memory.storage import WORK, Field, Layout, Role
from lowrank_core.optim.parts.rules.adam import Adam

P0 = 0.3  # the variance at the start that `p0=None` means


@dataclass(frozen=True)
class Variance(Adam):
    """The variance of each element in place of Adam's moments. Only its layout is asked for."""

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return {"variance": Field(shape, WORK, Role.SECOND_MOMENT)}


def p0_of(group: Mapping[str, Any]) -> float:
    """The variance at the start of the parameters in `group`."""
    return P0 if group["p0"] is None else float(group["p0"])
