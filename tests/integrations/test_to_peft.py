"""Adapters of this package as plain LoRA: stock PEFT loads them, and merging them gives the same model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
from integration_cases import batches, tiny_llama
from lowrank_core import adapters
from peft_cases import TARGETS, close, logits

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "geolora": (adapters.GeoLoRA, {"rank": 2, "max_rank": 5, "min_rank": 1, "tol": 0.3, "scale": 2.0}),
    "adalora": (adapters.AdaLoRA, {"init_rank": 3, "target_rank": 1, "total_steps": 4, "alpha": 6}),
}


def trained(name: str, **more: Any) -> tuple[Any, Any]:
    cls, keys = CASES[name]
    model = tiny_llama()
    optimizer = cls(model, target_modules=TARGETS, lr=0.05, **keys, **more)
    for batch in batches(4, 3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("saved", [(), ("norm",)])
@pytest.mark.parametrize("name", CASES)
def test_stock_peft_gives_the_same_outputs(name: str, saved: tuple[str, ...], tmp_path: Path) -> None:
    model, optimizer = trained(name, modules_to_save=saved)
    ranks = set(optimizer.ranks().values())
    assert len(ranks) > 1
    adapters.save_adapter(tmp_path, *adapters.to_peft(model, modules_to_save=saved, task_type="CAUSAL_LM"))
    stock = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert stock.active_peft_config.r == max(ranks) and stock.active_peft_config.task_type == "CAUSAL_LM"
    expected, start = logits(model), logits(tiny_llama())
    close(logits(stock), expected)
    assert float((expected - start).abs().max()) > 100 * float((logits(stock) - expected).abs().max())
    close(logits(stock.merge_and_unload()), expected)


@pytest.mark.parametrize("name", CASES)
def test_merging_takes_the_layers_out(name: str) -> None:
    model, optimizer = trained(name)
    expected, twin = logits(model), copy.deepcopy((model, optimizer))
    assert optimizer.merge() is model and not adapters.find_pairs(model)
    assert not any(isinstance(m, adapters.USVLinear | adapters.AdaLoRALinear) for m in model.modules())
    close(logits(model), expected)
    with pytest.raises(ValueError, match="merge: `model` must be given to an optimizer that was copied"):
        twin[1].merge()
    close(logits(twin[1].merge(twin[0])), expected)


def test_refusals() -> None:
    model, _ = trained("geolora", modules_to_save=("norm",))
    with pytest.raises(
        ValueError,
        match=r"`modules_to_save` must have all that is trained .*, got nothing for `model.layers.0.in.*norm.weight`",
    ):
        adapters.to_peft(model)
    with pytest.raises(ValueError, match="to_peft: `model` must have adapters of this package, got 'LlamaForCausalLM'"):
        adapters.to_peft(tiny_llama())
    with pytest.raises(ValueError, match="to_peft: `rank` must be an int >= 1 or None, got 0"):
        adapters.to_peft(model, rank=0)
    other = peft.get_peft_model(tiny_llama(), peft.AdaLoraConfig(total_step=10, target_modules=TARGETS))
    with pytest.raises(ValueError, match="merge: `model` must have layers of this package, got PEFT's in `base_model"):
        adapters.AdaLoRA(other, total_steps=10).merge()
