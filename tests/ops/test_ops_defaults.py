"""What an argument of an operator means that is left out: the published values, by signature, by schema and by bits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import lowrank_core as lc
import numpy as np
import pytest
import torch
from testing import cases, checks

SKETCH: dict[str, Any] = {"oversample": 10, "niter": 2, "basis": None, "seed": 0, "precision": None}
PUBLISHED: dict[str, dict[str, Any]] = {
    "attention_lora_grad": {
        "scale": 1.0, "method": "exact", "degree": 2, "features": None, "causal": False, "key_mask": None,
    },
    "augment_truncate": {"gs": None, "min_rank": 1, "budget": None, "weights": None},
    "dct": {"dim": -1},
    "dct_project_back": {"basis": "dct2"},
    "dct_select": {"basis": "dct2", "side": "auto", "norm_ord": 2},
    "dct_select_feedback_": {"keep": 0.0, "basis": "dct2", "side": "auto", "norm_ord": 2},
    "dequantize_int4": {"dtype": None},
    "factored_svd": {"rank": None},
    "idct": {"dim": -1},
    "kalman_diag_step": {"lr": 1.0, "kl_limit": None},
    "kalman_diag_step_": {"lr": 1.0, "kl_limit": None},
    "lora_linear": {"bias": None},
    "orthonormalize": {"method": "auto"},
    "positive_features": {"count": 256, "seed": 0},
    "qb": {"energy": None, "tol": None, "max_rank": None, "block": 16, "niter": 1, "seed": 0},
    "quantize_int4": {"group_size": 128, "dim": -1, "scheme": "affine", "rounding": "nearest", "seed": 0},
    "range_finder": SKETCH,
    "rsvd": SKETCH,
    "subspace_step_": {
        "exp_avg_sq": None, "rule": "adam", "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "scale": 1.0,
        "residual": "drop", "residual_scale": 1.0, "cap": float("inf"), "limits": None, "growth": 1.01,
        "rounding": "nearest", "seeds": None, "maximize": False, "precision": None,
    },
    "svd_lowrank": {"q": 6, "niter": 2, "seed": 0},
    "usv_linear": {"bias": None},
}  # fmt: skip


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def test_signatures() -> None:
    functions = {name: getattr(lc, name) for name in lc.__all__ if inspect.isfunction(getattr(lc, name))}
    assert {name: found for name, f in functions.items() if (found := defaults_of(f))} == PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_schemas_have_no_defaults_of_their_own(name: str) -> None:
    """The registered operator of that name, where it has an argument of that name. "auto" is resolved before it."""
    lc.dct(torch.zeros(1))  # the operators are registered at the first use of one
    packet = getattr(torch.ops.lowrank_core, name, None)
    if packet is None:
        assert name in ("augment_truncate", "qb", "usv_linear", "dct_select_feedback_")
        return
    for argument in packet.default._schema.arguments:
        if argument.has_default_value() and argument.name in PUBLISHED[name]:
            wanted = PUBLISHED[name][argument.name]
            assert argument.default_value == ("right" if wanted == "auto" and argument.name == "side" else wanted)


def g(*shape: int, seed: int = 0) -> torch.Tensor:
    m, n = shape
    return cases.gaussian(m, n, seed=seed).float()


def step(**keys: Any) -> Any:
    """Two Adam steps of one weight whose residual is not dropped, where a key asks for that."""
    w, moments = g(24, 40), [torch.zeros(4, 40), torch.zeros(4, 40)]
    rule = keys.get("rule", "adam")
    for number in (1, 2):
        second = [moments[1]] if rule == "adam" else None
        lc.subspace_step_(
            [w], [g(24, 40, seed=number)], [cases.orthonormal(24, 4).float()], [moments[0]], second,
            sides=["left"], steps=[number], lr=0.1, **keys,
        )  # fmt: skip
    return [w, *moments]


def selected(**keys: Any) -> Any:
    return list(lc.dct_select(g(24, 40) ** 5, 12, **keys)[:3])


def fed_back(**keys: Any) -> Any:
    residual = g(24, 40, seed=1)
    return [*lc.dct_select_feedback_(residual, g(24, 40), 5, **keys)[:3], residual]


def coded(**keys: Any) -> Any:
    codes = lc.quantize_int4(g(256, 256), **keys)
    return [codes.packed, codes.scales]


def attention(**keys: Any) -> Any:
    keys = {key: value for key, value in keys.items() if value is not None}
    found = lc.attention_lora_grad(
        *(0.3 * g(7, n, seed=n) for n in (4, 3, 5, 5)), g(2, 3), g(4, 2), weight=g(4, 3), **keys
    )
    return [found.da, found.db]


def kalman(**keys: Any) -> Any:
    p = g(1, 30)[0].abs()
    return list(lc.kalman_diag_step(p, p, g(3, 30, seed=1), g(1, 30, seed=2)[0], **keys))


# A call of each, and other values than the published ones, each of which must show.
BEHAVIOUR: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "rsvd": (lambda **k: list(lc.rsvd(g(60, 40), 5, **k)), {"oversample": 9, "niter": 1, "seed": 1}),
    "range_finder": (lambda **k: lc.range_finder(g(60, 40), 5, **k), {"oversample": 9, "niter": 1, "seed": 1}),
    "svd_lowrank": (lambda **k: list(lc.svd_lowrank(g(60, 40), **k)), {"q": 5, "niter": 1, "seed": 1}),
    "qb": (
        lambda **k: list(lc.qb(g(60, 40), **{**k, "energy": 0.6}))[:2],
        {"block": 8, "niter": 2, "seed": 1, "max_rank": 5},
    ),
    "quantize_int4": (
        coded, {"group_size": 64, "dim": 0, "scheme": "symmetric", "rounding": "stochastic"},
    ),
    "dct": (lambda **k: lc.dct(g(8, 8), **k), {"dim": 0}),
    "idct": (lambda **k: lc.idct(g(8, 8), **k), {"dim": 0}),
    "dct_select": (selected, {"basis": "dct3", "side": "right", "norm_ord": 1}),
    "dct_select_feedback_": (fed_back, {"keep": 0.5, "basis": "dct3", "side": "right", "norm_ord": 1}),
    "positive_features": (
        lambda **k: list(lc.positive_features(g(3, 4), g(5, 4, seed=1), **k)),
        {"count": 128, "seed": 1},
    ),
    "attention_lora_grad": (attention, {"scale": 0.5, "causal": True, "method": "chained"}),
    "kalman_diag_step": (kalman, {"lr": 0.5, "kl_limit": 1e-3}),
    "subspace_step_": (
        step,
        {
            "rule": "lion", "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1, "scale": 0.5,
            "residual": "sign", "maximize": True,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BEHAVIOUR)
def test_nothing_said_is_the_published_said(name: str) -> None:
    call, others = BEHAVIOUR[name]
    published = {key: value for key, value in PUBLISHED[name].items() if value is not None}
    assert checks.same_bits(call(), call(**published))
    for key, value in others.items():
        assert not checks.same_bits(call(**published), call(**{**published, key: value})), key


def test_residuals_and_limits_have_their_published_sizes() -> None:
    """What only acts beside another key: the size of a residual, its growth, and the seeds."""
    scaled = {"residual": "scaled"}
    assert checks.same_bits(step(**scaled), step(**scaled, residual_scale=1.0))
    assert not checks.same_bits(step(**scaled), step(**scaled, residual_scale=0.5))
    ends = {}
    for name, keys in (("left out", {}), ("said", {"growth": 1.01}), ("other", {"growth": 1.5})):
        ends[name] = step(**scaled, **keys, limits=[torch.full((1,), 1e-3)])
    assert checks.same_bits(ends["left out"], ends["said"]) and not checks.same_bits(ends["said"], ends["other"])


def test_numpy_has_the_same_defaults() -> None:
    a = g(60, 40)
    for ours, theirs in ((lc.rsvd(a, 5), lc.rsvd(a.numpy(), 5)), (lc.svd_lowrank(a), lc.svd_lowrank(a.numpy()))):
        assert all(np.array_equal(x.numpy(), y) for x, y in zip(ours, theirs, strict=True))
