"""Every refusal of the family by its sentence, from NumPy, from torch and from the fake kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lowrank_core
import numpy as np
import pytest
import torch
from subspace_cases import Shape, Weight, lists, weight

Edit = Callable[[Weight], None]
Refused = tuple[Edit | None, dict[str, Any], type[Exception], str]

SHAPE = Shape(7, 5, 3)
MAX = 2**63 - 1
MAKERS: dict[str, Callable[[Weight], Weight]] = {
    "numpy": Weight.numpy,
    "torch": lambda w: w,
    "fake": lambda w: w.map(lambda x: x.to("meta")),
}


def put(name: str, value: Any) -> Edit:
    """Sets a field of the weight, or what a function makes of it."""
    return lambda w: setattr(w, name, value(getattr(w, name)) if callable(value) else value)


def like(x: Any, *shape: int, dtype: str = "float32") -> Any:
    """Ones of the kind of x."""
    if isinstance(x, np.ndarray):
        return np.ones(shape, dtype=dtype)
    return torch.ones(shape, dtype=getattr(torch, dtype), device=x.device)


def ones(*shape: int, dtype: str = "float32") -> Callable[[Any], Any]:
    return lambda x: like(x, *shape, dtype=dtype)


def codes(values: tuple[int, ...], dtype: str, scales: int, of_scales: str = "float32") -> Callable[[Any], Any]:
    return lambda x: (like(x, *values, dtype=dtype), like(x, scales, dtype=of_scales))


def wide(w: Weight) -> None:
    """All float64, but for moments that are codes."""
    w.param = like(w.param, 7, 5, dtype="float64")
    w.exp_avg = codes((3, 5), "int8", 1)(w.exp_avg)
    w.exp_avg_sq = codes((3, 5), "uint8", 1)(w.exp_avg_sq)


# What a call with one weight [7, 5] and a basis [7, 3] on the left is refused for, and with which words.
ARRAYS: dict[str, Refused] = {
    "vector": (put("param", ones(7)), {}, ValueError, "`params[0]` must have at least 2 dimensions, got shape [7]"),
    "batch": (put("grad", ones(1, 7, 5)), {}, ValueError, "`grads[0]` must be a matrix, got shape [1, 7, 5]"),
    "integer weight": (put("param", ones(7, 5, dtype="int32")), {}, TypeError, "`params[0]` must be float32 or"),
    "complex basis": (put("basis", ones(7, 3, dtype="complex64")), {}, TypeError, "`bases[0]` must be float32 or"),
    "no array": (put("grad", [[1.0]]), {}, TypeError, "`grads[0]` must be a numpy.ndarray, torch.Tensor or"),
    "gradient of another shape": (
        put("grad", ones(5, 7)), {}, ValueError,
        "`grads[0]` must have the shape [7, 5] of its weight, got [5, 7]",
    ),
    "left basis": (
        put("basis", ones(5, 3)), {}, ValueError,
        "`bases[0]` must be [m, r] with 7 rows for a weight of shape [7, 5], got [5, 3]",
    ),
    "right basis": (
        put("side", "right"), {}, ValueError,
        "`bases[0]` must be [n, r] with 5 rows for a weight of shape [7, 5], got [7, 3]",
    ),
    "moment of another shape": (
        put("exp_avg", ones(5, 3)), {}, ValueError, "`exp_avg[0]` must have shape [3, 5], got [5, 3]",
    ),
    "moment of another size": (
        put("exp_avg_sq", ones(3, 4)), {}, ValueError, "`exp_avg_sq[0]` must have 15 elements, got shape [3, 4]",
    ),
    "moment of another dtype": (
        put("exp_avg", ones(3, 5, dtype="float64")), {}, TypeError, "`exp_avg[0]` must be float32",
    ),
    "codes without scales": (
        put("exp_avg", ones(3, 5, dtype="int8")), {}, TypeError, "`exp_avg[0]` must be float32",
    ),
    "strided moment": (
        put("exp_avg", lambda x: like(x, 5, 3).T), {}, ValueError,
        "`exp_avg[0]` must be contiguous, got another layout; pass a contiguous copy",
    ),
    "unsigned first codes": (
        put("exp_avg", codes((3, 5), "uint8", 1)), {}, TypeError, "`exp_avg[0]` must be int8, got uint8",
    ),
    "signed second codes": (
        put("exp_avg_sq", codes((3, 5), "int8", 1)), {}, TypeError, "`exp_avg_sq[0]` must be uint8, got int8",
    ),
    "codes of another shape": (
        put("exp_avg", codes((5, 3), "int8", 1)), {}, ValueError, "`exp_avg[0]` must have shape [3, 5], got [5, 3]",
    ),
    "too few scales": (
        put("exp_avg", codes((3, 5), "int8", 0)), {}, ValueError,
        "`exp_avg[0] scales` must have 1 elements, got shape [0]",
    ),
    "wide scales": (
        put("exp_avg", codes((3, 5), "int8", 1, "float64")), {}, TypeError,
        "`exp_avg[0] scales` must be float32, got float64",
    ),
    "codes for a float64 weight": (
        wide, {}, TypeError, "`exp_avg[0]` must be float64 for a float64 weight, got 8-bit codes",
    ),
    "three arrays": (
        put("exp_avg", lambda x: (x, x, x)), {}, ValueError,
        "`exp_avg` must hold arrays or pairs (codes, scales), got 3 arrays",
    ),
    "limit of two elements": (
        put("limit", lambda _: None), {"residual": "scaled", "limits": "two"}, ValueError,
        "`limits[0]` must have 1 elements, got shape [2]",
    ),
    "wide limit": (
        None, {"residual": "channel", "limits": "wide"}, TypeError, "`limits[0]` must be float32, got float64",
    ),
    "limit without a residual": (
        None, {"residual": "sign", "limits": "one"}, ValueError,
        "`limits` must be None for residual 'sign', got 1 entries",
    ),
    "too many limits": (
        None, {"residual": "scaled", "limits": "many"}, ValueError,
        "`limits` must be one entry for each of 1 weights, got 2 entries",
    ),
}  # fmt: skip
NUMBERS: dict[str, Refused] = {
    "side": (put("side", "top"), {}, ValueError, "`sides` must be 'left' or 'right', got 'top'"),
    "step": (put("step", 0), {}, ValueError, "`steps[0]` must be between 1 and 4294967295, got 0"),
    "step of a wrong type": (put("step", 1.0), {}, TypeError, "`steps[0]` must be an integer, got 1.0"),
    "step that is a truth": (put("step", True), {}, TypeError, "`steps[0]` must be an integer, got True"),
    "seed": (put("seed", -1), {}, ValueError, f"`seeds[0]` must be between 0 and {MAX}, got -1"),
    "large seed": (put("seed", 2**63), {}, ValueError, f"`seeds[0]` must be between 0 and {MAX}, got {2**63}"),
    "rule": (None, {"rule": "sgd"}, ValueError, "`rule` must be one of adam, adabelief, lion, momentum, got 'sgd'"),
    "residual": (
        None, {"residual": "keep"}, ValueError,
        "`residual` must be one of drop, scaled, sign, channel, tensor, got 'keep'",
    ),
    "rounding": (None, {"rounding": "up"}, ValueError, "`rounding` must be one of nearest, stochastic, got 'up'"),
    "precision": (
        None, {"precision": "low"}, ValueError, "`precision` must be 'highest', 'high', 'medium' or None, got 'low'",
    ),
    "three betas": (None, {"betas": (0.9, 0.9, 0.9)}, ValueError, "`betas` must be two numbers in [0, 1), got (0.9,"),
    "beta": (None, {"betas": (1.0, 0.9)}, ValueError, "`betas` must be two numbers in [0, 1), got (1.0, 0.9)"),
    "beta below": (None, {"betas": (0.9, -0.1)}, ValueError, "`betas` must be two numbers in [0, 1), got (0.9, -0.1)"),
    "eps": (None, {"eps": -1.0}, ValueError, "`eps` must be a number >= 0, got -1.0"),
    "lr": (None, {"lr": -0.5}, ValueError, "`lr` must be a number >= 0, got -0.5"),
    "lr that is none": (None, {"lr": float("nan")}, ValueError, "`lr` must be a number >= 0, got nan"),
    "weight_decay": (None, {"weight_decay": -1.0}, ValueError, "`weight_decay` must be a number >= 0, got -1.0"),
    "growth": (None, {"growth": 0.5}, ValueError, "`growth` must be a number >= 1, got 0.5"),
    "cap": (None, {"residual": "channel", "cap": 0.5}, ValueError, "`cap` must be a number >= 1, or inf, got 0.5"),
    "cap of another residual": (None, {"cap": 2.0}, ValueError, "`cap` must be inf for residual 'drop', got 2.0"),
    "scale": (None, {"scale": float("inf")}, ValueError, "`scale` must be a finite number, got inf"),
    "residual_scale": (
        None, {"residual_scale": float("nan")}, ValueError, "`residual_scale` must be a finite number, got nan",
    ),
    "second moment of another rule": (
        None, {"rule": "lion"}, ValueError, "`exp_avg_sq` must be None for rule 'lion', got 1 entries",
    ),
    "no second moment": (
        put("exp_avg_sq", lambda _: None), {}, ValueError,
        "`exp_avg_sq` must be one entry for each of 1 weights, got 0 entries",
    ),
}  # fmt: skip
REFUSED = ARRAYS | NUMBERS


def limits_of(w: Weight, name: str) -> list[Any]:
    one, two, many = like(w.basis, 1), like(w.basis, 2), [like(w.basis, 1)] * 2
    return {"one": [one], "two": [two], "many": many, "wide": [like(w.basis, 1, dtype="float64")]}[name]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str, maker: str) -> None:
    edit, options, kind, text = REFUSED[name]
    w = MAKERS[maker](weight(SHAPE))
    if edit:
        edit(w)
    arguments, keys = lists([w])
    keys |= options
    if isinstance(keys["limits"], str):
        keys["limits"] = limits_of(w, keys["limits"])
    with pytest.raises(kind) as caught:
        lowrank_core.subspace_step_(*arguments, **{"lr": 0.1, **keys})
    assert type(caught.value) is kind and str(caught.value).startswith("subspace_step_: ")
    assert text in str(caught.value)


@pytest.mark.parametrize("name", ["grads", "bases", "exp_avg", "sides", "steps", "seeds", "exp_avg_sq"])
def test_lists_of_different_lengths(name: str) -> None:
    arguments, keys = lists([weight(SHAPE), weight(SHAPE)])
    places = dict(zip(("params", "grads", "bases", "exp_avg", "exp_avg_sq"), arguments, strict=True))
    every = {**places, **keys, "lr": 0.1}
    every[name] = every[name][:1]
    wanted = f"subspace_step_: `{name}` must (have|be) one entry for each of 2 weights, got 1"
    with pytest.raises(ValueError, match=wanted):
        lowrank_core.subspace_step_(**every)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_moments_are_stored_alike(name: str) -> None:
    weights = [weight(SHAPE), weight(SHAPE)]
    put(name, codes((3, 5), "int8" if name == "exp_avg" else "uint8", 1))(weights[1])
    arguments, keys = lists(weights)
    with pytest.raises(ValueError, match=f"`{name}` must be stored alike for all weights, got codes for 1 of them"):
        lowrank_core.subspace_step_(*arguments, lr=0.1, **keys)


@pytest.mark.parametrize("name", ["grad", "basis", "exp_avg", "exp_avg_sq", "limit"])
def test_libraries_and_devices_are_not_mixed(name: str) -> None:
    """Each array is compared with its weight."""
    argument = {"grad": "grads", "basis": "bases", "limit": "limits"}.get(name, name)
    mixed: list[tuple[Weight, str, type[Exception]]] = []
    for w in (weight(SHAPE, limit=0.0), weight(SHAPE, limit=0.0).numpy()):
        other = getattr(w, name)
        setattr(w, name, other.numpy() if isinstance(other, torch.Tensor) else torch.from_numpy(other))
        mixed.append((w, "must be of the same library as the other arrays", TypeError))
    moved = weight(SHAPE, limit=0.0)
    setattr(moved, name, getattr(moved, name).to("meta"))
    mixed.append((moved, "must be on cpu, got meta", ValueError))
    for w, text, kind in mixed:
        arguments, keys = lists([w])
        with pytest.raises(kind, match=rf"subspace_step_: `{argument}\[0\]` {text}"):
            lowrank_core.subspace_step_(*arguments, lr=0.1, residual="scaled", **keys)


def test_the_second_weight_is_checked_too() -> None:
    weights = [weight(SHAPE), weight(SHAPE)]
    weights[1].basis = weights[1].basis[:-1]
    arguments, keys = lists(weights)
    with pytest.raises(ValueError, match=r"`bases\[1\]` must be \[m, r\] with 7 rows"):
        lowrank_core.subspace_step_(*arguments, lr=0.1, **keys)


def test_numpy_knows_no_half_precision_here() -> None:
    w = weight(SHAPE).numpy()
    w.exp_avg = w.exp_avg.astype(np.float16)
    arguments, keys = lists([w])
    with pytest.raises(TypeError, match=r"`exp_avg\[0\]` must be float32, got float16"):
        lowrank_core.subspace_step_(*arguments, lr=0.1, **keys)


@pytest.mark.parametrize("name", ["param", "exp_avg", "exp_avg_sq"])
def test_read_only_memory_is_not_written(name: str) -> None:
    """Refused before anything else is changed; what is only read may be read-only."""
    before = weight(SHAPE).numpy()
    after = before.clone()
    after.grad.flags.writeable = after.basis.flags.writeable = False
    getattr(after, name).flags.writeable = False
    arguments, keys = lists([after])
    with pytest.raises(ValueError, match="must be writable, got a read-only array; pass a writable copy"):
        lowrank_core.subspace_step_(*arguments, lr=0.1, **keys)
    assert all(np.array_equal(x, y) for x, y in zip(after.state(), before.state(), strict=True))
    getattr(after, name).flags.writeable = True
    assert lowrank_core.subspace_step_(*arguments, lr=0.1, **keys)
