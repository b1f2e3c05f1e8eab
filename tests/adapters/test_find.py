"""Where the factors of adapters are found, and what is refused."""

from __future__ import annotations

import pytest
import torch
from lowrank_core import adapters
from lowrank_core.adapters.find import require_pairs
from torch import nn


def small() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    model[1] = adapters.LoRALinear(model[1], rank=2, alpha=6)
    return model


def test_a_layer_of_this_package_is_one_pair() -> None:
    model = small()
    (pair,) = adapters.find_pairs(model)
    assert (pair.name, pair.rank, pair.scale, pair.trained) == ("1", 2, 3.0, True)
    assert pair.a is model[1].lora_A and pair.b is model[1].lora_B and pair.module is model[1]


def test_the_product_of_a_pair_is_what_the_layer_adds() -> None:
    model = small()
    (pair,) = adapters.find_pairs(model)
    with torch.no_grad():
        pair.b.normal_()
    x = torch.randn(3, 5)
    added = model[1](x) - nn.functional.linear(x, model[1].base_layer.weight, model[1].base_layer.bias)
    torch.testing.assert_close(added, pair.scale * x @ (pair.b_of(pair.b) @ pair.a_of(pair.a)).mT)


def test_scale_is_read_when_it_is_asked_for() -> None:
    model = small()
    (pair,) = adapters.find_pairs(model)
    model[1].scaling = 0.25
    assert pair.scale == 0.25


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B"])
def test_a_frozen_factor_is_found_but_not_required(frozen: str) -> None:
    model = small()
    getattr(model[1], frozen).requires_grad_(False)
    (pair,) = adapters.find_pairs(model)
    assert not pair.trained
    with pytest.raises(ValueError, match="`model` must train both factors of an adapter, got frozen ones alone"):
        require_pairs("op", model)
    assert len(require_pairs("op", model, trained=False)) == 1


def test_what_has_no_adapters_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"^op: `model` must have low-rank adapters"):
        require_pairs("op", nn.Linear(3, 2))
    with pytest.raises(TypeError, match=r"^op: `model` must be a torch.nn.Module, got Parameter"):
        require_pairs("op", nn.Parameter(torch.zeros(2)))
    with pytest.raises(TypeError, match=r"^find_pairs: `model` must be a torch.nn.Module, got list"):
        adapters.find_pairs([])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rank": 0}, "`rank` must be an int from 1 to 4, got 0"),
        ({"rank": 5}, "`rank` must be an int from 1 to 4, got 5"),
        ({"rank": 2, "alpha": 0}, "`alpha` must be a number apart from 0, or None, got 0"),
        ({"rank": 2, "alpha": float("nan")}, "`alpha` must be a number apart from 0, or None, got nan"),
    ],
)
def test_values_out_of_range_are_refused(keys: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapters.LoRALinear(nn.Linear(5, 4), **keys)


def test_only_linear_layers_can_be_wrapped() -> None:
    with pytest.raises(TypeError, match=r"`base` must be a torch.nn.Linear, got Embedding"):
        adapters.LoRALinear(nn.Embedding(5, 4), rank=2)


def test_a_layer_starts_as_its_base_and_trains_its_factors_alone() -> None:
    base = nn.Linear(6, 4)
    x = torch.randn(3, 6)
    before = base(x)
    layer = adapters.LoRALinear(base, rank=2)
    torch.testing.assert_close(layer(x), before)
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    assert layer.lora_A.detach().abs().max() <= 6**-0.5  # torch.nn.Linear's own bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_merged_weights_act_as_the_layer(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    layer = adapters.LoRALinear(nn.Linear(6, 4).to(dtype), rank=2, alpha=1)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 6, dtype=dtype)
    with torch.no_grad():
        before, merged = layer(x), layer.merge()
        exact = merged.weight.double() @ x.double().mT
    assert isinstance(merged, nn.Linear)
    rounding = torch.finfo(dtype).eps * (x.double().abs() @ merged.weight.double().abs().mT + 1).max()
    assert (before.double() - exact.mT - merged.bias.double()).abs().max() <= 6 * rounding
