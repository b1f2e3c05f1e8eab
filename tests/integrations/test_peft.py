"""PEFT: a model whose adapters train and whose base is frozen, all of its parameters handed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from integration_cases import batches, tiny_llama
from lowrank_core.optim import GaLoreAdamW, param_groups
from peft import LoraConfig, PeftModel, get_peft_model

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future


def adapted(**config: Any) -> Any:
    torch.manual_seed(11)
    return get_peft_model(tiny_llama(), LoraConfig(r=6, target_modules=["q_proj", "v_proj", "up_proj"], **config))


def train(model: Any, optimizer: GaLoreAdamW, count: int) -> list[float]:
    losses = []
    for batch in batches(count, 8):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("groups", ["all parameters", "param_groups"])
@pytest.mark.parametrize(
    "config", [{}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"bias": "lora_only"}], ids=str
)
def test_adapters_train_and_the_base_keeps_its_bits(config: dict[str, Any], groups: str, tmp_path: Path) -> None:
    model = adapted(**config)
    base = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    if groups == "all parameters":
        optimizer = GaLoreAdamW(model.named_parameters(), lr=0.05, rank=2, scale=1.0, update_proj_gap=4)
    else:
        optimizer = GaLoreAdamW(param_groups(model, rank=2, scale=1.0, update_proj_gap=4, verbose=False), lr=0.05)
    losses = train(model, optimizer, 12)
    assert sum(losses[-3:]) < sum(losses[:3])
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p in optimizer.state, name
        else:
            assert p not in optimizer.state and torch.equal(p, base[name]), name
    projected = {row.name for row in optimizer.projections() if row.refreshes}
    assert projected and all("lora_" in name or "modules_to_save" in name for name in projected)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(tiny_llama(), str(tmp_path))
    batch = next(batches(1, 4))
    assert torch.equal(model.eval()(**batch).logits, again.eval()(**batch).logits)
