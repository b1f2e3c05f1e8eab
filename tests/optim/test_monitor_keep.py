"""How many rows a monitor keeps: the newest, whoever reads them and when; its file and its picture have all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, Monitor
from lowrank_core.optim.monitor_rows import KEYS, Kept, Record
from optim_cases import Zoo, train
from test_deferred import no_reading
from test_deferred_state import defer
from test_monitor import MATRICES, galore
from torch import Tensor


def record(step: int, count: int, value: Tensor | None = None) -> Record:
    row = {"step": step, "rank": 2, "captured": None, "overlap": None, "refreshes": 1, "refresh_seconds": 0.0}
    rows = [{key: {**row, "name": f"w{i}", "update_ratio": None}[key] for key in KEYS} for i in range(count)]
    return Record.of([(one, {} if value is None else {"update_ratio": value * i}) for i, one in enumerate(rows)])


def held(kept: Kept) -> int:
    return len(kept._rows) + sum(len(one.rows) for one in kept._records)


@pytest.mark.parametrize("waits", [False, True], ids=["read at once", "read at the end"])
@pytest.mark.parametrize("limit", [1, 7, 10, 1000])
def test_many_rows_take_no_more_memory_than_few(waits: bool, limit: int) -> None:
    """A record that waits is kept whole as long as one of its rows is."""
    kept = Kept(limit)
    for step in range(1, 501):
        kept.add(record(step, 7, torch.tensor(float(step)) if waits else None))
        assert held(kept) <= limit + (6 if waits else 0)
    assert kept.count == 3500
    every = [(step, f"w{i}", float(step * i) if waits else None) for step in range(1, 501) for i in range(7)]
    for count in (0, 1, 6, 8, 2000):
        found = [(row["step"], row["name"], row["update_ratio"]) for row in kept.newest(count)]
        assert found == every[-min(count, limit) :] if count else not found
    assert len(kept.newest()) == limit == held(kept)


def test_rows_that_are_read_and_rows_that_wait_share_the_limit() -> None:
    kept = Kept(10)
    for step in range(1, 9):
        kept.add(record(step, 3, torch.tensor(1.0)))
        if step == 4:
            kept.newest()
        assert held(kept) <= 12
    assert [row["step"] for row in kept.newest()] == [5, 6, 6, 6, 7, 7, 7, 8, 8, 8]


@pytest.mark.parametrize("deferred", [False, True])
def test_the_newest_stay_and_all_are_counted(deferred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is held where reading waits for nothing, one for each record where it does."""
    defer(monkeypatch, deferred)
    model = Zoo()
    optimizer = galore(model)
    with Monitor(optimizer) as whole, Monitor(optimizer, keep=7) as short:
        train(model, optimizer, range(6))
        assert [len(one.waiting) for one in short._kept._records] == ([1, 1] if deferred else [])
    assert short.recorded == whole.recorded == 6 * len(MATRICES) == len(whole.rows)
    assert short.rows == whole.rows[-7:] and short.newest(3) == whole.rows[-3:]
    short.rows[0]["rank"] = None
    assert short.rows == whole.rows[-7:]  # which are copies


def test_a_record_waits_for_nothing_whatever_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Zoo()
    optimizer = galore(model)
    defer(monkeypatch)
    with Monitor(optimizer, keep=2) as watching:
        train(model, optimizer, range(4))
        with no_reading():
            optimizer.step()
    assert [row["step"] for row in watching.rows] == [5, 5]


def test_the_file_and_the_picture_have_what_is_no_longer_kept(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, path = Zoo(), tmp_path / "rows.jsonl"
    optimizer = galore(model)
    with Monitor(optimizer) as whole, Monitor(optimizer, path=path, keep=1) as short:
        train(model, optimizer, range(6))
        short.plot(tmp_path / "short.png")
    whole.plot(tmp_path / "whole.png")
    assert [json.loads(line) for line in path.read_text().splitlines()] == whole.rows
    assert (tmp_path / "short.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


@pytest.mark.parametrize("unfinished", ["", '{"step": 7, "na'])
def test_a_resume_holds_one_line_of_the_file_at_a_time(
    unfinished: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it cuts off; the overlaps that it goes on from are the last ones."""
    path, model = tmp_path / "rows.jsonl", Zoo()
    optimizer = galore(model)
    with Monitor(optimizer, path=path):
        train(model, optimizer, range(5))
    kept = path.read_text()
    further = [line.replace('"step": 5', '"step": 6') for line in kept.splitlines(keepends=True)[-len(MATRICES) :]]
    path.write_text(kept + "".join(further) + unfinished)
    expected = kept.splitlines()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the file was read as a whole")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with Monitor(optimizer, path=path) as again:
        assert not again.rows and len(again._overlaps) == len(MATRICES)
        train(model, optimizer, [5])
    monkeypatch.undo()
    lines = path.read_text().splitlines()
    assert lines[: len(expected)] == expected and [json.loads(line) for line in lines[len(expected) :]] == again.rows


def test_a_foreign_line_far_down_is_refused_and_the_file_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    weight = torch.nn.Parameter(torch.ones(6, 4))
    optimizer = GaLoreAdamW([("w", weight)], rank=2)
    weight.grad = torch.ones(6, 4)
    with Monitor(optimizer, path=path):
        optimizer.step()
    text = path.read_text() * 50 + "else\n" + path.read_text()
    path.write_text(text)
    with pytest.raises(ValueError, match="with other lines"):
        Monitor(optimizer, path=path)
    assert path.read_text() == text
