"""What an argument that is left out means: the published values, by signature, in the groups, and in what is done."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from lowrank_core.memory import estimate as memory
from lowrank_core.optim import (
    METHODS,
    GaLoreAdamW,
    estimate_state_bytes,
    formula_state_bytes,
    param_groups,
)
from lowrank_core.optim.parts.projectors.orthonormal import RandomizedSVD
from lowrank_core.optim.parts.projectors.packed import PackedBasis
from lowrank_core.optim.parts.projectors.selected import Blocks, DrawnLines, Whole
from lowrank_core.optim.parts.projectors.selection import Selection
from lowrank_core.optim.parts.residuals.drop import Drop
from lowrank_core.optim.parts.residuals.limited import ScaledGradient, ScaledRest
from lowrank_core.optim.parts.residuals.sign import SignRest
from lowrank_core.optim.parts.rules.adabelief import AdaBelief
from lowrank_core.optim.parts.rules.adafactor import Adafactor
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.parts.rules.average import Average
from lowrank_core.optim.parts.rules.column_adam import ColumnAdam
from lowrank_core.optim.parts.rules.lines import Lines, MomentumLines, Sinkhorn
from lowrank_core.optim.parts.rules.lion import Lion
from lowrank_core.optim.parts.rules.newton_schulz import NewtonSchulz
from lowrank_core.optim.parts.schedules.fixed_gap import FixedGap
from lowrank_core.optim.parts.schedules.lazy import LazyGap
from lowrank_core.optim.parts.schedules.never import Never
from lowrank_core.optim.parts.transports import Reset
from optim_cases import draw, same
from published import EVERY, GALORE
from torch import Tensor, nn

# Of those, what decides the bytes of the state; it stands once more where torch is not needed.
DECIDING = {
    **{key: GALORE[key] for key in ("rank", "proj_type", "force_projection", "moment_dtype", "plain_moment_dtype")},
    "projector": None,
}
# Of everything else in the folder that is called with arguments.
OTHERS: list[tuple[Any, dict[str, Any]]] = [
    (
        param_groups,
        {
            "target_modules": "all-linear",
            "exclude": ("embed", "lm_head"),
            "rank": 128,
            "others": None,
            "stacked": "auto",
            "verbose": True,
        },
    ),
    (
        estimate_state_bytes,
        {
            "optimizer": "galore",
            "rank": 128,
            "dtype": None,
            "target_modules": None,
            "exclude": None,
            "others": None,
            "stacked": None,
        },
    ),
    (memory.Keys, {**DECIDING, "own": None}),
    (
        memory.estimate_state_bytes,
        {
            "optimizer": "galore",
            "dtype": "float32",
            "exclude": None,
            **DECIDING,
            "moment_dtype": None,
            "counts": None,
            "stacked": False,
        },
    ),
    (formula_state_bytes, {"proj_type": "std", "basis_bytes": 2, "moment_bytes": 2, "other_bytes": 2}),
    (Drop, {"scale": 1.0}),
    (ScaledRest, {"scale": 1.0, "limiter": 1.01, "resolution": 0.0, "kappa": 1.0}),
    (ScaledGradient, {"scale": 1.0, "limiter": 1.01, "resolution": 0.0, "whole": False, "cap": None}),
    (Whole, {}),
    (DrawnLines, {}),
    (Blocks, {"share": 0.25, "gap": 200}),
    (SignRest, {"scale": 1.0, "sign_scale": 1.0}),
    (Reset, {}),
    (Lines, {"rows": True}),
    (MomentumLines, {"rows": True, "momentum": 0.9}),
    (Sinkhorn, {"iterations": 5}),
    (Never, {}),
    (Adam, {"betas": (0.9, 0.999), "eps": 1e-8}),
    (ColumnAdam, {"betas": (0.9, 0.999), "eps": 1e-8}),
    (NewtonSchulz, {"coefficients": (3.4445, -4.775, 2.0315), "steps": 5, "eps": 1e-7}),
    (Selection, {"basis": "dct2", "norm_ord": 2, "spectral": False}),
    (AdaBelief, {"betas": (0.9, 0.999), "eps": 1e-8}),
    (Adafactor, {"beta2": 0.999, "eps": 1e-15}),
    (Lion, {"betas": (0.9, 0.99)}),
    (Average, {"beta1": 0.9}),
    (FixedGap, {"gap": 200, "stagger": "auto"}),
    (LazyGap, {"gap": 200, "stagger": "auto", "cos_threshold": 0.4, "queue_size": 5, "gamma": 2}),
    (PackedBasis, {"group_size": 128}),
]
PLAIN = "ignore:GaLoreAdamW"  # that nothing is projected is meant so
# Another value of each, and what it takes to be seen: keys that both have, and how many steps.
ALTERNATIVES: list[tuple[str, Any, dict[str, Any], int]] = [
    ("lr", 2e-3, {}, 1),
    ("betas", (0.8, 0.999), {}, 2),
    ("betas", (0.9, 0.99), {}, 2),
    ("eps", 1e-6, {}, 1),
    ("weight_decay", 0.01, {}, 1),
    ("rank", 127, {}, 1),
    ("update_proj_gap", 199, {}, 200),
    ("update_proj_gap", 201, {}, 201),
    ("scale", 1.0, {}, 1),
    ("proj_type", "full", {}, 1),
    ("proj_type", "reverse_std", {}, 1),
    ("rule", "lion", {}, 1),
    ("rule", "adafactor", {}, 1),
    ("rule", "adabelief", {}, 1),
    ("projector", "svd", {}, 1),
    ("oversample", 9, {"rank": 16}, 1),
    ("niter", 1, {}, 1),
    ("moments", "rotate", {"update_proj_gap": 2}, 3),
    ("moment_dtype", "int8", {}, 2),
    ("moment_dtype", "bfloat16", {}, 2),
    ("plain_moment_dtype", "int8", {"rank": None}, 2),
    ("plain_moment_dtype", "bfloat16", {"rank": None}, 2),
    ("seed", 1, {}, 1),
    ("force_projection", True, {"rank": 200}, 1),
    ("maximize", True, {}, 1),
]


def defaults_of(called: Any) -> dict[str, Any]:
    parameters = inspect.signature(called).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def ends(steps: int, dtype: torch.dtype = torch.float32, **keys: Any) -> tuple[Tensor, dict[str, Any]]:
    """A weight that the default rank is below the sides of, after some steps, and its state."""
    weight = nn.Parameter(draw(132, 140).to(dtype))
    optimizer = GaLoreAdamW([weight], **keys)
    for number in range(steps):
        weight.grad = 1e-3 * draw(132, 140, seed=1 + number % 5).to(dtype)
        optimizer.step()
    return weight.detach(), optimizer.state[weight]


def test_signatures() -> None:
    assert set(EVERY) == set(METHODS.values())
    for kind, keys in EVERY.items():
        assert defaults_of(kind) == keys, kind
    found = {key: value for key, value in defaults_of(RandomizedSVD).items() if key != "codec"}
    assert found == {"oversample": 10, "niter": 2, "warm_niter": 1}
    for called, published in OTHERS:
        assert defaults_of(called) == published, called


def test_the_first_arguments_are_those_of_torchs_adamw() -> None:
    ours, theirs = (list(inspect.signature(kind).parameters) for kind in (GaLoreAdamW, torch.optim.AdamW))
    assert ours[:5] == theirs[:5] == ["params", "lr", "betas", "eps", "weight_decay"]
    assert {key: defaults_of(torch.optim.AdamW)[key] for key in ours[1:4]} == {key: GALORE[key] for key in ours[1:4]}


def test_groups_have_the_defaults() -> None:
    weight = nn.Parameter(draw(130, 140))
    optimizer = GaLoreAdamW([weight])
    assert optimizer.defaults == GALORE
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in GALORE} == GALORE and group.keys() == {*GALORE, "params"}
    optimizer.add_param_group({"params": [nn.Parameter(draw(130, 140))]})
    assert {key: optimizer.param_groups[1][key] for key in GALORE} == GALORE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_nothing_said_is_the_published_said(dtype: torch.dtype) -> None:
    assert same(ends(3, dtype), ends(3, dtype, **GALORE))


@pytest.mark.filterwarnings(PLAIN)
@pytest.mark.parametrize(("key", "value", "besides", "steps"), ALTERNATIVES)
def test_another_value_would_show(key: str, value: Any, besides: dict[str, Any], steps: int) -> None:
    """So that a default that is not passed on shows as well as one that is changed."""
    published = {**GALORE, **besides}
    assert published[key] != value
    said, left_out = ends(steps, **published), ends(steps, **besides)
    assert same(said, left_out)
    assert not same(said, ends(steps, **{**published, key: value}))


@pytest.mark.filterwarnings(PLAIN)
def test_rounding_and_the_moments_of_half_precision() -> None:
    """ "auto" is bfloat16 for bfloat16 weights alone, on both paths; weights go to the nearest number."""
    for dtype, stored in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        for rank in (128, None):
            weight, state = ends(2, dtype, rank=rank)
            assert {state[key].dtype for key in ("exp_avg", "exp_avg_sq")} == {stored}
            name = str(stored).removeprefix("torch.")
            assert same((weight, state), ends(2, dtype, rank=rank, moment_dtype=name, rounding="nearest"))
    assert not same(ends(1, torch.bfloat16)[0], ends(1, torch.bfloat16, rounding="stochastic")[0])


def test_a_non_finite_gradient_is_skipped() -> None:
    weight = nn.Parameter(draw(130, 140))
    optimizer = GaLoreAdamW([weight])
    weight.grad = torch.full_like(weight, torch.nan)
    optimizer.step()
    assert optimizer.skipped_steps == 1


def test_the_default_targets() -> None:
    sides = {"embed_tokens": 200, "up": 160, "lm_head": 160, "over": 129, "under": 128}
    model = nn.ModuleDict({name: nn.Linear(side, 300, bias=False) for name, side in sides.items()})
    plain, projected = param_groups(model, verbose=False)
    assert (plain["rank"], projected["rank"]) == (None, 128)
    assert [name for name, _ in plain["params"]] == ["embed_tokens.weight", "lm_head.weight", "under.weight"]
    assert [name for name, _ in projected["params"]] == ["up.weight", "over.weight"]
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    for what in (model, shapes):
        said = estimate_state_bytes(what, "galore", rank=128, exclude=("embed", "lm_head"))
        assert estimate_state_bytes(what) == said


@pytest.mark.parametrize(("kind", "keys"), EVERY.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_an_optimizer_and_its_groups_have_these_keys_and_no_others(kind: Any, keys: dict[str, Any]) -> None:
    optimizer = kind([nn.Parameter(draw(6, 8))], rank=2)
    assert optimizer.defaults == {**keys, "rank": 2}
    assert optimizer.param_groups[0].keys() == {*keys, "params"}
