"""From a Trainer's checkpoint of another optimizer to one of this package, as the guide has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from integration_cases import examples, tiny_llama
from lowrank_core.integrations.transformers import trainer_optimizer
from lowrank_core.optim import GaLoreAdamW
from test_trainer import arguments, losses
from transformers import LlamaForCausalLM, Trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future
GALORE = {"optim": "galore_adamw", "optim_target_modules": [".*proj"], "optim_args": "rank=4, update_proj_gap=3"}


def changed(folder: Path, trusted: bool, **more: Any) -> tuple[Trainer, Trainer, torch.optim.Optimizer, dict[str, Any]]:
    """A Trainer that has trained and saved, one for this package, the optimizer as the file has it, and the file."""
    args = arguments(folder, max_steps=4, weight_decay=0.1, **more)
    first = Trainer(tiny_llama(), args, train_dataset=examples(64))
    first.train()
    saved = torch.load(folder / "checkpoint-4" / "optimizer.pt", weights_only=not trusted)
    model = LlamaForCausalLM.from_pretrained(folder / "checkpoint-4")
    theirs = Trainer(model, args).create_optimizer()
    theirs.load_state_dict(saved)
    made = trainer_optimizer(model, "galore", rank=4, update_proj_gap=3, lr=0.02, weight_decay=0.1, verbose=False)
    second = Trainer(model, arguments(folder), train_dataset=examples(64), optimizer_cls_and_kwargs=made)
    return first, second, theirs, saved


def states(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """By the names of the model, which no file of a Trainer has."""
    state = getattr(trainer.optimizer, "optimizer", trainer.optimizer).state
    return {name: state[p] for name, p in trainer.model.named_parameters() if p in state}


def test_from_adamw(tmp_path: Path) -> None:
    first, second, theirs, saved = changed(tmp_path, trusted=False)
    ours = second.create_optimizer()
    assert isinstance(ours, GaLoreAdamW) and not any(group.get("param_names") for group in saved["param_groups"])
    with pytest.raises(ValueError, match=r"from_state: `saved` must name its parameters.*`create_optimizer"):
        ours.from_state(saved)
    with pytest.raises(ValueError, match=r"load_state_dict: .* is taken over by `from_state`"):
        ours.load_state_dict(saved)
    rows = {row.name: row for row in ours.from_state(theirs)}
    before, after = states(first), states(second)
    assert rows.keys() == before.keys()
    assert {name for name, row in rows.items() if not row.carried} == {n for n in rows if n.endswith("proj.weight")}
    for name, state in after.items():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(state[key], before[name][key].to(state[key].dtype)), (name, key)
    assert after.keys() == {name for name, row in rows.items() if row.carried}
    second.train()
    assert sum(losses(second)[-2:]) < sum(losses(first)[-2:])
    assert float(states(second)["model.norm.weight"]["step"]) == 12


def test_from_galore_torch(tmp_path: Path) -> None:
    """Trainer's `optim="galore_adamw"`: every weight goes on."""
    pytest.importorskip("galore_torch", reason="needs the package galore_torch, to change over from")
    first, second, theirs, _ = changed(tmp_path, trusted=True, **GALORE)
    rows = {row.name: row for row in second.create_optimizer().from_state(theirs)}
    before, after = states(first), states(second)
    assert all(row.carried for row in rows.values()) and after.keys() == before.keys() == rows.keys()
    for name, state in after.items():
        assert torch.equal(state["exp_avg"], before[name]["exp_avg"]), name
        assert (rows[name].reason == "moments, basis and step") == name.endswith("proj.weight")
    second.train()
    assert sum(losses(second)[-2:]) < sum(losses(first)[-2:])
