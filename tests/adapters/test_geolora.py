"""GeoLoRA: a Riemannian step and a truncation, ranks that move, and parameters that stay."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from lowrank_core import adapters
from testing.tolerance import EQUAL, assert_equal, gamma
from torch import Tensor, nn


def linear(m: int = 20, n: int = 15, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(n, m, bias=False).double()


def weight(layer: adapters.USVLinear) -> Tensor:
    b, a = layer.factors()
    return layer.base_layer.weight + layer.scaling * b @ a  # type: ignore[operator]


def tangent(g: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return u @ u.mT @ g + g @ v @ v.mT - u @ u.mT @ g @ v @ v.mT


def backward(model: nn.Module, g: Tensor) -> None:
    """Leaves the gradients of a loss whose gradient by the whole weight is g."""
    (model(torch.eye(g.shape[1], dtype=g.dtype)).mT * g).sum().backward()


@pytest.mark.parametrize("start", ["zero", "some"])
def test_a_plain_step_is_riemannian_before_truncation(start: str) -> None:
    model = nn.Sequential(linear())
    optimizer = adapters.GeoLoRA(model, rank=3, max_rank=15, min_rank=1, tol=0.0, lr=0.1, rule="sgd")
    layer: Any = model[0]
    if start == "some":
        layer.take(*layer.parts()[:1], torch.randn(3, 3, dtype=torch.float64), layer.parts()[2])
    g = torch.randn(20, 15, dtype=torch.float64)
    before, (u, _, v) = weight(layer), [part.clone() for part in layer.parts()]
    backward(model, g)
    optimizer.step()
    assert_equal(weight(layer), before - 0.1 * tangent(g, u, v))
    assert not torch.equal(weight(layer), before)


def test_truncation_loses_no_more_than_the_tolerance() -> None:
    model, g = nn.Sequential(linear()), torch.randn(20, 15, dtype=torch.float64)
    twin = copy.deepcopy(model)
    found = []
    for net, tol in ((model, 0.0), (twin, 0.4)):
        optimizer = adapters.GeoLoRA(net, rank=4, max_rank=8, min_rank=1, tol=tol, lr=0.1, rule="sgd")
        backward(net, g)
        optimizer.step()
        found.append(weight(net[0]) - net[0].base_layer.weight)
    whole, cut = found
    assert twin[0].rank < model[0].rank == 8
    assert 0 < (whole - cut).norm() <= 0.4 * whole.norm() * (1 + gamma(20 * 15, torch.float64))


@pytest.mark.parametrize("start", ["zero", "some"])
def test_a_quadratic_of_low_rank_is_solved_in_three_steps_with_its_rank(start: str) -> None:
    """From random bases, S = 0 or not: G takes the columns, then the rows, then W is reached."""
    model = nn.Sequential(linear())
    goal = model[0].weight.detach() + torch.randn(20, 3).double() @ torch.randn(3, 15).double()
    optimizer = adapters.GeoLoRA(model, rank=2, max_rank=8, tol=1e-8, lr=1.0, rule="sgd")
    layer: Any = model[0]
    if start == "some":
        layer.take(layer.parts()[0], torch.randn(2, 2, dtype=torch.float64), layer.parts()[2])
    errors = []
    for _ in range(4):
        errors.append(float((weight(layer) - goal).norm() / goal.norm()))
        optimizer.zero_grad()
        (0.5 * (model(torch.eye(15).double()).mT - goal).square().sum()).backward()
        optimizer.step()
    assert min(errors[:2]) > EQUAL and errors[3] <= gamma(15, torch.float64)
    assert optimizer.ranks() == {"0": 3}


def test_the_tolerance_is_of_the_norm_after_the_step() -> None:
    """Before it S is 0, of which nothing could be cut; and what one step leaves, another without a gradient may cut."""
    model = nn.Sequential(linear())
    optimizer = adapters.GeoLoRA(model, rank=3, max_rank=6, min_rank=1, tol=1.2 / 102**0.5, lr=1.0, rule="sgd")
    layer: Any = model[0]
    (u, _, v), values = (part.clone() for part in layer.parts()), torch.tensor([10.0, 1.0, 1.0]).double()
    found = []
    for g in (-(u * values) @ v.mT, torch.zeros(20, 15).double()):
        optimizer.zero_grad()
        backward(model, g)
        optimizer.step()
        found.append(layer.rank)
    assert found == [2, 1]


def small(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, 3)).to(dtype)


def train(model: nn.Module, optimizer: Any, steps: int, start: int = 0) -> list[float]:
    losses = []
    for step in range(start, start + steps):
        g = torch.Generator().manual_seed(step)
        x = torch.randn(16, 12, generator=g)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("keys", [{}, {"basis_gap": 4}, {"rule": "sgd"}, {"weight_decay": 0.1}, {"budget": 9}], ids=str)
def test_it_trains_with_orthonormal_bases_and_what_is_frozen_stays(keys: dict[str, Any]) -> None:
    model = small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rate = 0.1 if "rule" in keys else 0.02
    optimizer = adapters.GeoLoRA(model, rank=3, max_rank=6, lr=rate, modules_to_save="4.bias", **keys)
    kept = {id(p) for p in model.parameters()}
    losses = train(model, optimizer, 150)
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    assert {id(p) for p in model.parameters()} == kept
    for layer in optimizer.layers.values():
        u, s, v = layer.parts()
        assert 2 <= layer.rank <= 6 and len(s) == layer.rank
        for q in (u, v):
            bound = gamma(16 * len(losses), torch.float32)
            assert (q.mT @ q - torch.eye(layer.rank)).abs().max() <= bound
        assert not layer.u.detach()[:, layer.rank :].any() and not layer.s.detach()[layer.rank :].any()
    assert sum(optimizer.ranks().values()) <= keys.get("budget", 99)
    for name, p in model.named_parameters():
        own = name.replace("base_layer.", "")
        if own in before:
            assert torch.equal(p, before[own]) != (name == "4.base_layer.bias"), name


def test_between_basis_steps_only_the_square_moves() -> None:
    model = small()
    optimizer = adapters.GeoLoRA(model, rank=3, lr=0.02, basis_gap=3)
    moved = []
    for step in range(6):
        before = optimizer.layers["0"].u.detach().clone()
        train(model, optimizer, 1, step)
        moved.append(not torch.equal(before, optimizer.layers["0"].u))
    assert moved == [True, False, False, True, False, False]


def test_frozen_bases_let_the_square_train() -> None:
    model = small()
    optimizer = adapters.GeoLoRA(model, rank=3, lr=0.02)
    layer = optimizer.layers["0"]
    layer.u.requires_grad_(False)
    train(model, optimizer, 2)
    assert bool(layer.s.any()) and optimizer.ranks()["0"] == 3
    assert torch.equal(layer.v, adapters.GeoLoRA(small(), rank=3).layers["0"].v)


def test_a_budget_counts_layers_that_have_no_gradient() -> None:
    model = small()
    optimizer = adapters.GeoLoRA(model, rank=3, max_rank=6, tol=0.0, lr=0.02, budget=10)
    optimizer.layers["4"].u.requires_grad_(False)
    train(model, optimizer, 5)
    assert optimizer.ranks()["4"] == 3 and sum(optimizer.ranks().values()) <= 10


def test_moments_turn_with_the_bases() -> None:
    """The first moment is a matrix in the bases: U M Vᵀ stays what it was, inside the new ones."""
    model = nn.Sequential(linear())
    optimizer = adapters.GeoLoRA(model, rank=3, max_rank=15, min_rank=1, tol=0.0, lr=0.1, betas=(0.9, 0.999))
    layer: Any = model[0]
    g = torch.randn(20, 15, dtype=torch.float64)
    (u, _, v) = (part.clone() for part in layer.parts())
    backward(model, g)
    optimizer.step()
    state, (new_u, _, new_v) = optimizer.state[layer.s], layer.parts()
    r = layer.rank
    whole = new_u @ state["exp_avg"][:r, :r] @ new_v.mT
    torch.testing.assert_close(whole, 0.1 * u @ (u.mT @ g @ v) @ v.mT)
    assert bool((state["exp_avg_sq"] >= 0).all())


def test_a_run_goes_on_to_the_bit() -> None:
    model = small()
    optimizer = adapters.GeoLoRA(model, rank=3, max_rank=6, lr=0.02, modules_to_save=["4.bias"], basis_gap=2)
    train(model, optimizer, 7)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = small(seed=5)
    again = adapters.GeoLoRA(other, rank=3, max_rank=6, lr=0.02, modules_to_save=["4.bias"], basis_gap=2)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert again.ranks() == optimizer.ranks()
    assert train(model, optimizer, 5, 7) == train(other, again, 5, 7)


def test_parts_become_plain_factors_and_weights() -> None:
    model = small()
    optimizer = adapters.GeoLoRA(model, rank=3, lr=0.02, scale=0.5)
    train(model, optimizer, 10)
    x = torch.randn(4, 12)
    with torch.no_grad():
        expected, before = model(x), copy.deepcopy(model)
        plain = small()
        for name, (b, a, scale) in optimizer.to_lora().items():
            plain.get_submodule(name).weight += scale * b @ a
        merged = optimizer.merge(model)
    torch.testing.assert_close(plain(x), expected)
    torch.testing.assert_close(merged(x), expected)
    assert type(merged[0]) is nn.Linear and isinstance(before[0], adapters.USVLinear)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
@pytest.mark.parametrize("where", ["u", "s", "v"])
def test_what_is_not_finite_changes_nothing(where: str, nonfinite: str) -> None:
    model = small()
    optimizer = adapters.GeoLoRA(model, rank=3, lr=0.02, nonfinite=nonfinite)
    train(model, optimizer, 2)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    getattr(optimizer.layers["2"], where).grad[0, 0] = torch.inf
    if nonfinite == "raise":
        with pytest.raises(RuntimeError, match="must be finite"):
            optimizer.step()
    else:
        optimizer.step()
        assert optimizer.skipped_steps == 1
    assert all(torch.equal(value, before[0][key]) for key, value in model.state_dict().items())
    for number, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(before[1][number][k])) for k, v in state.items())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rank": 0}, "`rank` must be an int >= 1, got 0"),
        ({"rank": 4, "max_rank": 3}, "`max_rank` must be an int >= `rank` = 4, or None, got 3"),
        ({"rank": 4, "min_rank": 5}, "`min_rank` must be an int from 1 to 4, got 5"),
        ({"tol": -0.1}, "`tol` must be a number >= 0, got -0.1"),
        ({"lr": -1.0}, "`lr` must be a number >= 0"),
        ({"scale": 0.0}, "`scale` must be a number apart from 0, got 0.0"),
        ({"rule": "lion"}, "`rule` must be"),
        ({"basis_gap": 0}, "`basis_gap` must be an int >= 1, got 0"),
        ({"budget": 5}, "`budget` must be an int >= 2 for each of 3 layers, or None, got 5"),
        ({"target_modules": ["query"]}, "`target_modules` must match a matrix"),
        ({"exclude": ["0", "2", "4"]}, "`target_modules` must mean a linear layer that is not excluded"),
        ({"betas": (1.0, 0.9)}, "`betas` must be two numbers"),
        ({"nonfinite": "stop"}, "`nonfinite` must be"),
        ({"modules_to_save": ["head"]}, "`modules_to_save` must have words that are in the name of a parameter"),
    ],
)
def test_values_out_of_range_are_refused_and_the_model_stays(keys: dict[str, Any], message: str) -> None:
    model = small()
    with pytest.raises(ValueError, match=message):
        adapters.GeoLoRA(model, **keys)
    assert all(type(module) is not adapters.USVLinear for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
