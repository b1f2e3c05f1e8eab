"""Optimizers of adapters in a Trainer: three steps, saved after two, and resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from integration_cases import examples, tiny_llama
from lowrank_core import adapters
from lowrank_core.integrations.transformers import trainer_optimizer
from lowrank_core.optim import GaLoreAdamW
from test_trainer import StopAt, arguments, losses
from torch import nn
from transformers import Trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future

TARGETS = ["q_proj", "v_proj"]
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "ScaledAdamW": (adapters.ScaledAdamW, {"weight_decay": 0.1}),
    "LoRAProAdamW": (adapters.LoRAProAdamW, {}),
    "LoRAProAdamW full": (adapters.LoRAProAdamW, {"moments": "full", "moment_dtype": "bfloat16"}),
    "ALLoRAAdamW": (adapters.ALLoRAAdamW, {}),
    "LoKO": (adapters.LoKO, {}),
    "GeoLoRA": (adapters.GeoLoRA, {"target_modules": TARGETS, "rank": 2}),
    "AdaLoRA": (adapters.AdaLoRA, {"target_modules": TARGETS, "init_rank": 3, "target_rank": 1, "total_steps": 3}),
    "LoRA+": (adapters.ScaledAdamW, {"ratio": 4.0}),
    "LoRA+ of torch": (torch.optim.AdamW, {"ratio": 4.0}),
}


def started(name: str) -> nn.Module:
    torch.manual_seed(11)
    if name in ("GeoLoRA", "AdaLoRA"):
        model: nn.Module = tiny_llama()
        return model
    return peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=3, target_modules=TARGETS))


def make(folder: Path, name: str) -> Trainer:
    cls, keys = CASES[name]
    model, given = started(name), {"lr": 0.02, **keys}
    if (ratio := given.pop("ratio", None)) is not None:
        given["params"] = adapters.loraplus_param_groups(model, given.pop("lr"), ratio)
    made = (cls, given) if cls is torch.optim.AdamW else trainer_optimizer(model, cls, verbose=False, **given)
    data = examples(64)
    return Trainer(
        model, arguments(folder, max_steps=3, save_steps=2), train_dataset=data, optimizer_cls_and_kwargs=made
    )


@pytest.mark.parametrize("name", CASES)
def test_adapters_train_and_resume_to_the_bit(name: str, tmp_path: Path) -> None:
    whole, broken = make(tmp_path / "whole", name), make(tmp_path / "broken", name)
    before = {key: p.detach().clone() for key, p in whole.model.named_parameters() if p.requires_grad}
    whole.train()
    assert type(whole.optimizer.optimizer) is CASES[name][0]
    moved = {key for key, p in whole.model.named_parameters() if p.requires_grad and not torch.equal(p, before[key])}
    # Some values of AdaLoRA are 0 again; LoKO moves A by less than its rounding while B is small.
    assert moved == before.keys() or (moved and name in ("AdaLoRA", "LoKO"))
    broken.add_callback(StopAt(2))
    broken.train()
    resumed = make(tmp_path / "broken", name)
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-2"))
    for (path, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), path
    assert losses(resumed)[2:] == losses(whole)[2:] and len(losses(whole)) == 3


def test_matrices_are_decayed_and_vectors_not() -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=3, target_modules=TARGETS, use_dora=True))
    made, rest = trainer_optimizer(model, adapters.ScaledAdamW, lr=0.02, weight_decay=0.1, verbose=False)
    optimizer: Any = made(model, **rest)
    assert {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]} == {
        2: 0.1, 1: 0.0,
    }  # fmt: skip
    assert all("lora" in row.name for row in optimizer.plan())


@pytest.mark.parametrize(
    ("cls", "keys", "error", "message"),
    [
        (adapters.ScaledAdamW, {"reg": 0}, ValueError, "ScaledAdamW: `reg` must be a number > 0, got 0"),
        (adapters.ScaledAdamW, {"rank": 4}, TypeError, "ScaledAdamW: `rank` must be one of its keys"),
        (adapters.LoKO, {"weight_decay": 0.1}, TypeError, "weight_decay"),
        (GaLoreAdamW, {"gap": 3}, TypeError, "`gap` must be one of its keys"),
    ],
)
def test_what_the_class_refuses_is_refused_before_the_trainer(
    cls: Any, keys: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        trainer_optimizer(started("ScaledAdamW"), cls, verbose=False, **keys)
