"""Dion2 and Trion: 50 steps against the formulas in NumPy with the momentum in the weight's space, and identities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.optim import Dion2, LowRankOptimizer, Muon, Trion
from optim_cases import Zoo, composed, draw, same, snapshot, train
from plain_bases import atoms
from plain_orthogonal import Plain
from plain_steps import SIDES, gradients, path
from testing.tolerance import UNIT
from torch import Tensor, nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
STEPS, LR, MOMENTUM, DECAY = 50, 0.05, 0.8, 0.02


@with_both_paths
@pytest.mark.parametrize("adjust_lr_fn", [None, "match_rms_adamw"])
@pytest.mark.parametrize("basis", ["dct2", "dct3", "dion2"])
@pytest.mark.parametrize(("shape", "proj_type"), SIDES)
def test_the_formulas(shape: tuple[int, int], proj_type: str, basis: str, adjust_lr_fn: str | None) -> None:
    turned = SIDES[shape, proj_type] == "L"
    turn: Callable[[Any], Any] = (lambda x: x.T) if turned else (lambda x: x)
    start = np.random.default_rng(1).standard_normal(shape)
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    keys: dict[str, Any] = {"momentum": MOMENTUM, "weight_decay": DECAY, "adjust_lr_fn": adjust_lr_fn}
    keys |= {"proj_type": proj_type}
    optimizer: LowRankOptimizer
    if basis == "dion2":
        optimizer = Dion2([weight], LR, fraction=0.35, **keys)
        name, rank, norm_ord = "identity", -(-35 * min(shape) // 100), 1
    else:
        optimizer, name, rank, norm_ord = Trion([weight], LR, rank=3, basis=basis, **keys), basis, 3, 2
    q = atoms(name, turn(start).shape[1])
    plain = Plain(turn(start).copy(), q, rank, LR, MOMENTUM, DECAY, norm_ord, False, adjust_lr_fn, turned)
    seen = set()
    for number, grad in enumerate(gradients(shape, STEPS)):
        weight.grad = torch.from_numpy(grad)
        before = plain.weight
        plain.step(turn(grad))
        optimizer.step()
        assert optimizer.state[weight][f"proj.{name}"].tolist() == plain.chosen, f"step {number}"
        seen.add(tuple(plain.chosen))
        apart = np.linalg.norm(turn(weight.detach().numpy()) - plain.weight)
        assert apart <= plain.error, f"step {number}"
        assert plain.error < 2.0**-20 * np.linalg.norm(plain.weight - before)  # far below what any one step does
    assert len(seen) > 3
    moving = turn(optimizer.state[weight]["residual.feedback"].numpy()) @ q.T
    assert np.linalg.norm(moving - plain.moving) <= plain.off


def matrices(*dtypes: torch.dtype) -> list[nn.Parameter]:
    shapes = [(12, 20), (20, 12), (12, 12), (6, 4, 2, 2), (9,)]
    return [nn.Parameter(draw(*shape, seed=i).to(dtype)) for dtype in dtypes for i, shape in enumerate(shapes)]


def stepped(optimizer: Any, weights: list[nn.Parameter], steps: int = 6) -> list[Tensor]:
    for step in range(steps):
        for i, weight in enumerate(weights):
            weight.grad = draw(*weight.shape, seed=100 * step + i).to(weight.dtype)
        optimizer.step()
    return [weight.detach() for weight in weights]


SHARED: dict[str, Any] = {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1}


@with_both_paths
@pytest.mark.parametrize("keys", [{}, {"moment_dtype": "int8"}, {"adjust_lr_fn": "match_rms_adamw", "maximize": True}])
def test_trion_over_the_identity_is_dion2(keys: dict[str, Any]) -> None:
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    one, other = matrices(*dtypes), matrices(*dtypes)
    trion = Trion(one, rank=0.5, basis="identity", norm_ord=1, **SHARED, **keys)
    dion2 = Dion2(other, fraction=0.5, **SHARED, **keys)
    assert same(stepped(trion, one), stepped(dion2, other))
    assert same(trion.state_dict()["state"], dion2.state_dict()["state"])


@with_both_paths
@pytest.mark.parametrize("keys", [{}, {"moment_dtype": "int8"}, {"adjust_lr_fn": "match_rms_adamw", "maximize": True}])
def test_dion2_of_all_rows_is_muon_without_nesterov(keys: dict[str, Any]) -> None:
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    one, other = matrices(*dtypes), matrices(*dtypes)
    muon = Muon(one, nesterov=False, **SHARED, **keys)
    dion2 = Dion2(other, fraction=1, **SHARED, **keys)
    assert same(stepped(muon, one), stepped(dion2, other))
    for weight, twin in zip(one, other, strict=True):
        held = muon.state[weight]
        assert same({**held, "proj.side": 0}, {**{key: dion2.state[twin][key] for key in held}, "proj.side": 0})


@with_both_paths
@pytest.mark.parametrize("basis", ["dct2", "dct3", "identity"])
def test_trion_of_all_atoms_is_muon_without_nesterov(basis: str) -> None:
    """An orthogonal basis goes through the iteration: within its rounding."""
    one, other = matrices(torch.float64), matrices(torch.float64)
    muon, trion = Muon(one, nesterov=False, **SHARED), Trion(other, rank="full", basis=basis, **SHARED)
    for left, right in zip(stepped(muon, one), stepped(trion, other), strict=True):
        assert (left - right).norm() <= 6 * 0.05 * 4**5 * 2 * 20 * 8 * 2.0**-53


def test_fraction_is_rounded_up_and_full_rank_is_never_adamw() -> None:
    weights = [nn.Parameter(draw(*shape)) for shape in ((12, 20), (100, 200), (7, 9))]
    for fraction, ranks in ((0.25, [3, 25, 2]), (0.07, [1, 7, 1]), (1, [12, 100, 7]), (1e-9, [1, 1, 1])):
        assert [row.rank for row in Dion2(weights, fraction=fraction).plan()] == ranks
    for rank in (1, 5000, 0.5, "full"):
        assert [row.rank for row in Dion2(weights, rank=rank).plan()] == [3, 25, 2]
        assert [row.rank for row in Muon(weights, rank=rank).plan()] == [12, 100, 7]
    assert [row.rank for row in Trion(weights, rank=5000).plan()] == [12, 100, 7]
    assert not any("saves no memory" in row.reason for row in Muon(weights).plan())


@with_both_paths
@pytest.mark.parametrize("kind", [Dion2, Trion])
def test_nothing_gained_is_lost(kind: type[LowRankOptimizer]) -> None:
    """What was not chosen keeps all of its momentum; what was keeps `momentum` of it: exact for whole numbers."""
    weight, total = nn.Parameter(torch.zeros(9, 12)), torch.zeros(9, 12)
    keys = {"fraction": 0.4} if kind is Dion2 else {"rank": 4, "basis": "identity"}
    optimizer = kind([weight], lr=0.1, momentum=0.5, **keys)  # type: ignore[call-arg]
    for step in range(6):
        weight.grad = (64 * draw(9, 12, seed=step)).round()
        optimizer.step()
        state = optimizer.state[weight]
        total += weight.grad
        total[state["proj.identity"]] *= 0.5
        assert torch.equal(total, state["residual.feedback"]) and len(state["proj.identity"]) == 4


@with_both_paths
def test_only_chosen_rows_step_and_all_decay() -> None:
    weight = nn.Parameter(draw(9, 12))
    before = weight.detach().clone()
    optimizer = Dion2([weight], lr=0.1, fraction=0.3, weight_decay=0.5)
    weight.grad = draw(9, 12, seed=1)
    optimizer.step()
    chosen = optimizer.state[weight]["proj.identity"].tolist()
    still = [i for i in range(9) if i not in chosen]
    assert chosen == sorted(weight.grad.abs().sum(1).topk(3).indices.tolist())
    assert torch.equal(weight.detach()[still], before[still] * (1 - 0.1 * 0.5))
    assert bool(((weight - 0.95 * before)[chosen].norm(dim=1) > 0.05).all())


@pytest.mark.parametrize("moment_dtype", ["float32", "int8"])
@pytest.mark.parametrize("kind", [Muon, Dion2, Trion])
def test_the_composition_gives_the_same_momentum(kind: type[LowRankOptimizer], moment_dtype: str) -> None:
    """To the bit: matrices are orthogonalized together, each as it would be alone. Weights are rounded as a fused step
    rounds them: three times by either."""
    models = [Zoo(), Zoo()]
    keys = {"lr": 0.02, "moment_dtype": moment_dtype, "maximize": True}
    one, other = (kind(model.parameters(), **keys) for model in models)  # type: ignore[arg-type]
    for number in range(4):
        train(models[0], one, [number])
        for param, twin in zip(*(model.parameters() for model in models), strict=True):
            twin.grad = None if param.grad is None else param.grad.clone()
        with composed():
            other.step()
    assert same(snapshot(models[0], one)[1]["state"], snapshot(models[1], other)[1]["state"])
    for left, right in zip(*(model.parameters() for model in models), strict=True):
        size = float(left.detach().abs().max()) if left.numel() else 0.0
        assert bool(((left - right).abs() <= 4 * 3 * 2 * UNIT[torch.float32] * (size + keys["lr"])).all())


@pytest.mark.parametrize(
    ("kind", "key", "value", "rule"),
    [
        (Dion2, "fraction", 0, r"be a number in \(0, 1\], got 0"),
        (Dion2, "fraction", 1.5, r"be a number in \(0, 1\], got 1.5"),
        (Dion2, "fraction", None, r"be a number in \(0, 1\], got None"),
        (Dion2, "norm_ord", 0, "be 1 or 2, got 0"),
        (Trion, "basis", "fft", "be one of dct2, dct3, identity, hadamard, auto, got 'fft'"),
        (Trion, "proj_type", "full", "be one of std, reverse_std, left, right, got 'full'"),
    ],
)
def test_refusals(kind: Any, key: str, value: Any, rule: str) -> None:
    for make in (
        lambda: kind([nn.Parameter(torch.zeros(6, 8))], **{key: value}),
        lambda: kind([{"params": [nn.Parameter(torch.zeros(6, 8))], key: value}]),
    ):
        with pytest.raises(ValueError, match=f"^{kind.__name__}: `{key}` must {rule}$"):
            make()


def test_trion_refuses_a_hadamard_basis_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"^Trion: `basis` must not be 'hadamard' for a weight \(6, 8\), .* side 6 is"):
        Trion([nn.Parameter(torch.zeros(6, 8))], basis="hadamard")
    with pytest.raises(TypeError, match=r"^Dion2: `nesterov` must be one of its keys"):
        Dion2([nn.Parameter(torch.zeros(6, 8))], nesterov=True)
