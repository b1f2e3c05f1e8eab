"""The variances that LoKO starts from: what a draw of a factor does to the product, and every kind of pair."""

from __future__ import annotations

import math

import pytest
import torch
from lowrank_core import adapters
from lowrank_core.adapters.variance import P0, starts
from start_cases import RANK, data, layers, model
from testing import cases
from torch import Tensor, nn

DRAWS = 4000
SPREAD = 6 * math.sqrt(2 / DRAWS)  # six deviations of a mean of that many squared norms, each of one number or more


def moved(layer: adapters.LoRALinear, name: str, p: float, start: dict[str, Tensor] | None = None) -> float:
    """The mean squared norm that draws of variance `p` of one factor move the product by, over that of the weight."""
    factors = {"lora_A": layer.lora_A.detach(), "lora_B": layer.lora_B.detach(), **(start or {})}
    drawn = p**0.5 * cases.gaussian(DRAWS, factors[name].numel(), seed=5).double().view(DRAWS, *factors[name].shape)
    b, a = (drawn if name == key else factors[key] for key in ("lora_B", "lora_A"))
    product = layer.scaling * (b @ a)
    return float(product.square().sum((-2, -1)).mean() / layer.base_layer.weight.detach().square().sum())


def test_a_draw_moves_the_product_by_the_norm_of_the_weight() -> None:
    net = model()
    found = starts(net)
    for layer in layers(net):
        assert moved(layer, "lora_B", found[layer.lora_B]) == pytest.approx(1.0, rel=SPREAD)
        mean = float(layer.lora_A.detach().square().mean())
        assert found[layer.lora_A] == pytest.approx(mean), "B = 0: A's own mean square"
        filled = {"lora_B": found[layer.lora_B] ** 0.5 * torch.ones_like(layer.lora_B)}
        assert moved(layer, "lora_A", found[layer.lora_A], filled) == pytest.approx(1.0, rel=SPREAD)


def test_a_factor_that_is_there_leaves_less_to_the_other() -> None:
    net = model()
    fresh = starts(net)
    adapters.init_lora_(net, "pissa")
    found = starts(net)
    for layer in layers(net):
        assert moved(layer, "lora_B", found[layer.lora_B]) == pytest.approx(1.0, rel=SPREAD)
        assert moved(layer, "lora_A", found[layer.lora_A]) < 1.0
        assert found[layer.lora_A] != pytest.approx(fresh[layer.lora_A])


def test_roles_change_where_a_is_zero() -> None:
    net = model()
    layer = next(layers(net))
    with torch.no_grad():
        layer.lora_B.copy_(layer.lora_A.mT[: len(layer.lora_B)])
        layer.lora_A.zero_()
    found = starts(net)
    assert moved(layer, "lora_A", found[layer.lora_A]) == pytest.approx(1.0, rel=SPREAD)
    assert found[layer.lora_B] == pytest.approx(float(layer.lora_B.detach().square().mean()))


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_it_follows_the_units(factor: float) -> None:
    """A weight and its factors in other units: variances in their squares. A scale: B in the inverse of its square."""
    plain, other, scaled = model(), model(), model(alpha=6.0 * factor)
    for layer in layers(other):
        layer.base_layer.weight.data.mul_(factor)
    for one, two, three in zip(layers(plain), layers(other), layers(scaled), strict=True):
        two.lora_A.data.copy_(one.lora_A), three.lora_A.data.copy_(one.lora_A)
    before, after, then = starts(plain), starts(other), starts(scaled)
    for one, two, three in zip(layers(plain), layers(other), layers(scaled), strict=True):
        assert after[two.lora_B] == pytest.approx(factor**2 * before[one.lora_B])
        assert after[two.lora_A] == pytest.approx(before[one.lora_A])
        assert then[three.lora_B] == pytest.approx(before[one.lora_B] / factor**2)


@pytest.mark.parametrize("method", ["lora_xs", "lora_sb"])
def test_a_square_matrix(method: str) -> None:
    net = model()
    adapters.init_lora_(net, method, **data(method))
    found = starts(net)
    assert len(found) == 3
    for layer in layers(net):
        square = layer.lora_S
        assert square is not None
        p = found[square]
        drawn = p**0.5 * cases.gaussian(DRAWS, RANK * RANK, seed=5).double().view(DRAWS, RANK, RANK)
        product = layer.scaling * (layer.lora_B @ drawn @ layer.lora_A)
        ratio = product.detach().square().sum((-2, -1)).mean() / layer.base_layer.weight.square().sum()
        assert float(ratio) == pytest.approx(1.0, rel=SPREAD)


def test_numbers_between_the_factors() -> None:
    net = nn.Sequential(nn.Linear(16, 12).double())
    adapters.AdaLoRA(net, target_rank=2, total_steps=10)
    (pair,) = adapters.find_pairs(net)
    found, values = starts(net), pair.values
    assert values is not None
    drawn = found[values] ** 0.5 * cases.gaussian(DRAWS, values.numel(), seed=5).double()
    product = pair.scale * (pair.b * drawn[:, None]) @ pair.a
    ratio = product.detach().square().sum((-2, -1)).mean() / net[0].base_layer.weight.square().sum()
    assert float(ratio) == pytest.approx(1.0, rel=SPREAD)
    assert found[pair.a] == pytest.approx(float(pair.a.detach().square().mean()))


def test_what_has_no_size_starts_as_what_is_no_factor() -> None:
    net = model()
    layer = next(layers(net))
    layer.base_layer.weight.data.zero_()
    assert starts(net)[layer.lora_B] == P0
    layer.base_layer.weight = nn.Parameter(torch.zeros(12, 16, dtype=torch.uint8), requires_grad=False)
    size = 12 / (layer.scaling**2 * 12 * float(layer.lora_A.detach().square().sum()))
    assert starts(net)[layer.lora_B] == pytest.approx(size), "a quantized weight: rows of norm 1"
    assert starts(nn.Linear(3, 2)) == {}


def test_the_filter_starts_from_it_and_keeps_it() -> None:
    """Once: a start that was taken stays when the weights move, in a saved state too; process noise is its share."""
    torch.manual_seed(0)
    net = nn.Sequential(adapters.LoRALinear(nn.Linear(6, 8), 2), nn.Tanh(), nn.Linear(8, 3))
    own = starts(net)
    optimizer = adapters.LoKO(net, process_noise=0.5)
    x, y = cases.gaussian(4, 6, seed=1).float(), torch.tensor([0, 1, 2, 0])
    for _ in range(3):
        optimizer.step(net(x), y)
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            state = optimizer.state[parameter]
            assert state["p0"] == pytest.approx(own.get(parameter, P0)), name
            assert bool((state["variance"] <= state["p0"]).all() & (state["variance"] >= 0.5 * state["p0"]).all())
    other = adapters.LoKO(net, process_noise=0.5)
    other.load_state_dict(optimizer.state_dict())
    assert all(other.state[p]["p0"] == optimizer.state[p]["p0"] for p in optimizer.state)


def test_parameters_alone_know_no_factors() -> None:
    net = model(torch.float32)
    given = [p for p in net.parameters() if p.requires_grad]
    optimizer = adapters.LoKO(given)
    optimizer.step(net(cases.gaussian(2, 16, seed=1).float()), torch.tensor([0, 1]))
    assert {state["p0"] for state in optimizer.state.values()} == {P0}
    given = [{"params": [p], "p0": 0.1 + i} for i, p in enumerate(given)]
    optimizer = adapters.LoKO(given)
    optimizer.step(net(cases.gaussian(2, 16, seed=1).float()), torch.tensor([0, 1]))
    assert [state["p0"] for state in optimizer.state.values()] == [0.1 + i for i in range(len(given))]
