"""The methods that choose atoms or orthogonalize, with what each keeps in its state. Needs no torch."""

from __future__ import annotations

from math import ceil
from typing import Any

from lowrank_core.memory.geometry import FULL, ONE_SIDED, WHOLE, Geometry
from lowrank_core.memory.gradients import Way
from lowrank_core.memory.method import Kept, Keys, Method
from lowrank_core.memory.storage import adam_fields, atom_fields, count_fields, feedback_fields


def _dct(where: Geometry, keys: Keys) -> Kept:
    moments, fed_back = adam_fields(where.low_shape) | count_fields(where), keys["error_feedback"]
    return Kept(moments, atom_fields(where, keys["basis"]), feedback_fields(where) if fed_back else None)


def _muon(where: Geometry, keys: Keys) -> Kept:
    return Kept(feedback_fields(where), {})


def _dion2(where: Geometry, keys: Keys) -> Kept:
    return Kept(feedback_fields(where), atom_fields(where, "identity"))


def _trion(where: Geometry, keys: Keys) -> Kept:
    return Kept(feedback_fields(where), atom_fields(where, keys["basis"]))


def share_rank(keys: Keys, shorter: int) -> int | None:
    """The share `fraction` of min(m, n), rounded up, whatever the rank; None if there is none."""
    if keys["rank"] is None:
        return None
    fraction: float = keys["fraction"]
    return max(1, ceil(round(fraction * shorter, 9)))  # 0.07 * 100 is above 7


_NO_SEARCH = ("scale", "projector", "oversample", "niter", "moments")
_CHOICE: dict[str, Any] = {"basis": "dct2", "norm_ord": 2}
_ORTHOGONAL: dict[str, Any] = {
    "momentum": 0.95, "ns_coefficients": (3.4445, -4.775, 2.0315), "eps": 1e-7, "ns_steps": 5, "adjust_lr_fn": None,
    "plain_lr": None, "plain_betas": None,
}  # fmt: skip
_LACKED = (*_NO_SEARCH, "betas", "update_proj_gap", "force_projection", "stagger")
METHODS = {
    "dct": Method(
        "dct:DCTAdamW",
        _dct,
        rank=0.25,
        own={**_CHOICE, "update_proj_gap": 1, "error_feedback": True, "error_feedback_dtype": "auto"},
        deciding=("basis", "error_feedback", "error_feedback_dtype"),
        lacks=_NO_SEARCH,
        projectors=(),
        proj_types=ONE_SIDED,
        way=Way.AT_ONCE,
    ),
    "trion": Method(
        "trion:Trion",
        _trion,
        rank=0.25,
        own={**_ORTHOGONAL, **_CHOICE, "lr": 0.02},
        deciding=("basis",),
        full_rank="project",
        lacks=_LACKED,
        projectors=(),
        proj_types=ONE_SIDED,
        way=Way.AT_ONCE,
    ),
    "dion2": Method(
        "dion2:Dion2",
        _dion2,
        rank=FULL,
        own={**_ORTHOGONAL, "lr": 0.01, "weight_decay": 0.01, "fraction": 0.25, "norm_ord": 1},
        deciding=("fraction",),
        rank_of=share_rank,
        full_rank="project",
        lacks=_LACKED,
        projectors=(),
        proj_types=ONE_SIDED,
        way=Way.AT_ONCE,
    ),
    "muon": Method(
        "muon:Muon",
        _muon,
        rank=FULL,
        own={**_ORTHOGONAL, "weight_decay": 0.1, "nesterov": True},
        full_rank=WHOLE,
        lacks=(*_LACKED, "proj_type"),
        projectors=(),
        proj_types=("std",),
        way=Way.AT_ONCE,
    ),
}
