"""What a start refuses, by a sentence, and that nothing has changed then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowrank_core import adapters
from start_cases import RANK, batches, data, layers, loss, model
from torch import Tensor, nn


def refused(net: nn.Module, match: str, method: str = "pissa", **keys: Any) -> None:
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    required = [p.requires_grad for p in net.parameters()]
    with pytest.raises(ValueError, match=match):
        adapters.init_lora_(net, method, **keys)
    after = dict(net.named_parameters())
    assert after.keys() == before.keys() and required == [p.requires_grad for p in net.parameters()]
    for name, old in before.items():
        assert torch.equal(old.nan_to_num(7.0), after[name].detach().nan_to_num(7.0))


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"method": "lora"}, r"^init_lora_: `method` must be one of pissa, .*, got 'lora'"),
        ({"seed": -1}, "`seed` must be an int, 0 <= seed < 2\\*\\*63, got -1"),
        ({"niter": 1.5}, "`niter` must be an int >= 0, got 1.5"),
        ({"oversample": -1}, "`oversample` must be an int >= 0, got -1"),
        ({"gamma": 0.0}, "`gamma` must be a number > 0, got 0.0"),
        ({"eta": float("nan")}, "`eta` must be a number > 0, got nan"),
        ({"std": -1.0}, "`std` must be a number >= 0, got -1.0"),
        ({"cosine": 1.5}, "`cosine` must be a number from 0 to 1, got 1.5"),
        ({"at_once": 0}, "`at_once` must be an int >= 1, or None, got 0"),
        ({"adapter": "other", "method": "pissa"}, "`model` must suit|`model` must have"),
    ],
)
def test_values_out_of_range(keys: dict[str, Any], match: str) -> None:
    if "adapter" in keys:  # a model of PEFT's has names; one without adapters at all is the same sentence
        refused(nn.Sequential(nn.Linear(3, 2)), match, **keys)
    else:
        refused(model(), match, **keys)


@pytest.mark.parametrize("method", ["lora_ga", "lora_sb", "eva"])
def test_missing_batches(method: str) -> None:
    refused(model(), f'`batches` must be given for method "{method}", got None; give a few', method)
    refused(model(), "`batches` must have a batch or more, got none", method, batches=[], loss_fn=loss)


def test_a_model_without_adapters_or_no_model() -> None:
    refused(nn.Linear(3, 2), "`model` must have low-rank adapters, got one without; put them in place by")
    with pytest.raises(TypeError, match=r"^init_lora_: `model` must be a torch.nn.Module, got list"):
        adapters.init_lora_([])  # type: ignore[arg-type]


def test_ranks_that_the_weight_does_not_have() -> None:
    refused(
        model(rank=7), 'suit method "lora_ga", got rank 7 in 0; it must be at most 6 here', "lora_ga", **data("lora_ga")
    )
    net = nn.Sequential(adapters.LoRALinear(nn.Linear(4, 3), rank=3))
    net[0].lora_A, net[0].lora_B = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(3, 4))
    refused(net, 'suit method "pissa", got rank 4 in 0; it must be at most 3 here')


@pytest.mark.parametrize("method", ["pissa", "olora", "lora_xs"])
def test_a_weight_that_is_not_finite_is_named(method: str) -> None:
    net = model()
    with torch.no_grad():
        net[2].base_layer.weight[0, 0] = torch.nan
    refused(net, "`model` must have finite weights, got NaN or infinity in 2", method)


@pytest.mark.parametrize(("method", "what"), [("lora_ga", "gradients"), ("lora_sb", "gradients"), ("eva", "inputs")])
def test_data_that_are_not_finite(method: str, what: str) -> None:
    bad = batches()
    bad[1][0, 0] = torch.inf
    net = model()
    refused(net, f"`model` must have finite {what}", method, batches=bad, loss_fn=loss)
    assert all(layer.scaling == 2.0 for layer in layers(net))


class Params4bit(nn.Parameter):
    """Stands for that of bitsandbytes."""


def test_quantized_weights_are_refused_where_they_are_looked_at() -> None:
    net = model()
    codes = nn.Parameter(net[1].base_layer.weight.detach().to(torch.int8), requires_grad=False)
    net[1].base_layer.weight = codes
    refused(net, r'suit method "pissa", got a quantized weight \(Parameter, int8\) in 1; start before it is quantized')
    net = model()
    net[1].base_layer.weight = Params4bit(net[1].base_layer.weight.detach(), requires_grad=False)
    for method in ("pissa", "olora", "lora_ga", "lora_sb", "lora_xs"):
        refused(net, r"got a quantized weight \(Params4bit, float64\) in 1", method, **data(method))
    adapters.init_lora_(net, "eva", **data("eva"))


def test_a_weight_that_others_share() -> None:
    net = model()
    net[2].base_layer.weight = net[0].base_layer.weight
    refused(net, "got a weight that other modules share in 0; untie it", "pissa")
    adapters.init_lora_(net, "lora_xs")
    refused(net, "got a square matrix between the factors in 0; call `fold_square_` first", "lora_xs")


def test_losses_and_layers_that_do_not_fit() -> None:
    def many(net: nn.Module, batch: Tensor) -> Tensor:
        result: Tensor = net(batch)
        return result

    refused(
        model(), "`loss_fn` must return a loss of one number, got Tensor", "lora_ga", batches=batches(), loss_fn=many
    )
    unused = nn.ModuleList([*model(), *model()])

    def partly(net: nn.Module, batch: Tensor) -> Tensor:
        layers = list(net.children())
        return loss(nn.Sequential(*layers[:3]), batch)

    keys: dict[str, Any] = {"batches": batches(), "loss_fn": partly}
    refused(unused, "`batches` must reach every adapted layer, got no gradient for 3", "lora_sb", **keys)
    refused(unused, f"`batches` must have at least {RANK} tokens for 3, got 0; give more", "eva", **keys)
    with pytest.raises(TypeError, match=r"`batches` must be dicts of arguments of `model`, got Tensor; give `loss_fn"):
        adapters.init_lora_(model(), "eva", batches=batches())


@pytest.mark.parametrize("keys", [{"batches": 5}, {"batches": [1], "loss_fn": "mean"}])
def test_what_is_no_list_or_no_function(keys: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"^init_lora_: `(batches|loss_fn)` must be a .*, got (int|str)$"):
        adapters.init_lora_(model(), "eva", **keys)
