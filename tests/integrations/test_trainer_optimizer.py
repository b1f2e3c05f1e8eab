"""trainer_optimizer and MonitorCallback: every method in a Trainer, saved, killed and resumed to the bit."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install '.[integrations]'")
pytest.importorskip("accelerate", reason="needs accelerate: pip install '.[integrations]'")

import torch
from integration_cases import examples, tiny_llama
from lowrank_core.integrations.transformers import MonitorCallback, trainer_optimizer
from lowrank_core.optim import METHODS, GaLoreAdamW
from test_trainer import StopAt, arguments, losses
from testing import examples as docstrings
from transformers import Trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future


def keys_of(name: str) -> dict[str, Any]:
    """Of a run that projects and refreshes, as far as the method has such keys."""
    known = inspect.signature(METHODS[name]).parameters
    return {key: value for key, value in {"lr": 0.02, "update_proj_gap": 3, "scale": 1.0}.items() if key in known}


def make(folder: Path, name: str, *callbacks: Any, **more: Any) -> Trainer:
    model = tiny_llama()
    made = trainer_optimizer(model, METHODS[name], rank=4, weight_decay=0.1, verbose=False, **keys_of(name))
    return Trainer(
        model, arguments(folder, **more), train_dataset=examples(64), optimizer_cls_and_kwargs=made,
        callbacks=list(callbacks),
    )  # fmt: skip


@pytest.mark.parametrize("public", [trainer_optimizer, MonitorCallback])
def test_examples(public: Any) -> None:
    test = docstrings.example(public.__name__, public)
    assert test.examples and docstrings.failures(test) == ""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", name)
    whole.train()
    found = losses(whole)
    assert len(found) == 8 and sum(found[-2:]) < sum(found[:2])
    broken = make(tmp_path / "broken", name, StopAt(4))
    broken.train()
    resumed = make(tmp_path / "broken", name)
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-4"))
    for (path, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), path
    assert losses(resumed)[4:] == found[4:]


def test_embeddings_are_plain_and_everything_has_its_name(tmp_path: Path) -> None:
    trainer = make(tmp_path, "galore", max_steps=1)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    names = dict(tiny_llama().named_parameters())
    plan = {row.name: row for row in optimizer.plan()}
    assert plan.keys() == names.keys()
    assert not plan["model.embed_tokens.weight"].projected
    assert {name for name, row in plan.items() if row.projected} == {n for n in names if n.endswith("proj.weight")}
    for group in optimizer.param_groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])


def test_the_callback_logs_what_its_monitor_sees(tmp_path: Path) -> None:
    callback = MonitorCallback(path=tmp_path / "rows.jsonl")
    trainer = make(tmp_path, "galore", callback, logging_steps=2)
    trainer.train()
    assert callback.monitor is not None
    rows = [row for row in callback.monitor.rows if row["rank"] is not None]
    logged = [row for row in trainer.state.log_history if "subspace/rank" in row]
    assert [row["step"] for row in logged] == [2, 4, 6, 8]
    for entry in logged:
        mine = [row for row in rows if row["step"] in (entry["step"] - 1, entry["step"])]
        assert entry["subspace/captured"] == pytest.approx(sum(row["captured"] for row in mine) / len(mine))
        assert entry["subspace/update_ratio"] == pytest.approx(sum(row["update_ratio"] for row in mine) / len(mine))
        assert entry["subspace/refresh_seconds"] == pytest.approx(sum(row["refresh_seconds"] for row in mine))
        assert entry["subspace/rank"] == 4
    assert "subspace/overlap" not in logged[0] and 0 < logged[-1]["subspace/overlap"] <= 1
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert lines == callback.monitor.rows
    assert trainer.optimizer.optimizer.watches == ()  # detached at the end


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"cls": "adam"}, ValueError, "trainer_optimizer: `cls` must be a class or one of galore, .*, got 'adam'"),
        ({"cls": GaLoreAdamW, "gap": 3}, TypeError, "`gap` must be one of its keys"),
        ({"cls": GaLoreAdamW, "lr": -1.0}, ValueError, "`lr` must be a number >= 0"),
        ({"cls": GaLoreAdamW, "weight_decay": -1.0}, ValueError, "`weight_decay` must be a number >= 0"),
        ({"cls": GaLoreAdamW, "target_modules": ["nothing"]}, ValueError, "`target_modules` must match a matrix"),
    ],
)
def test_what_the_class_refuses_is_refused_before_the_trainer(given: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        trainer_optimizer(tiny_llama(), **{"rank": 4, "verbose": False, **given})
