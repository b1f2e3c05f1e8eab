"""Merged and extracted adapters in stock PEFT, and adapters whose weights moved as plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from integration_cases import batches, tiny_llama
from lowrank_core import adapters
from peft_cases import TARGETS, Net, close, llama, logits
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future


def random_adapter(model: nn.Module, seed: int, **config: Any) -> tuple[dict[str, Tensor], peft.LoraConfig]:
    torch.manual_seed(seed)
    lora = peft.LoraConfig(init_lora_weights=False, **config)
    adapted = peft.get_peft_model(model, lora)
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.mul_(0.3)
    return peft.get_peft_model_state_dict(adapted), lora


def delta(model: Any) -> dict[str, Tensor]:
    """What the active adapter adds to each weight."""
    found = {}
    for pair in adapters.find_pairs(model):
        product = pair.scale * pair.b_of(pair.b) @ pair.a_of(pair.a)
        found[pair.name] = product.detach().mT if pair.embedding else product.detach()
    return found


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_merger_in_stock_peft_adds_the_weighted_sum(bfloat16: bool, tmp_path: Path) -> None:
    """Over embeddings, convolutions and linear layers, with ranks, alphas and targets of their own."""
    configs: list[dict[str, Any]] = [
        {"r": 2, "lora_alpha": 8, "target_modules": ["embed", "conv", "head"]},
        {"r": 1, "lora_alpha": 3, "target_modules": ["head", "conv"], "use_rslora": True},
        {"r": 2, "lora_alpha": 1, "target_modules": ["head"], "alpha_pattern": {"head": 4}},
    ]
    weights, expected, pairs = [0.5, -1.5, 2.0], {}, []
    for seed, (config, weight) in enumerate(zip(configs, weights, strict=True)):
        state, lora = random_adapter(Net(), seed, **config)
        if bfloat16:
            state = {key: x.bfloat16() for key, x in state.items()}
        adapters.save_adapter(tmp_path / str(seed), state, lora.to_dict())
        pairs.append(adapters.read_adapter(tmp_path / str(seed)) if seed else (state, lora))
        stock = peft.PeftModel.from_pretrained(fresh(), tmp_path / str(seed))
        for name, product in delta(stock).items():
            expected[name] = expected.get(name, 0) + weight * product
    state, config = adapters.merge_adapters(pairs, weights, rank=5)
    adapters.save_adapter(tmp_path / "merged", state, config)
    stock = peft.PeftModel.from_pretrained(fresh(), tmp_path / "merged")
    found = delta(stock)
    assert found.keys() == expected.keys() and len(found) == 3
    for name, product in found.items():
        close(product, expected[name])


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def test_a_merger_cut_to_a_rank_is_closest(tmp_path: Path) -> None:
    both = [random_adapter(tiny_llama(), seed, r=4, lora_alpha=4, target_modules=TARGETS) for seed in (0, 1)]
    state, config = adapters.merge_adapters(both, [1.0, 1.0], rank=3)
    for key in (key for key in state if ".lora_B." in key):
        other = key.replace(".lora_B.", ".lora_A.")
        total = sum(one[key].double() @ one[other].double() for one, _ in both)
        assert isinstance(total, Tensor)
        u, s, vh = torch.linalg.svd(total)
        close(state[key].double() @ state[other].double(), (u[:, :3] * s[:3]) @ vh[:3], float(s[0] / (s[2] - s[3])))
    made = peft.get_peft_model(tiny_llama(), peft.LoraConfig(**config))
    loaded = peft.set_peft_model_state_dict(made, state)
    assert not loaded.unexpected_keys and not [key for key in loaded.missing_keys if "lora" in key]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_extracted_makes_the_base_the_tuned_model(dtype: torch.dtype, tmp_path: Path) -> None:
    base = tiny_llama(dtype)
    source = {key: x.clone() for key, x in base.state_dict().items()}
    torch.manual_seed(4)
    tuned = dict(source)
    for key in [key for key in source if key.endswith(("q_proj.weight", "down_proj.weight"))]:
        m, n = source[key].shape
        tuned[key] = (source[key] + 0.1 * torch.randn(m, 2) @ torch.randn(2, n)).to(dtype)
    rank = 2 if dtype == torch.float32 else 16  # the rounding of bfloat16 has every rank
    state, config = adapters.extract_lora(source, tuned, rank)
    assert len(state) == 8
    adapters.save_adapter(tmp_path, state, config)
    stock = peft.PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=True)
    for pair in adapters.find_pairs(stock):
        key = pair.name.removeprefix("base_model.model.") + ".weight"
        close((pair.scale * pair.b @ pair.a).detach(), (tuned[key].float() - source[key].float()), 4.0)


@pytest.mark.parametrize(
    ("module", "keys"),
    [
        ("embed", {"embeddings": ["embed"]}),
        ("up", {"fan_in_fan_out": True, "target_modules": ["up"]}),
        ("head", {"target_modules": ["head"]}),
    ],
)
def test_what_is_extracted_of_other_layers_acts_on_them(module: str, keys: dict[str, Any], tmp_path: Path) -> None:
    source = fresh().state_dict()
    change = torch.randn(source[f"{module}.weight"].shape, generator=torch.Generator().manual_seed(6))
    tuned = {**source, f"{module}.weight": source[f"{module}.weight"] + change}
    rank = min(change.shape)
    state, config = adapters.extract_lora(source, tuned, rank, **keys)
    assert config["fan_in_fan_out"] == (module == "up")  # which PEFT else corrects, with a warning
    adapters.save_adapter(tmp_path, state, config)
    stock = peft.PeftModel.from_pretrained(fresh(), tmp_path)
    expected = fresh()
    expected.load_state_dict(tuned)
    x = torch.arange(11).view(1, 11)
    close(stock(x).detach(), expected(x).detach())
    assert not torch.allclose(stock(x), fresh()(x))


@pytest.mark.parametrize("method", ["pissa", "olora", "lora_ga"])
def test_an_adapter_whose_weights_moved_becomes_a_plain_one(method: str, tmp_path: Path) -> None:
    """Trained minus started, of twice the rank, belongs to the weights of before."""
    model = llama()
    adapters.init_lora_(model, method, **({"batches": list(batches(2, 3))} if method == "lora_ga" else {}))
    model.save_pretrained(tmp_path / "start")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for batch in batches(2, 3):
        model(**batch).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    files = [adapters.read_adapter(tmp_path / name) for name in ("trained", "start")]
    state, config = adapters.merge_adapters(files, [1.0, -1.0], rank=6)
    adapters.save_adapter(tmp_path / "plain", state, config)
    close(logits(peft.PeftModel.from_pretrained(tiny_llama(), tmp_path / "plain")), logits(model))
