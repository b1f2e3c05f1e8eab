"""`--steps` grows at a resume; and a resume says what it finds."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from cli_cases import at_step
from lowrank_core.cli.loop import lr_at
from lowrank_core.cli.metrics import read
from test_resume import assert_same, final_state
from test_stop import send

RESUME = ("train", "--resume", "--out")


def rates(folder: Path, run: str = "galore") -> list[float]:
    return [line["lr"] for line in read(folder / "metrics.jsonl") if line["run"] == run and line["event"] == "train"]


def expected(*pieces: tuple[int, int, int]) -> list[float]:
    """Rates of steps `first` to `last` of a run of `steps` steps, for each piece."""
    return [
        lr_at(step, peak=0.01, warmup=3, steps=steps, min_ratio=0.1)
        for first, last, steps in pieces
        for step in range(first, last + 1)
    ]


def test_finished_run_goes_on(tiny, cli, tmp_path):
    """Steps that are done keep their rates; those to come have the rates of the longer run."""
    assert cli(*tiny, "--out", tmp_path).code == 0
    grown = cli(*RESUME, tmp_path, "--steps", 30)
    assert (
        grown.code == 0
        and "steps: 30 instead of 24; from step 25 on the learning rate is that of a run of 30" in grown.out
    )
    ratio = expected((25, 25, 30))[0] / 0.01
    assert f"{ratio:.3g} of its peak there, 0.1 in the step before" in grown.out
    assert rates(tmp_path) == expected((1, 24, 24), (25, 30, 30))
    assert json.loads((tmp_path / "run.json").read_text())["config"]["steps"] == 30
    assert json.loads((tmp_path / "summary.json").read_text())["config"]["steps"] == 30
    assert "all 30 steps are done" in cli(*RESUME, tmp_path).out
    assert "all 30 steps are done" in cli(*RESUME, tmp_path, "--steps", 30).out
    assert cli(*RESUME, tmp_path, "--steps", 29).code == 2


def test_stopped_and_killed_within(tiny, cli, tmp_path):
    """Whatever interrupts the longer run, it ends like one that nothing interrupts."""
    for name, again in (("whole", False), ("cut", True)):
        folder = tmp_path / name
        with at_step(10, lambda: send(signal.SIGINT)):
            assert cli(*tiny, "--out", folder).code == 130
        if again:
            with at_step(17, lambda: 1 / 0), pytest.raises(ZeroDivisionError):
                cli(*RESUME, folder, "--steps", 30)
        assert cli(*RESUME, folder, *(() if again else ("--steps", 30))).code == 0
        assert rates(folder) == expected((1, 11, 24), (12, 30, 30))
    assert_same(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))


def test_both_of_a_comparison_change_schedule_at_one_step(tiny, cli, tmp_path):
    run = [*tiny, "--compare", "adamw", "--compare-lr", 0.01, "--out", tmp_path]
    with at_step(10, lambda: 1 / 0), pytest.raises(ZeroDivisionError):
        cli(*run)
    refused = cli(*RESUME, tmp_path, "--steps", 30)
    assert refused.code == 2
    assert "may grow once both optimizers have done 24 steps, got 0 of adamw; resume without `--steps`" in refused.err
    assert json.loads((tmp_path / "run.json").read_text())["config"]["steps"] == 24
    assert cli(*RESUME, tmp_path).code == 0
    assert cli(*RESUME, tmp_path, "--steps", 30).code == 0
    assert rates(tmp_path) == rates(tmp_path, "adamw") == expected((1, 24, 24), (25, 30, 30))


@pytest.mark.parametrize("damage", ["none", "lost", "truncated", "middle", "other values", "empty"])
def test_lost_metrics_are_said(finished_runs, cli, tmp_path, damage):
    folder = shutil.copytree(finished_runs, tmp_path / "run")
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    trained = [i for i, line in enumerate(lines) if b'"train"' in line]
    if damage == "lost":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(b"".join(lines[: trained[9]]) + lines[trained[9]][:20])
    elif damage != "none":
        lines[trained[4]] = {"middle": b"\0" * 40 + b"\n", "other values": b'[1, {"step": 5}]\n'}[damage]
        path.write_bytes(b"".join(lines))
    lost = {
        "none": {},
        "lost": {"galore": 24, "adamw": 24},
        "empty": {"galore": 24, "adamw": 24},
        "truncated": {"galore": 15, "adamw": 24},
    }.get(damage, {"galore": 1})
    outcome = cli(*RESUME, folder)
    assert outcome.code == 0 and outcome.err.count("\n") == len(lost)
    for run in ("galore", "adamw"):
        missing = lost.get(run, 0)
        said = f"metrics.jsonl holds no line for {missing} of the 24 steps that {run} has done" in outcome.err
        assert said is (missing > 0) and len(rates(folder, run)) == 24 - missing


def test_a_run_that_came_to_nothing_is_in_nobodys_way(tiny, cli, tmp_path):
    """Killed before its first checkpoint, for want of memory say: the next command needs no further option."""
    with at_step(2, lambda: 1 / 0), pytest.raises(ZeroDivisionError):
        cli(*tiny, "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "run.json", "metrics.jsonl", "galore.layers.jsonl"}
    assert cli(*tiny, "--dim", 32, "--out", tmp_path).code == 0
    assert rates(tmp_path) == expected((1, 24, 24))
    assert cli(*tiny, "--out", tmp_path).code == 2
    (tmp_path / "galore.checkpoint.safetensors").unlink()
    assert cli(*tiny, "--out", tmp_path).code == 2  # its report would be lost
