"""`basis="auto"`: a weight takes rows or columns, or cosines of them, by its first gradient, and stays with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core import memory
from lowrank_core.memory.storage import AUTO_BASES
from lowrank_core.optim import DCTAdamW, Monitor, Trion, fused_backward
from numpy import ndarray
from optim_cases import composed, draw, same
from plain_bases import atoms, best
from plain_dct import BETAS, DECAY, EPS, LR, RANK, Plain
from plain_steps import path
from testing import tolerance
from torch import Tensor, nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
STEPS = 50
# Shape, kind of gradients, steps with gradients of zeros before them: three weights on each side.
WEIGHTS = [(shape, *how) for shape in ((14, 9), (9, 14)) for how in (("scales", 0), ("walk", 0), ("walk", 2))]
BEST = {"scales": "identity", "walk": "dct2"}


def gradients(shape: tuple[int, int], kind: str, steps: int = STEPS) -> Iterator[ndarray]:
    """For a basis on the right, else transposed: columns of very different scales, or rows that are smooth."""
    draws = np.random.default_rng(5)
    tall = (max(shape), min(shape))
    scales = np.exp(0.7 * draws.standard_normal(tall[1]))
    for _ in range(steps):
        noise = draws.standard_normal(tall)
        grad = noise * scales if kind == "scales" else noise.cumsum(axis=1)
        yield grad if shape[0] >= shape[1] else grad.T.copy()


def given(shape: tuple[int, int], kind: str, zeros: int, steps: int = STEPS) -> list[Tensor]:
    return [torch.from_numpy(grad * (step >= zeros)) for step, grad in enumerate(gradients(shape, kind, steps))]


def basis_of(state: dict[str, Any]) -> str:
    return AUTO_BASES[state["proj.auto_basis"]]


@with_both_paths
@pytest.mark.parametrize("fed_back", [True, False])
@pytest.mark.parametrize(("gap", "norm_ord"), [(1, 2), (1, 1), (4, 2)])
def test_the_formulas(gap: int, norm_ord: int, fed_back: bool) -> None:
    """Of weights that one call steps."""
    plains, weights = [], []
    for number, (shape, _, _) in enumerate(WEIGHTS):
        start = np.random.default_rng(number).standard_normal(shape)
        tall = start if shape[0] >= shape[1] else start.T
        bases = {name: atoms(name, min(shape)) for name in ("identity", "dct2")}
        plains.append(Plain(tall.copy(), bases, gap, norm_ord, fed_back))
        weights.append(nn.Parameter(torch.from_numpy(start.copy())))
    keys: dict[str, Any] = {"norm_ord": norm_ord, "error_feedback": fed_back, "update_proj_gap": gap}
    optimizer = DCTAdamW(weights, LR, BETAS, EPS, DECAY, rank=RANK, basis="auto", **keys)
    for number, grads in enumerate(zip(*(given(*how) for how in WEIGHTS), strict=True)):
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad
        optimizer.step()
        for (shape, _, zeros), plain, weight in zip(WEIGHTS, plains, weights, strict=True):
            tall = shape[0] >= shape[1]
            assert weight.grad is not None
            before, grad = plain.weight, weight.grad.numpy()
            plain.step(grad if tall else grad.T)
            state = optimizer.state[weight]
            assert state["proj.refreshes"] == 0 if number < zeros else basis_of(state) == plain.basis
            if number >= zeros:
                assert state["proj.auto"].tolist() == plain.chosen, f"step {number}"
                assert state["counts"].flatten().tolist() == [plain.moments[j][2] for j in plain.chosen]
                assert abs(state["proj.captured"] - plain.captured) <= 2 * tolerance.UNIT[torch.float32]
            apart = weight.detach().numpy() - (plain.weight if tall else plain.weight.T)
            assert np.linalg.norm(apart) <= plain.error, f"step {number}"
            assert number < zeros or plain.error < 2.0**-24 * np.linalg.norm(plain.weight - before)
            if fed_back:
                waiting = state["residual.feedback"].numpy() if tall else state["residual.feedback"].numpy().T
                back = waiting @ plain.bases[plain.basis].T if plain.basis else waiting
                assert np.abs(back - plain.left).max() <= plain.off
    assert [plain.basis for plain in plains] == [BEST[kind] for _, kind, _ in WEIGHTS]
    assert all(sum(p.entered for p in plains if p.basis == basis) > 3 for basis in AUTO_BASES)


def run(basis: str, dtype: torch.dtype, kind: Any = DCTAdamW, **keys: Any) -> list[tuple[Tensor, dict[str, Any]]]:
    """Weights and states after six steps, the first of them composed."""
    weights = [nn.Parameter(draw(*shape, seed=i).to(dtype)) for i, (shape, _, _) in enumerate(WEIGHTS)]
    optimizer = kind(weights, lr=0.05, rank=RANK, weight_decay=0.1, basis=basis, **keys)
    streams = [given(shape, how, 0, 6) for shape, how, _ in WEIGHTS]
    for number in range(6):
        for weight, grads in zip(weights, streams, strict=True):
            weight.grad = grads[number].to(dtype)
        if number == 0:
            with composed():
                optimizer.step()
        else:
            optimizer.step()
    return [(weight.detach(), optimizer.state[weight]) for weight in weights]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"error_feedback": False, "maximize": True},
        {"update_proj_gap": 3},
        {"moment_dtype": "int8", "error_feedback_dtype": "int8", "rounding": "stochastic"},
        {"kind": Trion},
    ],
    ids=["", "open", "gap", "int8", "trion"],
)
def test_it_steps_as_the_basis_that_it_chose(keys: dict[str, Any], dtype: torch.dtype) -> None:
    """Bit for bit, beside weights that chose the other one."""
    fixed = {basis: run(basis, dtype, **keys) for basis in AUTO_BASES}
    found = set()
    for number, (weight, state) in enumerate(run("auto", dtype, **keys)):
        basis = basis_of(state)
        found.add(basis)
        assert basis == BEST[WEIGHTS[number][1]]
        expected, held = fixed[basis][number]
        assert same(weight, expected)
        renamed = {key.replace("auto", basis): value for key, value in state.items() if key != "proj.auto_basis"}
        assert same(renamed, held)
    assert found == set(AUTO_BASES)


@with_both_paths
@pytest.mark.parametrize("norm_ord", [1, 2])
@pytest.mark.parametrize("kind", BEST)
def test_the_choice_is_by_energy_whatever_ranks_the_atoms(kind: str, norm_ord: int) -> None:
    for seed in range(20):
        grad = draw(24, 16, seed=seed).double()
        grad = grad * torch.linspace(0, 1 + seed / 4, 16).exp() if kind == "scales" else grad.cumsum(1) + grad * seed
        weight = nn.Parameter(torch.zeros(24, 16, dtype=torch.float64))
        optimizer = DCTAdamW([weight], rank=4, basis="auto", norm_ord=norm_ord)
        weight.grad = grad
        optimizer.step()
        spectra = {basis: grad.numpy() @ atoms(basis, 16) for basis in AUTO_BASES}
        held = {name: float((s[:, best(s, 4, norm_ord)] ** 2).sum()) for name, s in spectra.items()}
        assert basis_of(optimizer.state[weight]) == max(held, key=lambda name: held[name])


def one_weight(**keys: Any) -> tuple[nn.Parameter, DCTAdamW]:
    weight = nn.Parameter(draw(14, 9))
    return weight, DCTAdamW([weight], lr=0.1, basis="auto", **{"rank": RANK, **keys})


def test_a_tie_goes_to_the_identity() -> None:
    """Which costs no transform: at full rank both hold everything."""
    weight, optimizer = one_weight(rank=9, force_projection=True)
    for seed in range(3):
        optimizer.state.clear()
        weight.grad = torch.from_numpy(next(gradients((14, 9), "walk"))).float() * draw(14, 1, seed=seed)
        optimizer.step()
        assert optimizer.state[weight]["proj.captured"] == 1 and basis_of(optimizer.state[weight]) == "identity"


@with_both_paths
@pytest.mark.parametrize("fed_back", [True, False])
@pytest.mark.parametrize("gap", [1, 3])
def test_it_stays_with_its_basis(gap: int, fed_back: bool) -> None:
    weight, optimizer = one_weight(update_proj_gap=gap, error_feedback=fed_back)
    for kind in ("walk", "scales", "scales"):
        for grad in given((14, 9), kind, 0, 4):
            weight.grad = grad.float()
            optimizer.step()
        assert basis_of(optimizer.state[weight]) == "dct2"
    assert optimizer.projections()[0].refreshes == 12 // gap


@with_both_paths
@pytest.mark.parametrize("gap", [1, 3])
@pytest.mark.parametrize("fed_back", [True, False])
def test_zeros_and_what_is_not_finite_decide_nothing(gap: int, fed_back: bool) -> None:
    weight, optimizer = one_weight(update_proj_gap=gap, error_feedback=fed_back, weight_decay=0.5)
    before = weight.detach().clone()
    for step in range(2):
        weight.grad = torch.zeros(14, 9)
        optimizer.step()
        weight.grad = torch.full((14, 9), torch.inf)
        optimizer.step()
        state = optimizer.state[weight]
        assert (state["proj.auto_basis"], state["proj.refreshes"], state["step"]) == (0, 0, step + 1)
        assert not any(state[key].any() for key in ("exp_avg", "exp_avg_sq", "counts", "proj.auto"))
    assert optimizer.skipped_steps == 2 and optimizer.projections()[0].captured is None
    assert torch.equal(weight, before * (1 - 0.1 * 0.5) * (1 - 0.1 * 0.5))
    weight.grad = given((14, 9), "walk", 0, 1)[0].float()
    optimizer.step()
    state = optimizer.state[weight]
    assert basis_of(state) == "dct2" and set(state["counts"].flatten().tolist()) == {1}


@pytest.mark.parametrize("fed_back", [True, False])
def test_its_state_is_as_large_whatever_it_chose(fed_back: bool) -> None:
    sizes, keys = set(), {"error_feedback": fed_back, "rank": RANK}
    for kind in BEST:
        weight, optimizer = one_weight(**keys)
        planned = optimizer.planned_state_bytes()
        weight.grad = given((14, 9), kind, 0, 1)[0].float()
        optimizer.step()
        assert basis_of(optimizer.state[weight]) == BEST[kind]
        sizes |= {planned, optimizer.state_bytes(), optimizer.planned_state_bytes()}
    for basis in ("auto", "dct2"):
        sizes.add(memory.estimate_state_bytes([(14, 9)], "dct", basis=basis, **keys))
    assert len(sizes) == 1


@with_both_paths
def test_the_first_choice_is_no_change() -> None:
    weight, optimizer = one_weight()
    with Monitor(optimizer) as monitor:
        for grad in given((14, 9), "walk", 0, 2):
            weight.grad = grad.float()
            optimizer.step()
    first, second = monitor.rows
    assert first["overlap"] is None and first["captured"] > 0 and 0 <= second["overlap"] <= 1


def test_each_matrix_of_a_stack_has_its_own() -> None:
    stack = nn.Parameter(torch.zeros(2, 14, 9))
    optimizer = DCTAdamW([stack], rank=RANK, basis="auto", stacked=True)
    stack.grad = torch.stack([given((14, 9), kind, 0, 1)[0].float() for kind in ("walk", "scales")])
    optimizer.step()
    state = optimizer.state_dict()["state"][0]
    assert (state["0.proj.auto_basis"], state["1.proj.auto_basis"]) == (1, 0)


@pytest.mark.parametrize("fed_back", [True, False])
def test_updates_inside_backward_choose_as_a_step_does(fed_back: bool) -> None:
    """By the sum of the gradients of two backward passes, where these are added up; fed back, there is one."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(9, 14, bias=False), nn.Linear(14, 9, bias=False))
    models, scales = (first, copy.deepcopy(first)), torch.logspace(-2, 1, 9)
    keys: dict[str, Any] = {"rank": RANK, "basis": "auto", "error_feedback": fed_back, "nonfinite": "raise"}
    ours, theirs = (DCTAdamW(model.parameters(), **keys) for model in models)
    fused_backward(models[0], ours)
    for step in range(3):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            for part in range(1 if fed_back else 2):
                smooth = draw(5, 9, seed=2 * step + part).cumsum(1)
                (model(smooth) * scales).square().mean().backward()
            optimizer.step()
    for optimizer in (ours, theirs):
        assert [basis_of(optimizer.state[param]) for param in optimizer.param_groups[0]["params"]] == [
            "dct2",
            "identity",
        ]
    for param, twin in zip(*(model.parameters() for model in models), strict=True):
        assert same(param.detach(), twin.detach())


def test_it_cannot_be_changed_under_a_state() -> None:
    weight, optimizer = one_weight()
    weight.grad = draw(14, 9)
    optimizer.step()
    optimizer.param_groups[0]["basis"] = "dct2"
    with pytest.raises(ValueError, match="it is of another optimizer, of other keys of its group, or damaged"):
        optimizer.step()
