"""The family as a torch operator that changes its arguments: opcheck, fake kernel, torch.compile, autograd."""

from __future__ import annotations

from typing import Any

import lowrank_core
import pytest
import torch
from lowrank_core.ops.declare import DECLARED
from lowrank_core.ops.subspace_step.check import parted, rights
from subspace_cases import LIMITED, STRONG, Shape, Weight, every_residual, every_rule, lists, stepped, take, weight
from testing import checks
from torch._subclasses.fake_tensor import FakeTensorMode

SHAPES = (Shape(9, 7, 3), Shape(6, 11, 2))
PLAIN = {
    "rule": "adam", "betas": [0.9, 0.999], "eps": 1e-8, "lr": 0.25, "weight_decay": 0.1, "scale": 0.5,
    "residual": "drop", "residual_scale": 1.0, "cap": float("inf"), "growth": 1.01, "maximize": False,
    "stochastic": False, "precision": "highest",
}  # fmt: skip


def operator() -> Any:
    take(lr=0.1)  # the operators exist once torch has been asked for them
    lowrank_core.project(torch.zeros(1, 1), torch.zeros(1, 1), side="left")
    return torch.ops.lowrank_core.subspace_step_


def flat(*weights: Weight) -> tuple[Any, ...]:
    """Arguments of the operator, which takes codes and scales apart."""
    (params, grads, bases, first, second), keys = lists(weights)
    moments = (*parted("exp_avg", first), *parted("exp_avg_sq", second or ()))
    return (
        params, grads, bases, *moments, keys["limits"] or [], rights(keys["sides"]), keys["steps"], keys["seeds"],
    )  # fmt: skip


def samples(rule: str, residual: str) -> list[Weight]:
    limit = 2.0 if residual in LIMITED else None
    return [weight(s, side=x, rule=rule, limit=limit) for s, x in zip(SHAPES, ("left", "right"), strict=True)]


def as_codes(w: Weight) -> Weight:
    w.exp_avg = (torch.ones_like(w.exp_avg, dtype=torch.int8), torch.ones(1))
    w.exp_avg_sq = (torch.ones_like(w.exp_avg_sq, dtype=torch.uint8), torch.ones(1))
    return w


@every_residual
@every_rule
def test_opcheck(rule: str, residual: str) -> None:
    """All checks: schema, with what is changed and what is not; registration for autograd; fake and traced kernels."""
    torch.library.opcheck(
        operator().default, flat(*samples(rule, residual)), {**PLAIN, "rule": rule, "residual": residual}
    )


def test_opcheck_of_coded_moments() -> None:
    coded = [as_codes(w) for w in samples("adam", "drop")]
    torch.library.opcheck(operator().default, flat(*coded), PLAIN)


def test_every_operator_is_checked() -> None:
    declared = DECLARED["subspace_step"]
    assert [op.name for op in declared] == ["subspace_step_"] and all(op.mutates for op in declared)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@every_residual
def test_compiles_into_one_graph(residual: str, backend: str) -> None:
    """A function that steps and reads what it stepped: the same bits as eager, for a good and for a bad gradient."""
    torch._dynamo.reset()
    step, options = operator(), {**PLAIN, "residual": residual}

    def function(*arguments: Any) -> tuple[Any, ...]:
        taken = step(*arguments, **options)
        return taken, arguments[0][0] * 2.0

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for bad in (False, True):
        found = []
        for run in (function, compiled):
            weights = samples("adam", residual)
            if bad:
                weights[0].grad[1, 2] = torch.nan
            taken, doubled = run(*flat(*weights))
            assert bool(taken) is not bad
            found.append((doubled, [w.state() for w in weights]))
        assert checks.same_bits(*found)


def test_the_public_function_compiles_with_a_break() -> None:
    """Whether the step was taken is a Python bool, so tracing ends there."""
    torch._dynamo.reset()
    before = weight(SHAPES[0])
    after = before.clone()

    def function(w: torch.Tensor) -> torch.Tensor:
        arguments, keys = [w], {"sides": ["left"], "steps": [3], "lr": 0.25}
        rest = ([x] for x in (after.grad, after.basis, after.exp_avg, after.exp_avg_sq))
        lowrank_core.subspace_step_(arguments, *rest, **keys)
        return w + 1.0

    out = torch.compile(function, backend="eager")(after.param)
    expected = stepped(before, lr=0.25)
    assert checks.same_bits(out, expected.param + 1.0) and checks.same_bits(after.state(), expected.state())


def test_fake_kernels_refuse_with_the_same_sentence() -> None:
    """The operator itself, whose arguments a graph may bring together only when it is traced."""
    step, w = operator(), weight(SHAPES[0])
    for name, value, text in (
        ("exp_avg", torch.ones(7, 3), r"`exp_avg\[0\]` must have shape \[3, 7\], got \[7, 3\]"),
        ("grad", torch.ones(7, 9), r"`grads\[0\]` must have the shape \[9, 7\] of its weight, got \[7, 9\]"),
        ("step", 0, r"`steps\[0\]` must be between 1 and 4294967295, got 0"),
    ):
        broken = w.clone()
        setattr(broken, name, value)
        with pytest.raises(ValueError, match=f"subspace_step_: {text}"):
            step(*flat(broken), **PLAIN)
        with FakeTensorMode() as mode, pytest.raises(ValueError, match=f"subspace_step_: {text}"):
            step(*flat(broken.map(mode.from_tensor)), **PLAIN)
    with (
        FakeTensorMode() as mode,
        pytest.raises(ValueError, match=r"subspace_step_: `lr` must be a number >= 0, got -1\.0"),
    ):
        step(*flat(w.map(mode.from_tensor)), **{**PLAIN, "lr": -1.0})


def test_fake_kernels_change_nothing() -> None:
    w = weight(SHAPES[0])
    before = w.clone()
    with FakeTensorMode() as mode:
        taken = operator()(*flat(w.map(mode.from_tensor)), **PLAIN)
    assert (taken.shape, taken.dtype) == ((), torch.bool)
    assert checks.same_bits(w.state(), before.state())


def test_versions_are_counted() -> None:
    """Autograd must see that what it saved was changed in place."""
    w = weight(SHAPES[0])
    scale = torch.ones((), requires_grad=True)
    product = scale * w.param
    assert take(w, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("context", ["inference", "autocast"])
def test_contexts_change_nothing(context: str) -> None:
    w = weight(SHAPES[0])
    expected = stepped(w, **STRONG)
    entered = torch.inference_mode() if context == "inference" else torch.autocast("cpu", dtype=torch.bfloat16)
    with entered:
        found = stepped(w, **STRONG)
        assert checks.same_bits([x.clone() for x in found.state()], list(expected.state()))
