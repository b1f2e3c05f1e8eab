"""Adapters beside weights that bitsandbytes has quantized: PEFT's and ours, how they start and how they train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from lowrank_core import adapters
from testing import cases, machine, tolerance
from torch import Tensor, nn

bnb = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future

N, M, RANK = 64, 48, 4  # 48 outputs: no size that bitsandbytes' kernels for evaluation on a host take
KINDS: dict[str, Callable[[], nn.Module]] = {
    "nf4": lambda: bnb.nn.Linear4bit(N, M, compute_dtype=torch.float32, quant_type="nf4"),
    "fp4 in bfloat16": lambda: bnb.nn.Linear4bit(
        N, M, compute_dtype=torch.float32, quant_type="fp4", quant_storage=torch.bfloat16
    ),
    "int8": lambda: bnb.nn.Linear8bitLt(N, M, has_fp16_weights=False),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with machine.threads(1):
        yield


every_kind = pytest.mark.parametrize("kind", KINDS)


def net(kind: str) -> nn.Sequential:
    """Quantized layers around one that is not, without adapters."""
    torch.manual_seed(0)
    return nn.Sequential(KINDS[kind](), nn.Tanh(), nn.Linear(M, N), nn.Tanh(), KINDS[kind]()).to("cpu")


def adapted(kind: str) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = peft.get_peft_model(net(kind), peft.LoraConfig(r=RANK, target_modules=["0", "2", "4"]))
    return model


def inputs(seed: int = 0) -> Tensor:
    return cases.gaussian(16, N, seed=seed).float()


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    result: Tensor = (model(batch) - 0.5).square().mean()
    return result


def codes(model: nn.Module) -> list[Tensor]:
    quantized = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    held = [m.state_dict()["weight"] for m in model.modules() if isinstance(m, quantized)]
    return [weight.clone().view(torch.uint8) for weight in held]  # as bytes: read as numbers, some are NaN


def trained(model: nn.Module, optimizer: Any, steps: int = 8) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        found = loss(model, inputs())
        found.backward()
        optimizer.step()
        losses.append(float(found.detach()))
    return losses


def meaning(layer: nn.Module) -> Tensor:
    """[M, N] float64: what the layer multiplies with, as it acts."""
    zero = layer(torch.zeros(1, N)).detach().double()
    return (layer(torch.eye(N)).detach().double() - zero).mT


@every_kind
@pytest.mark.parametrize("evaluated", [False, True])  # on a host, the codes are ordered in another way then
def test_a_square_starts_between_singular_vectors_of_what_codes_mean(kind: str, evaluated: bool) -> None:
    if evaluated and kind != "int8":
        size = [128, 64]
        layer = bnb.nn.Linear4bit(*size, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        below: nn.Module = nn.Sequential(layer).to("cpu")
        model = peft.get_peft_model(below, peft.LoraConfig(r=RANK, target_modules=["0"]))
        whole = layer(torch.eye(128)).detach().double().mT
        with torch.no_grad():
            model.eval()(torch.ones(1, 128))
    else:
        model = adapted(kind)
        whole = meaning(model.base_model.model[0].base_layer)
    adapters.init_lora_(model, "lora_xs", oversample=64, niter=6)
    pair = adapters.find_pairs(model)[0]
    u, s, vh = torch.linalg.svd(whole)
    factor = model.base_model.model[0].lora_B["default"].outer.double()
    gap = float((s[:RANK] - s[1 : RANK + 1]).min())
    # int8 rounds what goes in as well; the other order holds the scales of the codes in bfloat16.
    unit = 2.0**-7 if kind == "int8" else tolerance.UNIT[torch.bfloat16 if evaluated else torch.float32] * 64
    bound = 8 * unit * float(s[0]) ** 2 / gap
    exact = (u[:, :RANK] * s[:RANK].square()) @ u[:, :RANK].mT
    assert float((factor @ factor.mT - exact).norm()) <= min(bound, 0.2 * float(exact.norm()))
    rows = pair.a_of(pair.a).double()
    assert float((rows.mT @ rows - vh[:RANK].mT @ vh[:RANK]).norm()) <= min(bound / float(s[0]), 0.3)


@every_kind
def test_a_square_starts_with_the_first_step_of_full_training(kind: str) -> None:
    model = adapted(kind)
    kept = codes(model)
    adapters.init_lora_(model, "lora_sb", batches=[inputs(1), inputs(2)], loss_fn=loss, eta=0.01)
    assert all(map(torch.equal, kept, codes(model)))
    # The same net with plain weights that are what the codes mean.
    plain = net(kind)
    for number in (0, 4):
        layer = nn.Linear(N, M)
        with torch.no_grad():
            layer.weight.copy_(meaning(plain[number]))
            layer.bias.copy_(plain[number].bias)
        plain[number] = layer
    other = peft.get_peft_model(plain, peft.LoraConfig(r=RANK, target_modules=["0", "2", "4"]))
    adapters.init_lora_(other, "lora_sb", batches=[inputs(1), inputs(2)], loss_fn=loss, eta=0.01)
    for one, two in zip(adapters.find_pairs(model), adapters.find_pairs(other), strict=True):
        held, exact = (p.scale * (p.b.detach() @ p.a.detach()).double() for p in (one, two))
        # Signs flip where a gradient is nearly 0: each moves one entry by twice the rate.
        flips = 0.15 if kind == "int8" else 0.01
        assert float((held - exact).norm()) <= 2 * 0.01 * (flips * held.numel()) ** 0.5
        assert float(exact.norm()) > 0.01 * held.numel() ** 0.5 / 2


@every_kind
@pytest.mark.parametrize("method", ["eva", "lora_xs", "lora_sb"])
def test_started_adapters_train_in_every_layer_and_codes_stay(kind: str, method: str) -> None:
    model = adapted(kind)
    keys: dict[str, Any] = {"std": 1e-2} if method == "lora_xs" else {"batches": [inputs(1)], "loss_fn": loss}
    adapters.init_lora_(model, method, **keys)
    kept = codes(model)
    params = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in params]
    losses = trained(model, torch.optim.AdamW(params, lr=1e-2, weight_decay=0.0))
    assert losses[-1] < losses[0]
    assert not any(map(torch.equal, before, params))
    assert all(map(torch.equal, kept, codes(model)))


@every_kind
@pytest.mark.parametrize("method", ["pissa", "olora", "lora_ga"])
def test_a_start_that_moves_the_weight_is_refused(kind: str, method: str) -> None:
    keys: dict[str, Any] = {"batches": [inputs()], "loss_fn": loss} if method == "lora_ga" else {}
    message = r'got a quantized weight \(\w+, \w+\) in base_model.model.0; start .* or by "eva", "lora_xs" or "lora_sb"'
    with pytest.raises(ValueError, match=message):
        adapters.init_lora_(adapted(kind), method, **keys)


LAYERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "LoRALinear": lambda base: adapters.LoRALinear(base, RANK),
    "AdaLoRALinear": lambda base: adapters.AdaLoRALinear(base, RANK),
    "USVLinear": lambda base: adapters.USVLinear(base, RANK),
}


@every_kind
@pytest.mark.parametrize("name", LAYERS)
def test_our_layers_start_as_their_base_and_are_not_merged_into_codes(kind: str, name: str) -> None:
    base = net(kind)[0]
    before = base(inputs()).detach()
    layer: Any = LAYERS[name](base)
    assert torch.equal(layer(inputs()), before)
    assert {p.dtype for p in layer.parameters() if p.requires_grad} == {torch.float32}
    kept = codes(layer)
    with pytest.raises(TypeError, match=r"merge: `base` must have a floating-point weight, got a quantized one"):
        layer.merge()
    assert all(map(torch.equal, kept, codes(layer)))


OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "GeoLoRA": lambda model: adapters.GeoLoRA(model, rank=RANK, lr=1e-2),
    "GeoLoRA by name": lambda model: adapters.GeoLoRA(model, target_modules="0|2|4", rank=RANK, lr=1e-2),
    "AdaLoRA": lambda model: adapters.AdaLoRA(model, init_rank=RANK, target_rank=2, total_steps=8, lr=3e-2),
}


@every_kind
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_layers_are_put_beside_quantized_ones_too(kind: str, name: str) -> None:
    model = net(kind)
    kept = codes(model)
    optimizer = OPTIMIZERS[name](model)
    assert optimizer.ranks().keys() == {"0", "2", "4"}
    losses = trained(model, optimizer)
    assert losses[-1] < losses[0]
    assert all(map(torch.equal, kept, codes(model)))
    assert all(rank > 0 for rank in optimizer.ranks().values())


@every_kind
def test_nothing_is_merged_where_one_weight_is_quantized(kind: str) -> None:
    model = net(kind)
    optimizer = adapters.GeoLoRA(model, rank=RANK, lr=1e-2)
    trained(model, optimizer, steps=2)
    before = model(inputs()).detach()
    with pytest.raises(TypeError, match="merge: `0` must have a floating-point weight, got a quantized one"):
        optimizer.merge(model)
    assert torch.equal(model(inputs()), before) and isinstance(model[2], adapters.USVLinear)


@every_kind
def test_a_square_beside_codes_is_saved_as_a_plain_adapter(kind: str, tmp_path: Path) -> None:
    model = adapted(kind)
    adapters.init_lora_(model, "lora_xs", std=1e-2)
    trained(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2), steps=2)
    model.save_pretrained(tmp_path)
    stock = peft.PeftModel.from_pretrained(net(kind), tmp_path)
    for one, two in zip(adapters.find_pairs(stock), adapters.find_pairs(model), strict=True):
        torch.testing.assert_close(one.b @ one.a, two.b @ two.a)


TUNED: dict[str, Callable[[nn.Module], Any]] = {
    "ScaledAdamW": lambda model: adapters.ScaledAdamW(model, lr=1e-2),
    "LoRAProAdamW": lambda model: adapters.LoRAProAdamW(model, lr=1e-2),
    "LoRAProAdamW full": lambda model: adapters.LoRAProAdamW(model, lr=1e-2, moments="full"),
    "ALLoRAAdamW": lambda model: adapters.ALLoRAAdamW(model, lr=1e-2),
    "LoKO": lambda model: adapters.LoKO(model, p0=0.1),
}


@pytest.mark.parametrize("name", TUNED)
def test_optimizers_step_adapters_beside_codes(name: str) -> None:
    model = adapted("nf4")
    kept = codes(model)
    losses = trained(model, TUNED[name](model))
    assert losses[-1] < losses[0]
    assert all(map(torch.equal, kept, codes(model)))
