"""What is a constant by its documentation carries no graph; everything else has torch's derivatives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowrank_core import adapters
from lowrank_core.adapters import kalman, noise
from testing import cases
from torch import Tensor

LOGITS, TARGET = cases.gaussian(1, 4)[0], torch.tensor(2)
JAC, P = cases.gaussian(4, 6), cases.gaussian(1, 6)[0].square() + 0.1
ERROR, NOISE = cases.gaussian(1, 4, seed=2)[0], torch.eye(4, dtype=torch.float64) + 0.1

CONSTANTS: dict[str, Callable[[Tensor], Any]] = {
    "softmax_cotangents": lambda x: adapters.softmax_cotangents(x, TARGET),
    "lumped_cotangents": lambda x: adapters.lumped_cotangents(x, TARGET, keep=2),
    "monte_carlo_cotangents": lambda x: adapters.monte_carlo_cotangents(x, TARGET, samples=2, seed=1),
    "softmax_observation": lambda x: kalman.softmax_observation(JAC, x, TARGET, epsilon=0.1).score,
    "jacobian_rows": lambda x: adapters.jacobian_rows(x.sin(), [x])[0],
}
DIFFERENTIABLE: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "whiten": (lambda h, e, r: tuple(kalman.whiten(h, e, r)), (JAC, ERROR, NOISE)),
    "deflate": (kalman.deflate, (NOISE, 2 * NOISE)),
    "predicted_covariance": (kalman.predicted_covariance, (JAC, P)),
    "predict_variance": (lambda p: kalman.predict_variance(p, q=0.1, gamma=0.9), (P,)),
    "fade": (lambda p: kalman.fade(p, 0.9), (P,)),
    "noise_matrix": (lambda r: kalman.noise_matrix(r, ERROR), (P[:4],)),
    "softmax_observation": (lambda j: tuple(kalman.softmax_observation(j, LOGITS, TARGET)), (JAC,)),
    "predicted_change": (kalman.predicted_change, (JAC, P)),
    "moved_on": (lambda g, j, d: tuple(kalman.moved_on([g], [j], [d])), (P, JAC, 0.1 * P)),
    "split_score": (lambda j: [x for part in adapters.split_score([j]) for x in part], (JAC,)),
}
OTHERS = {  # no derivative can be asked of: a number, a shape alone, an object, a context
    *("divergence", "next_fading", "identity_cotangents", "noise_policy", "record_linears"),
    *("find_pairs", "loraplus_param_groups", "init_lora_", "fold_square_", "merge_adapters", "extract_lora"),
    *("read_adapter", "save_adapter", "to_peft"),
}


def test_every_function_has_a_row() -> None:
    public = {name for name in adapters.__all__ if inspect.isfunction(getattr(adapters, name))}
    in_modules = {
        name
        for module in (kalman, noise)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public | in_modules == {*CONSTANTS, *DIFFERENTIABLE, *OTHERS}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_say_so_and_carry_no_graph(name: str) -> None:
    assert not CONSTANTS[name](LOGITS.clone().requires_grad_()).requires_grad
    function = getattr(adapters, name, None) or getattr(kalman, name)
    assert "constant" in (inspect.getdoc(function) or "")


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_others_have_derivatives(name: str) -> None:
    call, inputs = DIFFERENTIABLE[name]
    symmetric = (lambda *x: call(*x[:-1], (x[-1] + x[-1].mT) / 2)) if name == "whiten" else call
    assert torch.autograd.gradcheck(symmetric, tuple(x.clone().requires_grad_() for x in inputs))


@pytest.mark.parametrize("name", noise.POLICIES)
def test_estimates_of_the_noise_hold_no_graph(name: str) -> None:
    """Also over steps whose errors were not detached."""
    policy = noise.noise_policy(name, 4)
    for seed in range(3):
        e = cases.gaussian(1, 4, seed=seed)[0].requires_grad_()
        a = NOISE.clone().requires_grad_()
        assert not policy.before(e, a).requires_grad
        policy.after(e, a, 0.5 * a)
        assert not policy.r.requires_grad


def test_numbers_of_tensors_that_require_gradients() -> None:
    """torch warns where one is converted that was not detached."""
    leaf = JAC.clone().requires_grad_()
    assert kalman.divergence(leaf, P) == kalman.divergence(JAC, P)
