"""Layers with a low-rank part: values, gradients without a full matrix or an inverse, second derivatives."""

from __future__ import annotations

import functools
from typing import Any

import chain_cases
import lowrank_core
import pytest
import torch
from lowrank_core import _core
from lowrank_core.reference import chain_lr as reference
from testing import cases, chain_bounds, checks, machine, tolerance
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPES = (((), 1, 1, 1), ((0,), 4, 3, 2), ((3,), 1, 5, 0), ((2, 7), 16, 17, 3), ((97,), 31, 33, 5), ((1030,), 8, 24, 2))
SCALE = 0.37


def lora(lead: tuple[int, ...], d_in: int, d_out: int, r: int, dtype: torch.dtype) -> dict[str, Tensor]:
    shapes = {"x": (*lead, d_in), "w": (d_out, d_in), "a": (r, d_in), "b": (d_out, r), "bias": (d_out,)}
    return {name: chain_cases.normal(*s, seed=i).to(dtype) for i, (name, s) in enumerate(shapes.items())}


def usv(lead: tuple[int, ...], d_in: int, d_out: int, r: int, dtype: torch.dtype) -> dict[str, Tensor]:
    shapes = {"x": (*lead, d_in), "w": (d_out, d_in), "u": (d_out, r), "s": (r, r), "v": (d_in, r), "bias": (d_out,)}
    return {name: chain_cases.normal(*s, seed=i).to(dtype) for i, (name, s) in enumerate(shapes.items())}


LAYERS: dict[str, Any] = {"lora_linear": lora, "usv_linear": usv}
# torch's own forward mode loads its formulas through torch.jit.
forward_mode = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
with_and_without = pytest.mark.parametrize("weight", (True, False), ids=("weight", "none"))


def low_rank(t: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """What x is multiplied by, from the left to the right."""
    return (t["a"].mT, t["b"].mT) if "a" in t else (t["v"], t["s"].mT, t["u"].mT)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@with_and_without
def test_values(name: str, shape: tuple[Any, ...], dtype: torch.dtype, weight: bool) -> None:
    t = LAYERS[name](*shape, dtype) | ({} if weight else {"w": None})
    for bias in (None, t["bias"]):
        plain = {k: v for k, v in t.items() if k != "bias"}
        found = getattr(lowrank_core, name)(**plain, scale=SCALE, bias=bias)
        exact = getattr(reference, name)(**plain, scale=SCALE, bias=bias)
        assert found.shape == (*shape[0], shape[2]) and found.dtype == dtype
        assert chain_bounds.within(found, exact, chain_bounds.layer(t["x"], t["w"], low_rank(t), SCALE, exact))


def gradients(name: str, t: dict[str, Any], dy: Tensor, full: bool) -> dict[str, Tensor | None]:
    leaves = {k: None if v is None else v.detach().clone().requires_grad_(full or k != "w") for k, v in t.items()}
    getattr(lowrank_core, name)(**leaves, scale=SCALE).backward(dy)
    return {k: None if v is None else v.grad for k, v in leaves.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("zero", (False, True))
def test_gradients_of_lora(dtype: torch.dtype, zero: bool) -> None:
    """From B = 0 on, where a.grad is zero and b.grad is not."""
    t = lora((5, 7), 19, 23, 4, dtype)
    if zero:
        t["b"].zero_()
    dy = chain_cases.normal(5, 7, 23, seed=9).to(dtype)
    leaves = {k: v.double().requires_grad_() for k, v in t.items()}
    reference.lora_linear(**leaves, scale=SCALE).backward(dy.double())
    found = gradients("lora_linear", t, dy, full=True)
    dy2, x2 = dy.reshape(-1, 23), t["x"].reshape(-1, 19)
    for name, parts in {
        "a": (t["b"].mT, dy2.mT, x2),
        "b": (dy2.mT, x2, t["a"].mT),
        "x": None,
        "w": (dy2.mT, x2),
        "bias": (dy2.mT, torch.ones(35, 1, dtype=dtype)),
    }.items():
        exact = leaves[name].grad
        if parts is None:
            bound = chain_bounds.layer(dy, t["w"].mT, (t["b"], t["a"]), SCALE, exact)
        else:
            bound = chain_bounds.chain(parts).reshape(exact.shape)  # without the scale, which is below 1
        assert found[name].dtype == dtype and chain_bounds.within(found[name], exact, bound), name
    if zero:
        assert not found["a"].any() and found["b"].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("zero", (False, True))
def test_gradients_of_usv(dtype: torch.dtype, zero: bool) -> None:
    """u.grad is G v, v.grad is Gᵀ u, s.grad is uᵀ G v, each times the scale; from S = 0 on too."""
    t = usv((35,), 19, 23, 4, dtype)
    if zero:
        t["s"].zero_()
    dy = chain_cases.normal(35, 23, seed=9).to(dtype)
    found = gradients("usv_linear", t, dy, full=False)
    g = reference.full_gradient(t["x"], dy)
    u, s, v, w = (t[k].double() for k in ("u", "s", "v", "w"))
    for name, exact, parts in (
        ("u", SCALE * g @ v, (dy.mT, t["x"], t["v"])),
        ("v", SCALE * g.mT @ u, (t["x"].mT, dy, t["u"])),
        ("s", SCALE * u.mT @ g @ v, (t["u"].mT, dy.mT, t["x"], t["v"])),
    ):
        assert chain_bounds.within(found[name], exact, chain_bounds.chain(parts)), name
        assert found[name].any()
    exact = dy.double() @ (w + SCALE * u @ s @ v.mT)
    bound = chain_bounds.layer(dy, t["w"].mT, (t["u"], t["s"], t["v"].mT), SCALE, exact)
    assert chain_bounds.within(found["x"], exact, bound) and found["w"] is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_without_a_weight(name: str, dtype: torch.dtype) -> None:
    """Those of the factors and of the bias know nothing of it; that of x lacks its term."""
    t = LAYERS[name]((5, 7), 19, 23, 4, dtype)
    dy = chain_cases.normal(5, 7, 23, seed=9).to(dtype)
    found, full = gradients(name, t | {"w": None}, dy, full=True), gradients(name, t, dy, full=True)
    assert found["w"] is None
    for factor in t.keys() - {"x", "w"}:
        assert checks.same_bits(found[factor], full[factor]) and found[factor].any(), factor
    turned = [m.mT for m in reversed(low_rank(t))]
    exact = SCALE * functools.reduce(torch.matmul, [m.double() for m in (dy, *turned)])
    assert chain_bounds.within(found["x"], exact, chain_bounds.layer(dy, None, turned, SCALE, exact))


def test_added_to_another_layer_it_adapts_that() -> None:
    """The value and the gradient of x are those of one layer with the weight; each of the two parts is rounded."""
    t = lora((5,), 19, 23, 4, torch.float64)
    x, dy = t["x"].requires_grad_(), chain_cases.normal(5, 23, seed=9)
    y = torch.nn.functional.linear(x, t["w"], t["bias"]) + lowrank_core.lora_linear(
        x, None, t["a"], t["b"], scale=SCALE
    )
    y.backward(dy)
    exact = reference.lora_linear(**t, scale=SCALE)
    assert chain_bounds.within(y, exact, 2 * chain_bounds.layer(x, t["w"], low_rank(t), SCALE, exact))
    exact = dy @ (t["w"] + SCALE * t["b"] @ t["a"])
    bound = chain_bounds.layer(dy, t["w"].mT, (t["b"], t["a"]), SCALE, exact)
    assert chain_bounds.within(x.grad, exact, 2 * bound)


@forward_mode
@with_and_without
def test_gradcheck_of_lora(weight: bool) -> None:
    t = {k: v.requires_grad_() for k, v in lora((2, 3), 4, 5, 2, torch.float64).items() if weight or k != "w"}
    rest = {} if weight else {"w": None}
    call = lambda *leaves: lowrank_core.lora_linear(**dict(zip(t, leaves, strict=True)), **rest, scale=SCALE)  # noqa: E731
    assert torch.autograd.gradcheck(call, tuple(t.values()), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, tuple(t.values()))


@forward_mode
@with_and_without
def test_gradcheck_of_usv(weight: bool) -> None:
    t = usv((2, 3), 4, 5, 2, torch.float64)
    leaves = [t[k].requires_grad_() for k in ("x", "s", "bias", *(("w",) if weight else ()))]

    def call(x: Tensor, s: Tensor, bias: Tensor, w: Tensor | None = None) -> Tensor:
        return lowrank_core.usv_linear(x, w, t["u"], s, t["v"], scale=SCALE, bias=bias)

    assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.parametrize("name", ("u", "v"))
def test_second_derivatives_through_the_bases_are_refused(name: str) -> None:
    t = usv((3,), 4, 5, 2, torch.float64)
    for leaf in (name, "x", "s"):
        t[leaf].requires_grad_()
    y = lowrank_core.usv_linear(**t, scale=SCALE)
    first = torch.autograd.grad(y.square().sum(), (t["x"], t["s"]), create_graph=True)
    with pytest.raises(NotImplementedError, match="usv_linear: has no second derivative through `u` and `v`"):
        sum(g.sum() for g in first).backward()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch's own forward mode loads
@pytest.mark.parametrize("name", ("u", "v"))
def test_tangents_of_gradients_through_one_of_the_bases_are_refused(name: str) -> None:
    t = usv((3,), 4, 5, 2, torch.float64)

    def gradient(basis: Tensor) -> Tensor:
        def loss(x: Tensor) -> Tensor:
            return lowrank_core.usv_linear(**{**t, name: basis, "x": x}, scale=SCALE).square().sum()

        return torch.func.grad(loss)(t["x"])

    with pytest.raises(NotImplementedError, match="usv_linear: has no second derivative through `u` and `v`"):
        torch.func.jvp(gradient, (t[name],), (t[name],))


class Sizes(TorchDispatchMode):
    """The largest result of any operator of torch."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor) and (func.namespace == "lowrank_core" or "mm" in str(func)):
                self.largest = max(self.largest, x.numel())
        return out


@pytest.mark.parametrize("name", LAYERS)
@with_and_without
def test_no_result_of_the_weights_size(name: str, weight: bool) -> None:
    t = {k: v.requires_grad_(k != "w") for k, v in LAYERS[name]((3,), 64, 80, 2, torch.float32).items()}
    t |= {} if weight else {"w": None}
    with Sizes() as seen:
        getattr(lowrank_core, name)(**t, scale=SCALE).sum().backward()
    assert 0 < seen.largest < 64 * 80


@pytest.mark.parametrize("name", LAYERS)
@with_and_without
def test_threads_levels_and_autocast(name: str, weight: bool) -> None:
    t = LAYERS[name]((2, 130), 90, 110, 5, torch.float32) | ({} if weight else {"w": None})
    dy = chain_cases.normal(2, 130, 110, seed=9).float()
    for level in _core.isa_levels():
        with machine.isa(level):
            results = []
            for count in (1, 2, 3):
                with machine.threads(count), torch.autocast("cpu", dtype=torch.bfloat16, enabled=count == 3):
                    plain = {k: v for k, v in t.items() if k != "bias"}
                    out = getattr(lowrank_core, name)(**plain, scale=SCALE, bias=t["bias"])
                    grads = gradients(name, t, dy, full=False)
                    results.append((out, *(grads[k] for k in t if k not in ("w", "bias"))))
            assert checks.same_bits(results[0], results[1]) and checks.same_bits(results[0], results[2])


def test_adapters_may_be_wider_than_the_activations() -> None:
    t = lora((9,), 8, 6, 2, torch.bfloat16)
    t = {k: v.float() if k in ("a", "b") else v for k, v in t.items()}
    leaves = {k: v.requires_grad_(k != "w") for k, v in t.items()}
    y = lowrank_core.lora_linear(**leaves, scale=SCALE)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and leaves["a"].grad.dtype == torch.float32 == leaves["b"].grad.dtype


def test_bfloat16_is_rounded_once() -> None:
    """Half a unit of the result, not of its parts: a large base, a correction just below its unit."""
    x, w = torch.ones(1, 1, dtype=torch.bfloat16), torch.full((1, 1), 256.0, dtype=torch.bfloat16)
    a, b = torch.ones(3, 1, dtype=torch.bfloat16), torch.full((1, 3), 0.4, dtype=torch.bfloat16)
    y = lowrank_core.lora_linear(x, w, a, b, scale=1.0)
    assert y.item() == torch.tensor(256.0 + 3 * float(b[0, 0])).bfloat16().item() != 256.0


def test_steps_from_zero_reach_a_low_rank_target() -> None:
    """GeoLoRA's step from S = 0: K- and L-gradients need no inverse of S."""
    torch.manual_seed(0)
    target = (
        cases.orthonormal(20, 3, 1)
        @ torch.diag(torch.tensor([3.0, 2.0, 1.0]).double())
        @ cases.orthonormal(15, 3, 2).mT
    )
    u, s, v = cases.orthonormal(20, 2, 3), torch.zeros(2, 2).double(), cases.orthonormal(15, 2, 4)
    for _ in range(3):
        leaves = [t.detach().requires_grad_() for t in (u, s, v)]
        y = lowrank_core.usv_linear(torch.eye(15).double(), torch.zeros(20, 15).double(), *leaves, scale=1.0)
        (0.5 * (y.mT - target).square().sum()).backward()
        gs = leaves[1].grad
        step = lowrank_core.augment_truncate(
            [u], [s], [v], [leaves[0].grad], [leaves[2].grad], gs=[gs], lr=1.0, tol=1e-8, max_rank=8
        )[0]
        u, s, v = step.u, step.s, step.v
    assert u.shape[1] == 3
    assert tolerance.norm(u @ s @ v.mT - target) <= tolerance.coefficients(target, 8)


def test_refusals() -> None:
    t = lora((3,), 4, 5, 2, torch.float64)
    call = lambda **changes: lowrank_core.lora_linear(**{**t, **changes}, scale=1.0)  # noqa: E731
    for changes, error, message in (
        ({"x": t["x"].numpy()}, TypeError, "`x` must be a torch.Tensor, got ndarray; it is a layer, for torch only"),
        ({"w": t["w"].mT}, ValueError, r"`w` must be \[d_out, 4\]"),
        ({"a": t["a"].mT}, ValueError, r"`a` must be \[r, 4\] .* got shape \[4, 2\]"),
        ({"b": t["b"].mT}, ValueError, r"`b` must be \[5, 2\] .* got shape \[2, 5\]"),
        ({"bias": t["bias"][1:]}, ValueError, r"`bias` must be \[5\] .* got shape \[4\]"),
        ({"a": t["a"].int()}, TypeError, "`a` must be float32 or float64 or bfloat16 or float16, got int32"),
        ({"w": None, "a": t["a"].mT}, ValueError, r"`a` must be \[r, 4\] for `x` of shape \[3, 4\] without `w`"),
        ({"w": None, "b": t["b"].mT}, ValueError, r"`b` must be \[2, 2\] .* without `w`, got shape \[2, 5\]"),
        ({"w": None, "bias": t["bias"][1:]}, ValueError, r"`bias` must be \[5\] .* without `w`, got shape \[4\]"),
        ({"w": 0.0}, TypeError, "`w` must be a numpy.ndarray, torch.Tensor or cupy.ndarray, got float"),
    ):
        with pytest.raises(error, match=f"lora_linear: {message}"):
            call(**changes)
    t = usv((3,), 4, 5, 2, torch.float64)
    for changes, message in (
        ({"u": t["u"].mT}, r"`u` must be \[5, r\]"),
        ({"s": t["s"][:1]}, r"`s` must be \[2, 2\]"),
        ({"v": t["v"][:, :1]}, r"`v` must be \[4, 2\]"),
        ({"w": None, "v": t["v"].mT}, r"`v` must be \[4, 2\] for `x` of shape \[3, 4\] without `w`"),
        ({"w": None, "bias": t["bias"][1:]}, r"`bias` must be \[5\] .* without `w`, got shape \[4\]"),
    ):
        with pytest.raises(ValueError, match=f"usv_linear: {message}"):
            lowrank_core.usv_linear(**{**t, **changes}, scale=1.0)
