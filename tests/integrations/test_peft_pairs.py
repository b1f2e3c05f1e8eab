"""Where the factors of PEFT's adapters are, and that a product of each pair is what its layer adds."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from integration_cases import tiny_llama
from lowrank_core import adapters
from peft.optimizers import create_riemannian_optimizer
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(11, 6), nn.Conv1d(6, 8, 3, padding=1)
        self.up, self.head = nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.head(self.up(self.conv(self.embed(x).mT).mT))
        return mixed


def wrapped(**config: Any) -> nn.Module:
    torch.manual_seed(0)
    keys = {"r": 2, "lora_alpha": 6, "target_modules": ["embed", "conv", "up"], "init_lora_weights": False, **config}
    model: nn.Module = peft.get_peft_model(Net(), peft.LoraConfig(**keys))
    return model


def test_embedding_convolution_and_linear_layers_are_pairs() -> None:
    found = {pair.name.rpartition(".")[2]: pair for pair in adapters.find_pairs(wrapped(modules_to_save=["head"]))}
    assert {name: (pair.rank, pair.scale, pair.embedding) for name, pair in found.items()} == {
        "embed": (2, 3.0, True), "conv": (2, 3.0, False), "up": (2, 3.0, False),
    }  # fmt: skip
    shapes = {name: (tuple(p.a_of(p.a).shape), tuple(p.b_of(p.b).shape)) for name, p in found.items()}
    assert shapes == {"embed": ((2, 11), (6, 2)), "conv": ((2, 18), (8, 2)), "up": ((2, 8), (7, 2))}


def test_what_is_merged_is_the_product_of_the_pair() -> None:
    model = wrapped().double()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "base_layer.weight" in name}
    products = {pair.name: pair.scale * pair.b_of(pair.b) @ pair.a_of(pair.a) for pair in adapters.find_pairs(model)}
    model.merge_adapter()
    after = dict(model.named_parameters())
    for name, product in products.items():
        key = f"{name}.base_layer.weight"
        added = (after[key] - before[key]).flatten(1)
        torch.testing.assert_close(added.mT if name.endswith("embed") else added, product)


def test_the_active_adapter_counts_or_the_one_that_is_named() -> None:
    model = wrapped(target_modules=["up"])
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["up"]))
    assert [(p.adapter, p.rank) for p in adapters.find_pairs(model)] == [("default", 2)]
    assert [(p.adapter, p.rank) for p in adapters.find_pairs(model, adapter="other")] == [("other", 3)]
    model.set_adapter("other")
    assert [(p.adapter, p.rank) for p in adapters.find_pairs(model)] == [("other", 3)]
    assert adapters.find_pairs(model, adapter="none") == []


def test_dora_and_adalora_are_found() -> None:
    assert len(adapters.find_pairs(wrapped(use_dora=True, target_modules=["up"]))) == 1
    config = peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10, target_modules=["up"])
    (pair,) = adapters.find_pairs(peft.get_peft_model(Net(), config))
    assert pair.rank == 3 and pair.values is not None and tuple(pair.values.shape) == (3, 1)


def test_tuners_without_factors_have_no_pairs() -> None:
    model = peft.get_peft_model(Net(), peft.IA3Config(target_modules=["up"], feedforward_modules=[]))
    assert adapters.find_pairs(model) == []


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5, 4))  # [experts, in, out] to PEFT

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,eio->bo", x, self.weight)


def test_each_expert_of_a_stack_is_a_pair() -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_parameters=["0.weight"], init_lora_weights=False)
    model = peft.get_peft_model(nn.Sequential(Experts()), config)
    found = adapters.find_pairs(model)
    assert [pair.expert for pair in found] == [(0, 3), (1, 3), (2, 3)] and {pair.rank for pair in found} == {2}
    module: Any = found[0].module
    delta = module.get_delta_weight("default")
    for pair in found:
        product = pair.scale * pair.b_of(pair.b) @ pair.a_of(pair.a)
        expected = delta[pair.expert[0]] if pair.expert else delta
        torch.testing.assert_close(product if product.shape == expected.shape else product.mT, expected)


def test_scaled_adamw_steps_as_pefts_own() -> None:
    results = []
    for ours in (True, False):
        torch.manual_seed(3)
        model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        keys: dict[str, Any] = {"lr": 1e-2, "reg": 1e-2}
        if ours:
            optimizer: torch.optim.Optimizer = adapters.ScaledAdamW(model, **keys)
        else:
            optimizer = create_riemannian_optimizer(model, torch.optim.AdamW, weight_decay=0.0, **keys)
        tokens = torch.arange(16).view(2, 8)
        for _ in range(5):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append([p.detach() for p in model.parameters() if p.requires_grad])
    for one, other in zip(*results, strict=True):
        # A step moves each entry by about lr; Adam's quotient has the relative error of the two solves.
        torch.testing.assert_close(one, other, rtol=0, atol=5 * 1e-2 * 1e-4)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_gradients_stay_and_what_is_not_finite_changes_nothing(nonfinite: str) -> None:
    model = wrapped(target_modules=["up"])
    optimizer = adapters.ScaledAdamW(model, lr=1e-2, nonfinite=nonfinite)
    model(torch.arange(4).view(1, 4)).square().mean().backward()
    (pair,) = adapters.find_pairs(model)
    kept = pair.a.grad.clone()  # type: ignore[union-attr]
    optimizer.step()
    assert torch.equal(kept, pair.a.grad)  # type: ignore[arg-type]
    before = [p.detach().clone() for p in model.parameters()]
    pair.b.grad[0, 0] = torch.nan  # type: ignore[index]
    if nonfinite == "raise":
        with pytest.raises(RuntimeError, match="must be finite"):
            optimizer.step()
    else:
        optimizer.step()
        assert optimizer.skipped_steps == 1
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_adalora_steps_and_chooses_as_pefts_own() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3))
    keys = {"init_r": 4, "target_r": 2, "tinit": 3, "tfinal": 6, "deltaT": 2, "total_step": 30}
    theirs = peft.get_peft_model(net, peft.AdaLoraConfig(target_modules=["0", "2"], **keys))
    ours = copy.deepcopy(theirs)
    adam = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], 1e-2, weight_decay=0.0)
    adalora = adapters.AdaLoRA(ours, target_rank=2, total_steps=30, t_init=3, t_final=6, gap=2, lr=1e-2)
    chosen = []
    for step in range(1, 24):
        x = torch.randn(16, 12)
        for model, optimizer in ((theirs, adam), (ours, adalora)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
            optimizer.step()
        theirs.base_model.update_and_allocate(step)  # while the gradients are there
        chosen.append(sum(adalora.ranks().values()))
        for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
            assert torch.equal(one, other)
    assert min(chosen) == 4 and max(chosen) == 8
