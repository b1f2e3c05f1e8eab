"""The methods of the package by name, with what each keeps in its state. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lowrank_core.memory.geometry import FULL, ONE_SIDED, PROJ_TYPES, WHOLE, Geometry, Rank, rank_of
from lowrank_core.memory.storage import RULES, Layout, adam_fields, basis_fields, limit_fields, lion_fields

Keys = Mapping[str, Any]  # of a group: those that decide what its states look like
# Names of all parameters, the keys of each, whether each is a matrix that the method takes -> keys of each alone.
Settle = Callable[[Sequence[str], Sequence[Keys], Sequence[bool]], list[Keys]]


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
    settle: Settle | None = None  # what a key is for each weight, where that depends on the others
    projectors: tuple[str, ...] = ("rsvd", "svd")  # the default first; () if it has no such key
    proj_types: tuple[str, ...] = PROJ_TYPES


def _galore(where: Geometry, keys: Keys) -> Kept:
    return Kept(RULES[keys["rule"]](where.low_shape), basis_fields(where))


def _adam(where: Geometry, keys: Keys) -> Kept:
    return Kept(adam_fields(where.low_shape), basis_fields(where))


def _fira(where: Geometry, keys: Keys) -> Kept:
    return Kept(adam_fields(where.low_shape), basis_fields(where) | limit_fields())


def _apollo(where: Geometry, keys: Keys) -> Kept:
    """A random projection is drawn again from its seed, so the state does not keep it."""
    bases = basis_fields(where) if keys["projector"] == "svd" else {}
    return Kept(adam_fields(where.low_shape), bases | limit_fields())


def _scale(where: Geometry, keys: Keys) -> Kept:
    return Kept(lion_fields(where.low_shape) if keys["last"] else {}, {})


def _sinkgd(where: Geometry, keys: Keys) -> Kept:
    return Kept({}, {})


def last_matrices(names: Sequence[str], asked: Sequence[bool | None], matrices: Sequence[bool]) -> list[bool]:
    """Which weights SCALE takes for the last layer, where their groups leave it open.

    Args:
      names: of all parameters, in their order.
      asked: the key `last` of their groups.
      matrices: whether each is a matrix that the method takes.
    """
    open_ = [last is None and matrix for last, matrix in zip(asked, matrices, strict=True)]
    if True in asked:
        return [False] * len(names)
    if any("lm_head" in name for name in names):
        return [hit and "lm_head" in name for hit, name in zip(open_, names, strict=True)]
    final = max((i for i, hit in enumerate(open_) if hit), default=None)
    return [i == final for i in range(len(names))]


def _settle_last(names: Sequence[str], keys: Sequence[Keys], matrices: Sequence[bool]) -> list[Keys]:
    asked = [own["last"] for own in keys]
    chosen = last_matrices(names, asked, matrices)
    return [{"last": bool(last) or hit} for last, hit in zip(asked, chosen, strict=True)]


# Keys of GaLore's that say something of subspaces.
_OF_SUBSPACES = (
    "update_proj_gap", "proj_type", "projector", "oversample", "niter", "moments", "force_projection", "stagger",
)  # fmt: skip
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
    "coap": Method(
        "coap:CoapAdamW",
        _adam,
        rank=0.25,
        own={"update_proj_gap": 32, "scale": 1.0, "reproject_factor": 5, "eq5": "reference"},
        lacks=("projector",),
        projectors=(),
        proj_types=ONE_SIDED,
    ),
}
METHODS |= {
    "scale": Method(
        "scale:SCALE",
        _scale,
        rank=FULL,
        own={"momentum": 0.9, "last": None},
        deciding=("last",),
        full_rank=WHOLE,
        lacks=(*_OF_SUBSPACES, "scale"),
        settle=_settle_last,
        projectors=(),
        proj_types=("std",),
    ),
    "sinkgd": Method(
        "sinkgd:SinkGD",
        _sinkgd,
        rank=FULL,
        own={"iterations": 5, "scale": 0.05},
        full_rank=WHOLE,
        lacks=_OF_SUBSPACES,
        projectors=(),
        proj_types=("std",),
    ),
}
PROJECTORS = tuple(dict.fromkeys(name for method in METHODS.values() for name in method.projectors))
TO_COME = ("qgalore", "adarankgrad", "dct", "trion", "dion2", "frugal", "flora", "ldadam", "lisa")
