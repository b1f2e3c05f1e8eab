"""MonitorCallback: what a Trainer logs of the subspaces, in its history and for every reporter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lowrank_core.integrations.transformers import MonitorCallback
from lowrank_core.optim import Monitor
from test_trainer_optimizer import make
from transformers import TrainerCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future
KEYS = {"captured", "overlap", "rank", "update_ratio", "refresh_seconds"}


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


def test_the_callback_reads_no_row_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where fewer are kept than all: a log needs those since the log before."""
    monkeypatch.setattr(Monitor, "rows", property(lambda _: pytest.fail("all rows were read")))
    callback, read = MonitorCallback(keep=40), list[int]()
    newest = Monitor.newest
    monkeypatch.setattr(Monitor, "newest", lambda self, count: (read.append(count), newest(self, count))[1])
    make(tmp_path, "galore", callback, logging_steps=2).train()
    assert callback.monitor is not None and sum(read) == callback.monitor.recorded
    assert len(newest(callback.monitor, 1000)) == 40


class Reporter(TrainerCallback):
    """One that a user has written."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.seen.append({**logs, "step": state.global_step})


def subspaces(entries: list[dict[str, Any]]) -> list[dict[str, float]]:
    """What entries of a log say of subspaces, with their steps."""
    found = [{k: v for k, v in entry.items() if k.startswith("subspace/") or k == "step"} for entry in entries]
    return [entry for entry in found if len(entry) > 1]


@pytest.mark.parametrize("given", [True, False], ids=["among the callbacks", "to the Trainer alone"])
def test_every_reporter_gets_its_figures(given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard by `report_to`, and reporters of the user's before and behind it."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    callback, before, behind = MonitorCallback(), Reporter(), Reporter()
    order = [before, callback] if given else [before]
    trainer = make(tmp_path, "galore", *order, logging_steps=2, report_to=["tensorboard"])
    names = [type(one) for one in trainer.callback_handler.callbacks if one is not callback]
    assert callback.first_in(trainer) is callback
    assert [type(one) for one in trainer.callback_handler.callbacks] == [MonitorCallback, *names]
    trainer.add_callback(behind)
    trainer.train()
    logged = subspaces(trainer.state.log_history)
    assert [entry["step"] for entry in logged] == [2, 4, 6, 8] and len(logged[-1]) == 1 + len(KEYS)
    assert subspaces(before.seen) == logged == subspaces(behind.seen)
    board = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    for key in KEYS:
        expected = [(entry["step"], entry[f"subspace/{key}"]) for entry in logged if f"subspace/{key}" in entry]
        found = [(event.step, event.value) for event in board.Scalars(f"train/subspace/{key}")]
        assert found == [(step, pytest.approx(value)) for step, value in expected], key


def test_reporters_that_come_first_are_warned_of(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer = make(tmp_path, "galore", MonitorCallback(), max_steps=1, report_to=["tensorboard"])
    with pytest.warns(UserWarning, match=r"MonitorCallback: `report_to` \['tensorboard'\] gets none of its figures"):
        trainer.train()
    assert subspaces(trainer.state.log_history)
