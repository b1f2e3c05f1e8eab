"""EVA's redistribution of ranks: as PEFT's own, with scales that stay, and in files that stock PEFT loads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from integration_cases import batches, tiny_llama
from lowrank_core import adapters
from peft.tuners.lora import LoraLayer
from peft_cases import TARGETS, llama, logits
from testing import tolerance
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future

RANK = 3


def layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def started(rho: float = 2.0, **config: Any) -> Any:
    model = llama(**config)
    adapters.init_lora_(model, "eva", batches=list(batches(4, 3)), rho=rho, cosine=1.0, oversample=40)
    return model


def seen(model: nn.Module) -> dict[str, Tensor]:
    """All inputs of each adapted layer, [tokens, n] float64."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: found.setdefault(name, []).append(inputs[0].detach().flatten(0, -2).double())
        )
        for name, layer in layers(model).items()
    ]
    with torch.no_grad():
        for batch in batches(4, 3):
            model.eval()(**batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in found.items()}


def expected(model: nn.Module, rho: float) -> dict[str, int]:
    """By the plain statement: of all shares of variance the largest, at most rho r of a layer."""
    shares = []
    inputs = seen(model)
    for name, rows in inputs.items():
        values = torch.linalg.svdvals(rows).square()
        shares += [(float(v / values.sum()), name) for v in values[: round(rho * RANK)]]
    chosen = sorted(shares, key=lambda one: -one[0])[: RANK * len(inputs)]
    counts = Counter(name for _, name in chosen)
    return {name: counts[name] for name in inputs}


@pytest.mark.parametrize("rho", [1.5, 2.0, 3.0])
def test_the_largest_shares_of_all_layers_are_taken(rho: float) -> None:
    model, plain = started(rho), llama()
    ranks = {name: layer.r["default"] for name, layer in layers(model).items()}
    wanted = expected(plain, rho)
    # Queries and values of a layer have the same inputs, so which of them gets one more is not said by their shares.
    together = {name.replace("v_proj", "q_proj"): 0 for name in wanted}
    for found, sign in ((ranks, 1), (wanted, -1)):
        for name, rank in found.items():
            together[name.replace("v_proj", "q_proj")] += sign * rank
    assert not any(together.values())
    assert sum(ranks.values()) == RANK * len(wanted) and len(set(ranks.values())) > 1
    assert max(ranks.values()) <= round(rho * RANK)


def test_the_factors_are_the_leading_directions_at_their_new_ranks() -> None:
    model, inputs = started(), seen(llama())
    for name, layer in layers(model).items():
        a, b = layer.lora_A["default"], layer.lora_B["default"]
        rank = layer.r["default"]
        assert a.weight.shape == (rank, a.in_features) and a.out_features == rank == b.in_features
        assert b.weight.shape == (b.out_features, rank) and not b.weight.any()
        assert a.weight.requires_grad and b.weight.requires_grad
        s = torch.linalg.svdvals(inputs[name])
        kept = float((inputs[name] @ a.weight.detach().double().mT).square().sum())
        most = float(s[:rank].square().sum())
        assert most * (1 - 40 * tolerance.gamma(40, torch.float32)) <= kept <= most * (1 + 1e-5)


class Net(nn.Module):
    """Layers side by side, each of which sees its own multiples of the inputs."""

    scales: Tensor

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.side = nn.ModuleList(nn.Linear(12, 10) for _ in scales)
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        found = [layer(x * scale) for layer, scale in zip(self.side, self.scales, strict=True)]
        return torch.stack(found).sum(0)


# Of each layer but the last the four largest shares are larger than any of the last one.
DOMINATED = torch.tensor([[0.4, 0.3, 0.2, 0.1] + 8 * [0.0]] * 3 + [12 * [1 / 12]]).sqrt()


def equal_columns() -> Tensor:
    """Inputs whose directions explain equal shares."""
    return torch.linalg.qr(torch.randn(300, 12, generator=torch.Generator().manual_seed(7))).Q


def whole(model: nn.Module, batch: Tensor) -> Tensor:
    found: Tensor = model(batch).sum()
    return found


def test_ranks_are_those_of_pefts_own_where_inputs_have_no_mean() -> None:
    """PEFT subtracts the mean of what it has seen; with inputs and their negatives there is none."""

    def adapted(init: Any) -> Any:
        decays = torch.stack([decay ** torch.arange(12.0) for decay in (0.5, 0.8, 0.95)])
        config = peft.LoraConfig(
            r=RANK, target_modules=["0", "1", "2"], init_lora_weights=init,
            eva_config=peft.tuners.lora.config.EvaConfig(rho=2.0),
        )  # fmt: skip
        return peft.get_peft_model(Net(decays), config)

    half = torch.randn(200, 12, generator=torch.Generator().manual_seed(6))
    data = [torch.cat([half, -half])]
    theirs, ours = adapted("eva"), adapted(True)
    peft.initialize_lora_eva_weights(
        theirs, data, forward_fn=lambda model, x: model(x), prepare_model_inputs_fn=lambda x, config: None,
        prepare_layer_inputs_fn=lambda x, given, name: x[0] if isinstance(x, tuple) else x, show_progress_bar=False,
    )  # fmt: skip
    adapters.init_lora_(ours, "eva", batches=data, loss_fn=whole, rho=2.0)
    found = [{name: layer.r["default"] for name, layer in layers(model).items()} for model in (theirs, ours)]
    assert found[0] == found[1] and len(set(found[0].values())) > 1
    for one, other in zip(layers(theirs).values(), layers(ours).values(), strict=True):
        assert one.scaling == pytest.approx(other.scaling)


@pytest.mark.parametrize("rslora", [False, True])
def test_scales_stay_and_stock_peft_loads_what_is_saved(rslora: bool, tmp_path: Path) -> None:
    model = started(use_rslora=rslora)
    usual = llama(use_rslora=rslora)
    scales = {layer.scaling["default"] for layer in layers(usual).values()}
    assert len(scales) == 1
    for layer in layers(model).values():
        assert layer.scaling["default"] == scales.copy().pop()
    optimizer = adapters.ScaledAdamW(model, lr=1e-2)
    for batch in batches(2, 3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    stock = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path)
    kept = {name: layer.r["default"] for name, layer in layers(model).items()}
    assert {name: layer.r["default"] for name, layer in layers(stock).items()} == kept
    torch.testing.assert_close(logits(stock), logits(model))


def test_a_layer_without_a_share_loses_its_adapter(tmp_path: Path) -> None:
    x = equal_columns()
    plain = Net(DOMINATED)
    model = peft.get_peft_model(Net(DOMINATED), peft.LoraConfig(r=RANK, target_modules=["0", "1", "2", "3"]))
    adapters.init_lora_(model, "eva", batches=[x], loss_fn=whole, rho=2.0)
    ranks = {name.rpartition(".")[2]: layer.r["default"] for name, layer in layers(model).items()}
    assert ranks == {"0": 4, "1": 4, "2": 4}
    assert torch.equal(model(x), plain(x))
    model.save_pretrained(tmp_path)
    assert layers(peft.PeftModel.from_pretrained(plain, tmp_path)).keys() == layers(model).keys()


def test_our_layers_move_their_ranks_too() -> None:
    x = equal_columns()
    net = Net(DOMINATED)
    before = net(x).detach()
    net.side = nn.ModuleList(adapters.LoRALinear(layer, RANK, alpha=6) for layer in net.side)
    adapters.init_lora_(net, "eva", batches=[x], loss_fn=whole, rho=2.0)
    pairs = adapters.find_pairs(net)
    assert [(pair.name, pair.rank, pair.scale) for pair in pairs] == [(f"side.{i}", 4, 2.0) for i in range(3)]
    torch.testing.assert_close(net(x), before)
    whole(net, x).backward()
    assert all(pair.b.grad is not None and bool(pair.b.grad.any()) for pair in pairs)


def test_of_two_adapters_only_the_named_one_changes() -> None:
    model = llama()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=TARGETS))
    adapters.init_lora_(model, "eva", batches=list(batches(4, 3)), rho=20.0, adapter="default")
    for layer in layers(model).values():
        assert layer.r["other"] == 2
    assert len({layer.r.get("default", 0) for layer in layers(model).values()}) > 1
    assert not model.peft_config["other"].rank_pattern


def test_a_part_of_a_model_has_no_configuration_to_change() -> None:
    model = llama()
    part = model.base_model.model.model
    ranks = {name: layer.r["default"] for name, layer in layers(model).items()}
    with pytest.raises(ValueError, match="`model` must have PEFT's configuration of 'default' where ranks move"):
        adapters.init_lora_(
            part, "eva", batches=list(batches(4, 3)), loss_fn=lambda net, x: net(x["input_ids"]), rho=2.0
        )
    assert ranks == {name: layer.r["default"] for name, layer in layers(model).items()}


@pytest.mark.parametrize("rho", [0.5, float("nan"), "2"])
def test_values_out_of_range_are_refused(rho: Any) -> None:
    with pytest.raises(ValueError, match="`rho` must be a number >= 1"):
        adapters.init_lora_(llama(), "eva", batches=list(batches(1, 3)), rho=rho)
