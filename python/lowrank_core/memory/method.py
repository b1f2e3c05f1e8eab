"""What the registry says of one optimizer. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lowrank_core.memory.geometry import PROJ_TYPES, Geometry, Rank, rank_of
from lowrank_core.memory.gradients import Way
from lowrank_core.memory.storage import Layout

Keys = Mapping[str, Any]  # of a group: those that decide what its states look like


class Kept(NamedTuple):
    """What the state of a projected weight holds, tensors only, by what stores those of dtype `WORK`."""

    moments: Layout  # as the key `moment_dtype` says
    bases: Layout  # in the dtype of a basis
    feedback: Layout | None = None  # as the key `error_feedback_dtype` says


class Entry(NamedTuple):
    """One weight, or several that are alike, as the estimate sees them."""

    name: str
    shape: tuple[int, ...]
    number: int  # of weights
    keys: Keys
    taken: bool  # whether the method projects it, or takes it whole


# Further keys of each entry, and how many of its weights have them.
Settle = Callable[[Sequence[Entry]], list[list[tuple[Keys, int]]]]


class Method(NamedTuple):
    """One optimizer."""

    optimizer: str  # its class in `lowrank_core.optim.methods`: "module:class"
    kept: Callable[[Geometry, Keys], Kept]
    rank: Rank | None = 128  # what its class has by default
    own: Mapping[str, Any] = {}  # keys that GaLore does not have, or has with another default
    deciding: tuple[str, ...] = ()  # those of `own` that decide bytes
    place: Callable[[tuple[int, ...], Keys], tuple[Geometry | None, str]] | None = None  # None: `place_by` these two:
    rank_of: Callable[[Keys, int], int | None] = rank_of  # of a matrix with that min(m, n)
    full_rank: str = "plain"  # as in its class: a matrix whose rank is not below min(m, n)
    lacks: tuple[str, ...] = ()  # keys of GaLore's that it does not have
    settle: Settle | None = None  # what a key is for each weight, where that depends on the others
    projectors: tuple[str, ...] = ("rsvd", "svd")  # the default first; () if it has no such key
    proj_types: tuple[str, ...] = PROJ_TYPES
    # How `fused_backward` takes the gradient of a projected weight between two searches, by the default keys.
    way: Way = Way.SUBSPACE

    @property
    def moment_dtype(self) -> str:
        """What the key of that name is where it is not given."""
        return str(self.own.get("moment_dtype", "auto"))
