"""No option is accepted and ignored: another value of any key of any method shows in weights or state."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from lowrank_core.optim import METHODS
from optim_cases import draw, same
from torch import nn

BASE: dict[str, Any] = {"lr": 0.05, "rank": 3, "update_proj_gap": 2, "niter": 0, "oversample": 1}
SHAPES: tuple[tuple[int, ...], ...] = ((20, 14), (14, 20), (9,))
# Another value of each key, and what else it takes to be seen.
OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "lr": (0.1, {}),
    "betas": ((0.8, 0.99), {}),
    "eps": (0.1, {}),
    "weight_decay": (0.1, {}),
    "rank": (2, {}),
    "update_proj_gap": (3, {}),
    "scale": (2.0, {}),
    "proj_type": ("reverse_std", {}),
    "rule": ("lion", {}),
    "projector": ("svd", {}),
    "oversample": (6, {}),
    "niter": (2, {}),
    "moments": ("rotate", {}),
    "energy": (0.1, {"rank": 12}),
    "min_rank": (9, {"rank": 12, "energy": 0.1}),
    "max_rank": (2, {}),
    "rho": (0.5, {}),
    "reproject_factor": (1, {}),
    "eq5": ("normalized", {}),
    "limiter": (None, {}),
    "momentum": (0.5, {}),
    "density": (0.0, {}),
    "subspace": ("block", {}),
    "sign_scale": (0.5, {}),
    "last": (True, {}),
    "iterations": (1, {}),
    "residual": ("code", {}),
    "scale_type": ("tensor", {}),
    "scale_cap": (1.0, {}),
    "kappa": (2, {}),
    "cos_threshold": (2.0, {"update_proj_gap": 1, "queue_size": 1, "cos_threshold": 0.0}),
    "queue_size": (2, {"update_proj_gap": 1, "cos_threshold": 0.0, "queue_size": 1}),
    "gamma": (1.0, {"update_proj_gap": 1, "cos_threshold": 0.0, "queue_size": 1}),
    "group_size": (32, {"shapes": ((70, 40), (40, 70))}),
    "moment_dtype": ("float32", {"moment_dtype": "int8"}),
    "plain_moment_dtype": ("bfloat16", {}),
    "rounding": ("stochastic", {"dtype": torch.bfloat16}),
    "seed": (1, {}),
    "force_projection": (True, {"rank": 30}),
    "maximize": (True, {}),
    "stagger": (True, {"update_proj_gap": 4, "kappa": 4}),
    "stacked": (True, {"shapes": ((2, 20, 14), (2, 14, 20))}),
}
OTHER |= {
    "basis": ("dct3", {}),
    "norm_ord": (1, {}),
    "error_feedback": (False, {}),
    "error_feedback_dtype": ("int8", {}),
    "momentum": (0.5, {}),
    "nesterov": (False, {}),
    "ns_coefficients": ((3.0, -3.2, 1.2), {}),
    "ns_steps": (4, {}),
    "adjust_lr_fn": ("match_rms_adamw", {}),
    "fraction": (0.5, {}),
    "plain_lr": (0.01, {}),
    "plain_betas": ((0.8, 0.99), {}),
}
# Of one method alone.
OWN: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}
for _whole in ("scale", "sinkgd"):  # where the rank only marks matrices, and nothing is drawn but roundings
    OWN[_whole, "rank"] = (None, {})
    OWN[_whole, "seed"] = (1, {"dtype": torch.bfloat16, "rounding": "stochastic"})
for _orthogonal in ("muon", "dion2", "trion"):
    OWN[_orthogonal, "eps"] = (1e3, {})  # in units of the momentum
    OWN[_orthogonal, "seed"] = (1, {"moment_dtype": "int8"})
    OWN[_orthogonal, "weight_decay"] = (0.2, {})
    OWN[_orthogonal, "rank"] = (None, {})
OWN["dion2", "norm_ord"] = (2, {})
OWN["dct", "update_proj_gap"] = (1, {})
OWN["dct", "seed"] = (1, {"moment_dtype": "int8"})
ELSEWHERE = {"nonfinite", "convergence"}  # tests/optim/test_contract.py, tests/optim/test_adarankgrad.py


def keys_of(name: str) -> dict[str, Any]:
    """The keys of a method, with their defaults."""
    parameters = inspect.signature(METHODS[name]).parameters
    return {key: p.default for key, p in parameters.items() if key not in ("params", "torch_keys")}


def ends(
    name: str, dtype: torch.dtype = torch.float32, shapes: tuple[tuple[int, ...], ...] = SHAPES, **keys: Any
) -> list[Any]:
    """Weights and states after six steps of two matrices and a vector."""
    weights = [nn.Parameter(draw(*shape, seed=i).to(dtype)) for i, shape in enumerate(shapes)]
    kind: Any = METHODS[name]
    optimizer = kind(weights, **{key: value for key, value in {**BASE, **keys}.items() if key in keys_of(name)})
    for step in range(6):
        for i, weight in enumerate(weights):
            weight.grad = draw(*weight.shape, seed=10 * step + i).to(dtype)
        optimizer.step()
    return [(weight.detach(), optimizer.state[weight]) for weight in weights]


@pytest.mark.filterwarnings("ignore:.* nothing is projected at rank:UserWarning")
@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name in METHODS for key in keys_of(name) if key not in ELSEWHERE]
)
def test_another_value_shows(name: str, key: str) -> None:
    value, besides = OWN.get((name, key)) or OTHER[key]
    usual = {**keys_of(name), **BASE, **besides}[key]
    assert usual != value
    assert not same(ends(name, **besides), ends(name, **{**besides, key: value}))
