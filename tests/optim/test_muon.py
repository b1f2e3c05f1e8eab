"""Muon: 50 steps against the formulas in NumPy, and against torch.optim.Muon, which it can take the place of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, Muon, param_groups
from lowrank_core.optim.parts.rules.newton_schulz import NewtonSchulz
from optim_cases import draw, same
from plain_bases import COEFFICIENTS, STEEP, newton_schulz
from plain_orthogonal import Plain
from plain_steps import UNIT, gradients, path
from testing import tolerance
from torch import Tensor, nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
ADAM_EPS = 1e-8
STEPS, LR, MOMENTUM, DECAY = 50, 0.05, 0.8, 0.02
SHAPES = [(14, 9), (9, 14), (10, 10)]
only_vectors = pytest.mark.filterwarnings("ignore:Muon. nothing is projected at rank full:UserWarning")
has_torchs = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has one since 2.9")


@with_both_paths
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", [None, "original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_formulas(shape: tuple[int, int], adjust_lr_fn: str | None, nesterov: bool) -> None:
    start = np.random.default_rng(1).standard_normal(shape)
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = Muon([weight], LR, DECAY, MOMENTUM, nesterov, adjust_lr_fn=adjust_lr_fn)
    plain = Plain(start, np.eye(1), None, LR, MOMENTUM, DECAY, nesterov=nesterov, adjust_lr_fn=adjust_lr_fn)
    for number, grad in enumerate(gradients(shape, STEPS)):
        weight.grad = torch.from_numpy(grad)
        before = plain.weight
        plain.step(grad)
        optimizer.step()
        apart = np.linalg.norm(weight.detach().numpy() - plain.weight)
        assert apart <= plain.error, f"step {number}"
        assert plain.error < 2.0**-20 * np.linalg.norm(plain.weight - before)  # far below what any one step does
    held = optimizer.state[weight]["residual.feedback"].numpy()
    assert np.linalg.norm(held - plain.moving) <= plain.off


# ---- torch's -------------------------------------------------------------------------------------------------------


@has_torchs
def test_the_arguments_are_torchs() -> None:
    ours, theirs = (list(inspect.signature(kind).parameters.values()) for kind in (Muon, torch.optim.Muon))
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [(p.name, p.default) for p in theirs]
    assert all(p.kind is not p.POSITIONAL_OR_KEYWORD for p in ours[len(theirs) :])


def beside_torchs(dtype: torch.dtype, shape: tuple[int, int], keys: dict[str, Any], bound: Callable[..., Any]) -> None:
    """Ten steps of both; `bound` of a momentum is how far the two orthogonal factors may be apart."""
    one, other = (nn.Parameter(draw(*shape).to(dtype)) for _ in range(2))
    ours, theirs = Muon([one], **keys), torch.optim.Muon([other], **keys)
    group, allowed = ours.param_groups[0], 0.0
    factor = (
        0.2 * max(shape) ** 0.5 if keys.get("adjust_lr_fn") == "match_rms_adamw" else max(1, shape[0] / shape[1]) ** 0.5
    )
    momentum = torch.zeros(shape, dtype=torch.float64)
    for step in range(10):
        one.grad = draw(*shape, seed=step).to(dtype)
        other.grad = one.grad.clone()
        ours.step()
        theirs.step()
        mu, grad = group["momentum"], one.grad.double()
        momentum = mu * momentum + (1 - mu) * grad
        signal = (1 - mu) * grad + mu * momentum if group["nesterov"] else momentum
        allowed += group["lr"] * factor * float(bound(signal)) + 4 * tolerance.UNIT[dtype] * float(
            other.detach().norm()
        )
        apart = float((one.detach().double() - other.detach().double()).norm())
        assert apart <= allowed, f"step {step}"


KEYS = [{}, {"nesterov": False, "lr": 0.1, "weight_decay": 0.0}, {"adjust_lr_fn": "match_rms_adamw", "momentum": 0.5}]


@has_torchs
@with_both_paths
@pytest.mark.parametrize("keys", KEYS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_it_is_torchs_to_the_rounding_of_its_iteration(
    shape: tuple[int, int], dtype: torch.dtype, keys: dict[str, Any]
) -> None:
    """torch's runs in bfloat16 and is that far from the exact iteration; ours rounds less of it, but in other places.
    What the last bits of a momentum change in either comes on top."""
    from torch.optim import _muon

    def bound(signal: Tensor) -> float:
        rough = _muon._zeropower_via_newtonschulz(signal.to(dtype), COEFFICIENTS, 5, 1e-7).double()
        exact = torch.from_numpy(newton_schulz(signal.numpy()))
        ours = NewtonSchulz().orthogonalized(signal.to(dtype)).double()
        return 2 * float((rough - exact).norm()) + 2 * float((ours - exact).norm())

    beside_torchs(dtype, shape, keys, bound)


@has_torchs
@with_both_paths
@pytest.mark.parametrize("keys", KEYS, ids=str)
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_it_is_torchs_with_an_exact_iteration(
    shape: tuple[int, int], keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own iteration run in float64 instead of bfloat16: to rounding."""
    from torch.optim import _muon

    iterate = _muon._zeropower_via_newtonschulz
    monkeypatch.setattr(Tensor, "bfloat16", lambda self: self.clone())
    assert iterate(draw(3, 4).double(), COEFFICIENTS, 5, 1e-7).dtype == torch.float64
    # The two sum their products in other orders: each of five steps stretches what the one before was off by.
    beside_torchs(torch.float64, shape, keys, lambda signal: 2 * 5 * STEEP**5 * 8 * max(shape) * UNIT)


@has_torchs
@with_both_paths
@pytest.mark.parametrize("size", [1e-3, 1e-8, 1e-12, 0.0])
def test_eps_is_torchs(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A momentum shorter than eps is divided by eps, in units of the mean that torch holds."""
    monkeypatch.setattr(Tensor, "bfloat16", lambda self: self.clone())
    one, other = (nn.Parameter(torch.zeros(6, 8).double()) for _ in range(2))
    for weight, kind in ((one, Muon), (other, torch.optim.Muon)):
        optimizer: Any = kind([weight], lr=1.0)
        for step in range(3):
            weight.grad = size * draw(6, 8, seed=step).double()
            optimizer.step()
    assert (one - other).norm() <= 3 * STEEP**5 * 8 * 8 * UNIT * max(float(other.detach().norm()), 1e-300)
    assert torch.isfinite(one).all() and bool(one.any()) == (size > 0)


# ---- what torch's refuses ------------------------------------------------------------------------------------------


@with_both_paths
@only_vectors
def test_what_is_no_matrix_is_adamws() -> None:
    ours, theirs = ([nn.Parameter(draw(*shape)) for shape in ((9,), (1,), (12, 8))] for _ in range(2))
    groups = [{"params": ours[:2]}, {"params": ours[2:], "rank": None}]
    optimizer = Muon(
        groups, lr=0.1, plain_lr=0.03, plain_betas=(0.8, 0.95), weight_decay=0.2, plain_moment_dtype="float32"
    )
    reference = torch.optim.AdamW(theirs, lr=0.03, betas=(0.8, 0.95), weight_decay=0.2)
    for step in range(5):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = draw(*one.shape, seed=10 * step + i)
            other.grad = one.grad.clone()
        optimizer.step()
        reference.step()
    assert same([w.detach() for w in ours], [w.detach() for w in theirs])


@only_vectors
def test_left_out_they_are_lr_and_torchs_betas() -> None:
    one, other = nn.Parameter(draw(9)), nn.Parameter(draw(9))
    optimizer, reference = Muon([one], lr=0.1), torch.optim.AdamW([other], lr=0.1, weight_decay=0.1)
    for step in range(3):
        one.grad = draw(9, seed=step)
        other.grad = one.grad.clone()
        optimizer.step()
        reference.step()
    assert same(one.detach(), other.detach())


@only_vectors
@pytest.mark.parametrize("schedule", ["steps", "one cycle", "by hand"])
def test_a_scheduler_acts_on_both_rates(schedule: str) -> None:
    """By its factor on the first rate, or on the largest one where it names that; a rate set by hand is `lr` alone."""
    weight = nn.Parameter(torch.zeros(1).double())
    optimizer = Muon([weight], lr=0.5, plain_lr=0.01, weight_decay=0.0)
    expected: list[float]
    if schedule == "steps":
        scheduler: Any = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda _: 0.5)
        expected = [0.01, 0.005, 0.0025]
    elif schedule == "one cycle":
        options = {"total_steps": 5, "pct_start": 0.4, "cycle_momentum": False, "anneal_strategy": "linear"}
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, div_factor=4, **options)
        expected = [0.0025, 0.01, 0.01 * (2 / 3 + 0.25e-4 / 3)]
    else:
        expected = [0.01, 0.01, 0.01]
    for rate in expected:
        before = weight.item()
        weight.grad = torch.ones(1).double()
        optimizer.step()
        if schedule == "by hand":
            optimizer.param_groups[0]["lr"] *= 0.5
        else:
            scheduler.step()
        assert abs((before - weight.item()) / rate - 1) <= 2 * ADAM_EPS


@with_both_paths
def test_more_dimensions_are_a_matrix() -> None:
    conv, flat = nn.Parameter(draw(6, 4, 3, 3)), nn.Parameter(draw(6, 4, 3, 3).flatten(1))
    for weight in (conv, flat):
        optimizer = Muon([weight])
        weight.grad = draw(6, 4, 3, 3, seed=1).reshape(weight.shape)
        optimizer.step()
    assert torch.equal(conv.flatten(1), flat)


def test_it_takes_groups_of_param_groups_and_of_torchs() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(10, 8), "up": nn.Linear(8, 12)})
    optimizer = Muon(param_groups(model, rank="full", others={"lr": 1e-3}, verbose=False), lr=0.02)
    assert [(row.name, row.projected) for row in optimizer.plan()] == [
        ("embed.weight", False),
        ("up.bias", False),
        ("up.weight", True),
    ]
    assert [row.projected for row in GaLoreAdamW(optimizer.param_groups[1:][0]["params"], rank=4).plan()] == [True]


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 2)])
@pytest.mark.parametrize("moment_dtype", ["auto", "int8"])
def test_its_state_is_one_matrix(dtype: torch.dtype, width: int, moment_dtype: str) -> None:
    weight = nn.Parameter(torch.zeros(64, 40, dtype=dtype))
    optimizer = Muon([weight], moment_dtype=moment_dtype)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert optimizer.state_bytes() == (64 * 40 * width if moment_dtype == "auto" else 64 * 40 + 4 * 10) + 4


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("momentum", 1.0, r"be a number in \[0, 1\), got 1.0"),
        ("momentum", -0.1, r"be a number in \[0, 1\), got -0.1"),
        ("nesterov", 1, "be True or False, got 1"),
        ("ns_coefficients", (1.0, 2.0), r"be three finite numbers, got \(1.0, 2.0\)"),
        ("ns_coefficients", (1.0, 2.0, float("nan")), "be three finite numbers, got"),
        ("ns_steps", 100, "be an int >= 0 and < 100, got 100"),
        ("ns_steps", 2.0, "be an int >= 0 and < 100, got 2.0"),
        ("eps", 0.0, "be a number > 0, got 0.0"),
        ("eps", -1.0, "be a number > 0, got -1.0"),
        ("adjust_lr_fn", "kimi", "be one of None, original, match_rms_adamw, got 'kimi'"),
        ("plain_lr", -1.0, "be a number >= 0 or None, got -1.0"),
        ("plain_betas", (0.9,), r"be two numbers in \[0, 1\), got \(0.9,\)"),
        ("moment_dtype", "int4", "be one of auto, float32, bfloat16, int8, got 'int4'"),
    ],
)
def test_refusals(key: str, value: Any, rule: str) -> None:
    for make in (
        lambda: Muon([nn.Parameter(torch.zeros(6, 8))], **{key: value}),
        lambda: Muon([{"params": [nn.Parameter(torch.zeros(6, 8))], key: value}]),
    ):
        with pytest.raises(ValueError, match=f"^Muon: `{key.replace('plain_b', 'b')}` must {rule}"):
            make()


@pytest.mark.parametrize("key", ["proj_type", "force_projection", "stagger", "update_proj_gap", "scale", "betas"])
def test_keys_that_would_do_nothing_are_none(key: str) -> None:
    with pytest.raises(TypeError, match=f"^Muon: `{key}` must be one of its keys"):
        Muon([nn.Parameter(torch.zeros(6, 8))], **{key: 0.5})
