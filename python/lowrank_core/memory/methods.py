"""The methods of the package by name, with what each keeps in its state. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lowrank_core.memory.geometry import ONE_SIDED, PROJ_TYPES, Geometry, Rank, rank_of
from lowrank_core.memory.storage import RULES, Layout, adam_fields, basis_fields, limit_fields

Keys = Mapping[str, Any]  # of a group: those that decide what its states look like


class Kept(NamedTuple):
    """What the state of a projected weight holds, tensors only, by what stores those of dtype `WORK`."""

    moments: Layout  # as the key `moment_dtype` says
    bases: Layout  # in the dtype of a basis


class Method(NamedTuple):
    """One optimizer."""

    optimizer: str  # its class in `lowrank_core.optim.methods`: "module:class"
    kept: Callable[[Geometry, Keys], Kept]
    rank: Rank | None = 128  # what its class has by default
    own: Mapping[str, Any] = {}  # keys that GaLore does not have, or has with another default
    deciding: tuple[str, ...] = ()  # those of `own` that decide bytes
    rank_of: Callable[[Keys, int], int | None] = rank_of  # of a matrix with that min(m, n)
    full_rank: str = "plain"  # as in its class: a matrix whose rank is not below min(m, n)
    lacks: tuple[str, ...] = ()  # keys of GaLore's that it does not have
    projectors: tuple[str, ...] = ("rsvd", "svd")  # the default first; () if it has no such key
    proj_types: tuple[str, ...] = PROJ_TYPES


def _galore(where: Geometry, keys: Keys) -> Kept:
    return Kept(RULES[keys["rule"]](where.low_shape), basis_fields(where))


def _fira(where: Geometry, keys: Keys) -> Kept:
    return Kept(adam_fields(where.low_shape), basis_fields(where) | limit_fields())


def _apollo(where: Geometry, keys: Keys) -> Kept:
    """A random projection is drawn again from its seed, so the state does not keep it."""
    bases = basis_fields(where) if keys["projector"] == "svd" else {}
    return Kept(adam_fields(where.low_shape), bases | limit_fields())


METHODS: dict[str, Method] = {
    "galore": Method("galore:GaLoreAdamW", _galore, own={"rule": "adam"}, deciding=("rule",)),
    "fira": Method("fira:FiraAdamW", _fira, own={"limiter": 1.01, "residual": "paper"}, proj_types=ONE_SIDED),
    "apollo": Method(
        "apollo:ApolloAdamW",
        _apollo,
        rank=256,
        own={"scale": 1.0, "projector": "random", "scale_type": "channel", "limiter": 1.01, "scale_cap": None},
        lacks=("moments", "oversample", "niter"),
        projectors=("random", "svd"),
        proj_types=ONE_SIDED,
    ),
}
PROJECTORS = tuple(dict.fromkeys(name for method in METHODS.values() for name in method.projectors))
TO_COME = ("qgalore", "adarankgrad", "dct", "trion", "dion2", "frugal", "flora", "coap", "ldadam", "lisa")
