"""metrics.jsonl: whole lines, cut back on a resume, monotone."""

from __future__ import annotations

import io
import json
import sys

import pytest
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.metrics import MetricsLog, cut_back, read


def test_lines_are_json_without_special_numbers(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsLog(path) as log:
        log.write(run="a", step=1, loss=0.5, norm=float("inf"))
        log.sync()
    assert path.read_text() == '{"run": "a", "step": 1, "loss": 0.5, "norm": null}\n'


def test_half_a_line_on_a_full_disk_is_refused(tmp_path, monkeypatch):
    class AlmostFull(io.BytesIO):
        def write(self, data: bytes) -> int:
            return len(data) - 1

    monkeypatch.setattr("builtins.open", lambda *arguments, **named: AlmostFull())
    with MetricsLog(tmp_path / "m.jsonl") as log, pytest.raises(CliError, match="No space left on device"):
        log.write(run="a", step=1)


def test_broken_last_line_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"run": "a", "step": 1}\n{"run": "a", "st')
    assert list(read(path)) == [{"run": "a", "step": 1}]
    assert list(read(tmp_path / "missing")) == []


def test_cut_back_drops_only_what_is_written_again(tmp_path):
    path = tmp_path / "m.jsonl"
    lines = [{"run": run, "step": step} for run in "ab" for step in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"run"')
    cut_back(path, "b", 2)
    assert list(read(path)) == [line for line in lines if line != {"run": "b", "step": 3}]
    cut_back(path, "b", -1)
    assert list(read(path)) == lines[:4]


def test_a_run_logs_what_it_promises(finished_runs):
    lines = list(read(finished_runs / "metrics.jsonl"))
    for run in ("galore", "adamw"):
        mine = [line for line in lines if line["run"] == run]
        assert [line["step"] for line in mine] == sorted(line["step"] for line in mine)
        assert [line["seconds"] for line in mine] == sorted(line["seconds"] for line in mine)
        train = [line for line in mine if line["event"] == "train"]
        assert all(set(line) >= {"train_loss", "lr", "grad_norm", "seconds", "tokens_per_s"} for line in train)
        assert train[-1]["train_loss"] < train[0]["train_loss"]
    rates = [line["lr"] for line in lines if line["event"] == "train" and line["run"] == "galore"]
    assert (
        rates[2] == max(rates) == 1e-2
        and rates[-1] == min(rates[3:])
        and abs(rates[-1] - 1e-3) <= 4 * sys.float_info.epsilon
    )
    refreshes = [line for line in lines if line["event"] == "refresh"]
    assert {line["run"] for line in refreshes} == {"galore"}
    assert all(0 < line["captured_min"] <= line["captured"] <= line["captured_max"] <= 1 for line in refreshes)
    assert all(line["rank"] == 4 for line in refreshes)


def test_both_runs_see_the_same_batches(tiny, cli, tmp_path, monkeypatch):
    from lowrank_core.cli import loop

    seen: dict[str, list[bytes]] = {}
    loss = loop.Run._loss

    def watched(run, windows):
        seen.setdefault(run.name, []).append(windows.numpy().tobytes())
        return loss(run, windows)

    monkeypatch.setattr(loop.Run, "_loss", watched)
    assert cli(*tiny, "--compare", "adamw", "--out", tmp_path).code == 0
    assert seen["galore"] == seen["adamw"] and len(set(seen["galore"])) > 24


def test_accumulation_equals_one_large_batch(tiny, cli, tmp_path):
    """The same windows in two passes: equal but for the order of the sums."""
    split = ["--batch-size", 2, "--accumulation", 2, "--eval-batches", 2]
    whole = ["--batch-size", 4, "--accumulation", 1, "--eval-batches", 1]
    losses = []
    for name, options in (("split", split), ("whole", whole)):
        assert cli(*tiny, *options, "--steps", 4, "--out", tmp_path / name).code == 0
        lines = read(tmp_path / name / "metrics.jsonl")
        losses.append([line["train_loss"] for line in lines if line["event"] == "train"])
    assert all(abs(a - b) < 1e-5 * a for a, b in zip(*losses, strict=True))
