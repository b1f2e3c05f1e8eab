"""The methods of the package by name, with what each keeps in its state. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lowrank_core.memory.geometry import ONE_SIDED, PROJ_TYPES, Geometry
from lowrank_core.memory.storage import Layout, basis_fields, limit_fields


class Method(NamedTuple):
    """One optimizer."""

    optimizer: str  # its class in `lowrank_core.optim.methods`: "module:class"
    kept: Callable[[Geometry, str | None], Layout]  # besides its moments, given the geometry and the key `projector`
    rank: int = 128  # what its class has by default
    own: Mapping[str, Any] = {}  # keys that GaLore does not have, or has with another default
    lacks: tuple[str, ...] = ()  # keys of GaLore's that it does not have
    projectors: tuple[str, ...] = ("rsvd", "svd")  # the default first; () if it has no such key
    proj_types: tuple[str, ...] = PROJ_TYPES


def _galore(where: Geometry, projector: str | None) -> Layout:
    return basis_fields(where)


def _fira(where: Geometry, projector: str | None) -> Layout:
    return basis_fields(where) | limit_fields()


def _apollo(where: Geometry, projector: str | None) -> Layout:
    """A random projection is drawn again from its seed, so the state does not keep it."""
    return (basis_fields(where) if projector == "svd" else {}) | limit_fields()


METHODS: dict[str, Method] = {
    "galore": Method("galore:GaLoreAdamW", _galore),
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
