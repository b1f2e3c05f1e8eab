"""The family as torch operators: opcheck, fake kernels, torch.compile, derivatives; NaN and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import kalman_cases
import lowrank_core as lc
import numpy as np
import pytest
import torch
from lowrank_core.ops.declare import DECLARED
from testing import cases, checks, compiler
from torch import Tensor


def ops() -> Any:
    lc.kalman_diag_gain(torch.ones(1), torch.ones(1, 1), 1.0)  # the operators exist once a tensor has come
    return torch.ops.lowrank_core


def spd(m: int) -> Tensor:
    root = cases.gaussian(m, m, seed=3)
    return root @ root.mT + torch.eye(m, dtype=torch.float64)


F = kalman_cases.make(4, 37)
F32 = F.to(torch.float32)
NUMBERS = {"lr": 0.5, "kl_limit": None}
SAMPLES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "kalman_diag_gain": [
        ((F.p.clone().requires_grad_(), F.jac.clone().requires_grad_(), spd(4).requires_grad_()), {}),
        ((F32.p, F32.jac.mT.contiguous().mT, torch.ones(4)), {}),
        ((F32.p, F32.jac.bfloat16(), torch.tensor(0.5)), {}),
    ],
    "kalman_diag_step": [
        (tuple(F), NUMBERS),
        ((F32.theta.bfloat16(), F32.p, F32.jac, F32.score), {"lr": 1.0, "kl_limit": 0.1}),
    ],
    "kalman_diag_step_": [
        (([F.theta.clone()], [F.p.clone()], [F.jac], [F.score]), NUMBERS),
        (
            (
                [F32.theta[:12].view(3, 4).clone(), F32.theta[12:].clone()],
                [F32.p[:12].view(3, 4).clone(), F32.p[12:].clone()],
                [F32.jac[:, :12].view(4, 3, 4), F32.jac[:, 12:]],
                [F32.score[:12].view(3, 4), F32.score[12:]],
            ),
            NUMBERS,
        ),
    ],
}


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name: str) -> None:
    for arguments, options in SAMPLES[name]:
        torch.library.opcheck(getattr(ops(), name).default, arguments, options)


def test_every_operator_is_checked() -> None:
    assert {op.name for op in DECLARED["kalman_diag"]} == {*SAMPLES}


def _model(theta: Tensor, p: Tensor, jac: Tensor, score: Tensor) -> tuple[Tensor, ...]:
    out = lc.kalman_diag_step(theta, p, jac, score, lr=0.5)
    kept, variance = theta.clone(), p.clone()
    lc.kalman_diag_step_([kept], [variance], [jac], [score], kl_limit=0.1)
    return *out, kept, variance, lc.kalman_diag_gain(p, jac, 0.3)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(backend: str, dynamic: bool) -> None:
    compiler.needs_bools()
    torch._dynamo.reset()
    compiled = torch.compile(_model, fullgraph=True, backend=backend, dynamic=dynamic)
    for m, n in ((5, 40), (7, 60)) if dynamic else ((5, 40),):
        f = kalman_cases.make(m, n)
        assert checks.same_bits(_model(*f), compiled(*f))


@pytest.mark.parametrize("kind", ["number", "diagonal", "matrix"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 7), (4, 3)])
def test_the_gain_is_differentiable_twice(kind: str, m: int, n: int) -> None:
    f = kalman_cases.make(m, n)
    r = {"number": torch.tensor(0.7).double(), "diagonal": torch.linspace(0.5, 2, m).double(), "matrix": spd(m)}[kind]
    leaves = tuple(a.clone().requires_grad_() for a in (f.p, f.jac, r))
    assert torch.autograd.gradcheck(lc.kalman_diag_gain, leaves)
    assert torch.autograd.gradgradcheck(lc.kalman_diag_gain, leaves)


def test_the_derivative_of_a_compiled_gain() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lc.kalman_diag_gain, fullgraph=True, backend="aot_eager")
    grads = []
    for gain in (lc.kalman_diag_gain, compiled):
        p, h = F.p.clone().requires_grad_(), F.jac.clone().requires_grad_()
        gain(p, h, 0.5).square().sum().backward()
        grads.append((p.grad, h.grad))
    assert checks.same_bits(*grads)


def test_the_step_has_no_derivative() -> None:
    with pytest.raises(NotImplementedError, match="kalman_diag_step: has no derivative"):
        lc.kalman_diag_step(F.theta.clone().requires_grad_(), *F[1:]).theta.sum().backward()


def test_in_place_steps_are_seen_by_autograd() -> None:
    theta, p = F.theta.clone(), F.p.clone()
    before = theta._version, p._version
    lc.kalman_diag_step_(theta, p, F.jac, F.score)
    assert theta._version > before[0] and p._version > before[1]


# ---- what is not finite --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("argument", ["p", "jac", "score"])
@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_a_step_with_what_is_not_finite_changes_nothing(library: str, argument: str, value: float) -> None:
    """In the first, a middle and the last task; of a parameter that nothing observes too."""
    n = 2 * kalman_cases.TASK + 9
    for place in (0, kalman_cases.TASK + 3, n - 1):
        arrays = {name: a.clone() for name, a in kalman_cases.make(3, n).to(torch.float32)._asdict().items()}
        arrays["jac"][:, place] = 0.0
        arrays["score"][place] = 0.0
        arrays[argument][..., place] = value
        given = [a.numpy() if library == "numpy" else a for a in arrays.values()]
        before = [a.copy() if library == "numpy" else a.clone() for a in given]
        if argument == "p" and value < 0:
            with pytest.raises(ValueError, match="kalman_diag_step_: `p` must be >= 0, got a negative variance"):
                lc.kalman_diag_step_(*given)
        else:
            assert lc.kalman_diag_step_(*given) is False
            with pytest.raises(ValueError, match=f"kalman_diag_step: `{argument}` must be finite, got NaN or infinity"):
                lc.kalman_diag_step(*given)
        assert checks.same_bits(given, before)


def test_one_bad_tensor_of_a_list_stops_all() -> None:
    good, bad = kalman_cases.make(3, 20), kalman_cases.make(3, 30)
    bad.score[4] = math.nan
    lists = [[a.clone(), b.clone()] for a, b in zip(good, bad, strict=True)]
    before = [[a.clone() for a in pair] for pair in lists]
    assert lc.kalman_diag_step_(*lists) is False and checks.same_bits(lists, before)


def test_products_that_overflow_are_named() -> None:
    f = kalman_cases.make(3, 20)
    with pytest.raises(ValueError, match="`jac` must have products with p that fit float64"):
        lc.kalman_diag_step(f.theta, f.p, 1e200 * f.jac, f.score)


# ---- refusals ------------------------------------------------------------------------------------------------------


def arrays(kind: str) -> dict[str, Any]:
    f = kalman_cases.make(3, 12).to(torch.float32)._asdict()
    if kind == "numpy":
        return {name: a.numpy().copy() for name, a in f.items()}
    return {name: a.to("meta") if kind == "fake" else a.clone() for name, a in f.items()}


def other(a: Any, *shape: int) -> Any:
    if isinstance(a, np.ndarray):
        return np.ones(shape, dtype=a.dtype)
    return torch.ones(shape, dtype=a.dtype, device=a.device)


# Arguments to replace, by what, the exception and its sentence.
STEP: list[tuple[dict[str, Callable[[Any], Any]], type[Exception], str]] = [
    ({"p": lambda a: other(a, 11)}, ValueError, "`p` must have the shape [12] of `theta`, got [11]"),
    ({"score": lambda a: other(a, 3, 4)}, ValueError, "`score` must have the shape [12] of `theta`, got [3, 4]"),
    (
        {"jac": lambda a: other(a, 12, 3)},
        ValueError,
        "`jac` must be [m, 12] for `theta` of shape [12], got shape [12, 3]",
    ),
    ({"jac": lambda a: 1.0}, TypeError, "`jac` must be a numpy.ndarray, torch.Tensor or cupy.ndarray, got float"),
    ({"lr": lambda _: math.nan}, ValueError, "`lr` must be a finite number, got nan"),
    ({"kl_limit": lambda _: 0.0}, ValueError, "`kl_limit` must be a number > 0 or None, got 0.0"),
]


@pytest.mark.parametrize("kind", ["numpy", "torch", "fake"])
@pytest.mark.parametrize("case", STEP, ids=lambda case: case[2][:40])
@pytest.mark.parametrize("function", [lc.kalman_diag_step, lc.kalman_diag_step_])
def test_refused_steps(function: Callable[..., Any], case: Any, kind: str) -> None:
    change, exception, text = case
    given: dict[str, Any] = {**arrays(kind), "lr": 1.0, "kl_limit": None}
    for name, make in change.items():
        given[name] = make(given[name])
    with pytest.raises(exception) as caught:
        function(**given)
    assert f"{function.__name__}: {text}" in str(caught.value)


def test_half_precision_variances_are_refused() -> None:
    with pytest.raises(TypeError, match="`p` must be float32 or float64, got bfloat16; half precision would stop"):
        lc.kalman_diag_step(F.theta, F.p.bfloat16(), F.jac, F.score)


def test_refused_lists() -> None:
    one, two = kalman_cases.make(3, 12), kalman_cases.make(4, 12)
    pairs = [[a, b] for a, b in zip(one, two, strict=True)]
    with pytest.raises(ValueError, match=r"`jac\[1\]` must have as many rows as `jac\[0\]`, 3, got 4"):
        lc.kalman_diag_step_(*pairs)
    with pytest.raises(ValueError, match="`score` must have one entry for each of 2 tensors, got 1"):
        lc.kalman_diag_step_(*pairs[:3], pairs[3][:1])
    with pytest.raises(TypeError, match=r"`theta\[1\]` must be of the same library"):
        lc.kalman_diag_step_(*([a, b.numpy()] for a, b in zip(one, one, strict=True)))
    with pytest.raises(ValueError, match="`theta` must be contiguous, got another layout"):
        square = torch.ones(3, 4).mT
        lc.kalman_diag_step_(square, torch.ones(4, 3), torch.ones(2, 4, 3), torch.ones(4, 3))
    with pytest.raises(ValueError, match="kalman_diag_step_: `p` must not overlap itself in memory"):
        lc.kalman_diag_step_(one.theta, torch.ones(1).double().expand(12), one.jac, one.score)


GAIN: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: lc.kalman_diag_gain(F.p, F.theta, 1.0), ValueError, r"`h` must be \[m, n\], got shape \[37\]"),
    (lambda: lc.kalman_diag_gain(F.theta[:3], F.jac, 1.0), ValueError, r"`p` must be \[37\], got shape \[3\]"),
    (
        lambda: lc.kalman_diag_gain(F.p, F.jac, torch.ones(3)),
        ValueError,
        r"`r` must be a number, \[4\] or \[4, 4\] for `h` of shape \[4, 37\], got shape \[3\]",
    ),
    (lambda: lc.kalman_diag_gain(F.p, F.jac, np.ones(4)), TypeError, "`r` must be of the same library"),
    (lambda: lc.kalman_diag_gain(F.p, F.jac, -1e3), ValueError, "`r` must be a finite noise that makes"),
    (lambda: lc.kalman_diag_gain(F.p, F.jac[[0, 0]], 0.0), ValueError, "positive definite, got one that does not"),
    (lambda: lc.kalman_diag_gain(F.p, F.jac * math.nan, 1.0), ValueError, "`h` must be finite, got NaN or infinity"),
    (lambda: lc.kalman_diag_gain(F.p * math.inf, F.jac, 1.0), ValueError, "`p` must be finite, got NaN or infinity"),
    (lambda: lc.kalman_diag_gain(-F.p, F.jac, 1.0), ValueError, "`p` must be >= 0, got a negative variance"),
    (lambda: lc.kalman_diag_gain(F.p, F.jac, math.nan), ValueError, "`r` must be a finite noise"),
    (lambda: lc.kalman_diag_gain(F.p.long(), F.jac, 1.0), TypeError, "`p` must be float32 or"),
]


@pytest.mark.parametrize("case", GAIN, ids=lambda case: case[2][:40])
def test_refused_gains(case: tuple[Callable[[], Any], type[Exception], str]) -> None:
    call, exception, text = case
    with pytest.raises(exception, match=f"kalman_diag_gain: .*{text}"):
        call()
