"""What an optimizer tells those who watch it while it steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from lowrank_core.optim.slots import Slot


class Watch(Protocol):
    """Is told of what no state holds. It must wait for no device."""

    def turned(self, slot: Slot, overlap: Tensor) -> None:
        """A subspace was replaced; `overlap` is the 0-d mean squared cosine between it and the new one."""
        ...

    def searched(self, slots: Sequence[Slot], seconds: float) -> None:
        """The subspaces of `slots` were looked for together, in that time of the host."""
        ...
