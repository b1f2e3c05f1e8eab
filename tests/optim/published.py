"""The keys of every method with their published defaults, which are written down here a second time."""

from __future__ import annotations

from typing import Any

from lowrank_core.optim import (
    SCALE,
    AdaRankGradAdamW,
    ApolloAdamW,
    CoapAdamW,
    DCTAdamW,
    Dion2,
    FiraAdamW,
    FloraAdamW,
    FrugalAdamW,
    GaLoreAdamW,
    LDAdamW,
    Muon,
    QGaLoreAdamW,
    SinkGD,
    Trion,
)

GALORE: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "rank": 128,
    "update_proj_gap": 200,
    "scale": 0.25,
    "proj_type": "std",
    "rule": "adam",
    "projector": "rsvd",
    "oversample": 10,
    "niter": 2,
    "moments": "keep",
    "moment_dtype": "auto",
    "plain_moment_dtype": None,
    "rounding": "nearest",
    "seed": 0,
    "nonfinite": "skip",
    "force_projection": False,
    "maximize": False,
    "stagger": "auto",
    "stacked": False,
}
SHARED = {key: value for key, value in GALORE.items() if key != "rule"}  # with the methods that come from it
QGALORE = {
    **SHARED,
    "cos_threshold": 0.4,
    "queue_size": 5,
    "gamma": 2,
    "group_size": 128,
    "moment_dtype": "int8",
}
FIRA = {**SHARED, "limiter": 1.01, "residual": "paper"}
APOLLO = {
    **{key: value for key, value in SHARED.items() if key not in ("moments", "oversample", "niter")},
    "rank": 256,
    "scale": 1.0,
    "projector": "random",
    "scale_type": "channel",
    "limiter": 1.01,
    "scale_cap": None,
}
_NO_SUBSPACE = {
    key: value
    for key, value in SHARED.items()
    if key
    not in (
        "update_proj_gap", "scale", "proj_type", "projector", "oversample", "niter", "moments", "force_projection",
        "stagger",
    )
}  # fmt: skip
FRUGAL = {
    **_NO_SUBSPACE,
    "rank": 0.25,
    "density": None,
    "subspace": "columns",
    "sign_scale": 1.0,
    "update_proj_gap": 200,
    "stagger": "auto",
}
SCALE_ = {**_NO_SUBSPACE, "rank": "full", "momentum": 0.9, "last": None}
SINKGD = {**_NO_SUBSPACE, "rank": "full", "iterations": 5, "scale": 0.05}
COAP = {
    **{key: value for key, value in SHARED.items() if key != "projector"},
    "rank": 0.25,
    "update_proj_gap": 32,
    "scale": 1.0,
    "reproject_factor": 5,
    "eq5": "reference",
}
ADARANKGRAD = {
    **{key: value for key, value in SHARED.items() if key not in ("projector", "oversample", "moments")},
    "niter": 1,
    "energy": 0.95,
    "min_rank": 1,
    "max_rank": None,
    "convergence": 0.3,
}
FLORA = {
    **_NO_SUBSPACE,
    "rank": 128,
    "kappa": 1000,
    "proj_type": "std",
    "force_projection": False,
    "stagger": "auto",
}
LDADAM = {
    **_NO_SUBSPACE,
    "betas": (0.908, 0.99),
    "rank": 16,
    "proj_type": "std",
    "force_projection": False,
    "rho": 0.908,
}
DCT = {
    **_NO_SUBSPACE,
    **{key: SHARED[key] for key in ("proj_type", "force_projection", "stagger")},
    "rank": 0.25,
    "update_proj_gap": 1,
    "basis": "dct2",
    "norm_ord": 2,
    "error_feedback": True,
    "error_feedback_dtype": "auto",
}
_ORTHOGONAL = {
    **{key: value for key, value in _NO_SUBSPACE.items() if key != "betas"},
    "momentum": 0.95,
    "ns_coefficients": (3.4445, -4.775, 2.0315),
    "eps": 1e-7,
    "ns_steps": 5,
    "adjust_lr_fn": None,
    "plain_lr": None,
    "plain_betas": None,
}
MUON = {**_ORTHOGONAL, "weight_decay": 0.1, "nesterov": True, "rank": "full"}
DION2 = {
    **{**_ORTHOGONAL, "lr": 0.01, "weight_decay": 0.01, "rank": "full"},
    **{"fraction": 0.25, "norm_ord": 1, "proj_type": "std"},
}
TRION = {**_ORTHOGONAL, "lr": 0.02, "rank": 0.25, "basis": "dct2", "norm_ord": 2, "proj_type": "std"}
EVERY = {
    AdaRankGradAdamW: ADARANKGRAD,
    LDAdamW: LDADAM,
    FloraAdamW: FLORA,
    GaLoreAdamW: GALORE,
    QGaLoreAdamW: QGALORE,
    FiraAdamW: FIRA,
    ApolloAdamW: APOLLO,
    CoapAdamW: COAP,
    FrugalAdamW: FRUGAL,
    SCALE: SCALE_,
    SinkGD: SINKGD,
    DCTAdamW: DCT,
    Muon: MUON,
    Dion2: DION2,
    Trion: TRION,
}
