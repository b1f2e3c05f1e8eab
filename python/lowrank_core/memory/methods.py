"""The methods of the package by name, with what each keeps in its state. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from lowrank_core.memory import atoms
from lowrank_core.memory.frugal import DENSITY, active_of, kept_fields, place_frugal, share_of
from lowrank_core.memory.geometry import FULL, ONE_SIDED, WHOLE, Geometry, rank_of
from lowrank_core.memory.gradients import Way
from lowrank_core.memory.method import Entry, Kept, Keys, Method
from lowrank_core.memory.storage import (
    RULES,
    adam_fields,
    bare_fields,
    basis_fields,
    convergence_fields,
    error_fields,
    lazy_fields,
    limit_fields,
    lion_fields,
    packed_fields,
    whole_means,
)


def _galore(where: Geometry, keys: Keys) -> Kept:
    return Kept(RULES[keys["rule"]](where.low_shape), basis_fields(where))


def _adam(where: Geometry, keys: Keys) -> Kept:
    return Kept(adam_fields(where.low_shape), basis_fields(where))


def _qgalore(where: Geometry, keys: Keys) -> Kept:
    kept = packed_fields(where, keys["group_size"]) | lazy_fields(keys["queue_size"])
    return Kept(adam_fields(where.low_shape), kept)


def _flora(where: Geometry, keys: Keys) -> Kept:
    """The sketch is drawn again from its seed, so the state does not keep it."""
    return Kept(lion_fields(where.low_shape), whole_means(where))


def _fira(where: Geometry, keys: Keys) -> Kept:
    return Kept(adam_fields(where.low_shape), basis_fields(where) | limit_fields())


def _apollo(where: Geometry, keys: Keys) -> Kept:
    """A random projection is drawn again from its seed, so the state does not keep it."""
    bases = basis_fields(where) if keys["projector"] == "svd" else {}
    return Kept(adam_fields(where.low_shape), bases | limit_fields())


def _adarankgrad(where: Geometry, keys: Keys) -> Kept:
    return Kept(adam_fields(where.low_shape), basis_fields(where) | convergence_fields())


def rank_at_most(keys: Keys, shorter: int) -> int | None:
    """The largest rank: `max_rank` where a group gives it, else `rank`."""
    given = keys["rank"] is not None and keys["max_rank"] is not None
    return rank_of({"rank": keys["max_rank"]} if given else keys, shorter)


def _ldadam(where: Geometry, keys: Keys) -> Kept:
    return Kept(adam_fields(where.low_shape), bare_fields(where) | error_fields(where))


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


def _settle_last(entries: Sequence[Entry]) -> list[list[tuple[Keys, int]]]:
    names, asked = [entry.name for entry in entries], [entry.keys["last"] for entry in entries]
    chosen = last_matrices(names, asked, [entry.taken for entry in entries])
    return [_last_of(entry, hit) for entry, hit in zip(entries, chosen, strict=True)]


def _last_of(entry: Entry, hit: bool) -> list[tuple[Keys, int]]:
    if entry.keys["last"] or (hit and "lm_head" in entry.name):
        return [({"last": True}, entry.number)]
    return [({"last": True}, int(hit)), ({"last": False}, entry.number - int(hit))]


def _frugal(where: Geometry, keys: Keys) -> Kept:
    return Kept(*kept_fields(where if keys.get("active", True) else where.at(0), keys["subspace"]))


def _settle_blocks(entries: Sequence[Entry]) -> list[list[tuple[Keys, int]]]:
    """`active`: whether a matrix is at work. The largest ones are, where FRUGAL has only some at work at a time."""
    share = max((share_of(entry.keys) or 0.0 for entry in entries if entry.taken), default=0.0)
    left = active_of(share, sum(entry.number for entry in entries if entry.taken))
    found: dict[int, list[tuple[Keys, int]]] = {}
    for i in sorted(range(len(entries)), key=lambda i: -prod(entries[i].shape)):
        entry, blocks = entries[i], entries[i].taken and entries[i].keys["subspace"] == "block"
        active = min(left, entry.number) if blocks else entry.number
        left -= active if blocks else 0
        found[i] = [({"active": True}, active), ({"active": False}, entry.number - active)]
    return [found[i] for i in range(len(entries))]


# Keys of GaLore's that say something of subspaces.
_OF_SUBSPACES = (
    "update_proj_gap", "proj_type", "projector", "oversample", "niter", "moments", "force_projection", "stagger",
)  # fmt: skip
METHODS: dict[str, Method] = {
    "galore": Method("galore:GaLoreAdamW", _galore, own={"rule": "adam"}, deciding=("rule",)),
    "qgalore": Method(
        "qgalore:QGaLoreAdamW",
        _qgalore,
        own={"cos_threshold": 0.4, "queue_size": 5, "gamma": 2, "group_size": 128, "moment_dtype": "int8"},
        deciding=("queue_size", "group_size"),
    ),
    "fira": Method(
        "fira:FiraAdamW", _fira, own={"limiter": 1.01, "residual": "paper"}, proj_types=ONE_SIDED, way=Way.AT_ONCE
    ),
    "apollo": Method(
        "apollo:ApolloAdamW",
        _apollo,
        rank=256,
        own={"scale": 1.0, "projector": "random", "scale_type": "channel", "limiter": 1.01, "scale_cap": None},
        lacks=("moments", "oversample", "niter"),
        projectors=("random", "svd"),
        proj_types=ONE_SIDED,
        way=Way.AT_ONCE,
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
    "frugal": Method(
        "frugal:FrugalAdamW",
        _frugal,
        rank=DENSITY,
        own={"density": None, "subspace": "columns", "sign_scale": 1.0},
        deciding=("density", "subspace"),
        place=place_frugal,
        lacks=("scale", *(key for key in _OF_SUBSPACES if key not in ("update_proj_gap", "stagger"))),
        settle=_settle_blocks,
        projectors=(),
        proj_types=("std",),
        way=Way.AT_ONCE,
    ),
    "flora": Method(
        "flora:FloraAdamW",
        _flora,
        own={"kappa": 1000},
        lacks=("update_proj_gap", "scale", "projector", "oversample", "niter", "moments"),
        projectors=(),
        proj_types=ONE_SIDED,
        way=Way.AT_ONCE,
    ),
    "adarankgrad": Method(
        "adarankgrad:AdaRankGradAdamW",
        _adarankgrad,
        own={"niter": 1, "energy": 0.95, "min_rank": 1, "max_rank": None, "convergence": 0.3},
        deciding=("max_rank",),
        rank_of=rank_at_most,
        lacks=("projector", "oversample", "moments"),
        projectors=(),
        proj_types=ONE_SIDED,
    ),
    "ldadam": Method(
        "ldadam:LDAdamW",
        _ldadam,
        rank=16,
        own={"betas": (0.908, 0.99), "rho": 0.908},
        lacks=("update_proj_gap", "scale", "projector", "oversample", "niter", "moments", "stagger"),
        projectors=(),
        proj_types=ONE_SIDED,
        way=Way.AT_ONCE,
    ),
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
        way=Way.WHOLE,
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
        way=Way.WHOLE,
    ),
}
METHODS |= atoms.METHODS
PROJECTORS = tuple(dict.fromkeys(name for method in METHODS.values() for name in method.projectors))
FACADES = ("lisa",)  # optimizers that stand in front of another one, here AdamW
