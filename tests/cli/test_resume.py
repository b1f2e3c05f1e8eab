"""A run that is killed, stopped or interrupted and then resumed ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import time

import pytest
from cli_cases import wait_for_lines
from cli_states import assert_same, final_state
from lowrank_core.cli import checkpoint
from lowrank_core.cli.metrics import read

COMPARE = ("--compare", "adamw")


@pytest.fixture
def whole(finished_runs):
    """The end of a run with both optimizers that nothing interrupts."""
    return final_state(finished_runs)


def test_both_runs_are_logged_in_full(whole):
    steps = [line["step"] for line in whole["metrics"] if line["event"] == "train"]
    assert steps == [*range(1, 25), *range(1, 25)]
    assert [line["step"] for line in whole["metrics"] if line["event"] == "refresh"] == [1, 6, 11, 16, 21]
    evals = [(line["run"], line["step"]) for line in whole["metrics"] if line["event"] == "eval"]
    assert evals == [(run, step) for run in ("galore", "adamw") for step in (0, 6, 12, 18, 24)]


def test_killed_at_random_moments(tiny, spawn, cli, tmp_path, whole):
    """kill -9 early in the first run, about its end, and in the second; the folder is then resumed to the end."""
    moments = random.Random()
    total = len(whole["metrics"])
    for part in range(3):
        again = ["--resume"] if part else []
        process = spawn(*tiny, *COMPARE, "--out", tmp_path, *again)
        wait_for_lines(tmp_path, moments.randrange(part * total // 3, (part + 1) * total // 3), process)
        time.sleep(0.02 * moments.random())
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert cli("train", "--resume", "--out", tmp_path).code == 0
    assert_same(final_state(tmp_path), whole)


def test_stopped_by_ctrl_c(tiny, spawn, tmp_path, whole):
    """And gone on with by what it prints, pasted into a shell elsewhere."""
    process = spawn(*tiny, *COMPARE, "--out", tmp_path / "two words", "--save-every", 1000)
    wait_for_lines(tmp_path / "two words", 10, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err and "stopping after this step" in err
    saved = checkpoint.load(tmp_path / "two words" / "galore.checkpoint.safetensors")
    assert (
        saved["progress"]["step"] == max(line["step"] for line in read(tmp_path / "two words" / "metrics.jsonl")) < 24
    )
    hint = out.partition("; go on with: ")[2]
    assert " --resume --save-every 1000 --out " in hint
    subprocess.run(["bash", "-c", hint], cwd="/", check=True, capture_output=True)
    assert_same(final_state(tmp_path / "two words"), whole)


def test_second_signal_ends_at_once(tiny, spawn, tmp_path):
    """The step that is under way would take minutes; the checkpoint from before it is untouched."""
    assert spawn(*tiny, "--out", tmp_path, "--accumulation", 2).wait() == 0
    path = tmp_path / "galore.checkpoint.safetensors"
    before = path.read_bytes()
    (tmp_path / "metrics.jsonl").unlink()
    process = spawn(*tiny, "--out", tmp_path, "--accumulation", 10**6, "--overwrite")
    wait_for_lines(tmp_path, 1, process)
    path.write_bytes(before)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert time.monotonic() - started < 10
    assert path.read_bytes() == before


@pytest.mark.parametrize("precision", ["bf16", "amp-bf16", "amp-fp16"])
def test_resume_in_every_precision(tiny, cli, tmp_path, precision, monkeypatch):
    """Dtypes of the state and the loss scale survive; the run is cut by a failure in place of a signal."""
    options = [*tiny, "--precision", precision, "--accumulation", 2, "--weight-decay", 0.1]
    assert cli(*options, "--out", tmp_path / "whole").code == 0

    from lowrank_core.cli.loop import Run

    step = Run.train_step
    monkeypatch.setattr(Run, "train_step", lambda run, log: 1 / 0 if run.step == 14 else step(run, log))
    with pytest.raises(ZeroDivisionError):
        cli(*options, "--out", tmp_path / "cut")
    monkeypatch.undo()
    assert cli("train", "--resume", "--out", tmp_path / "cut").code == 0
    assert_same(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))


def test_finished_run_resumes_to_the_same_report(tiny, cli, tmp_path):
    first = cli(*tiny, "--out", tmp_path)
    (tmp_path / "report.png").unlink()
    again = cli("train", "--resume", "--out", tmp_path)
    assert again.code == 0 and (tmp_path / "report.png").exists()
    assert again.out.splitlines()[-3:] == first.out.splitlines()[-3:]
    assert "the run was finished: all 24 steps are done" in again.out and "was finished" not in first.out


def test_seconds_go_on_from_the_checkpoint(tiny, cli, tmp_path, monkeypatch):
    from lowrank_core.cli.loop import Run

    step = Run.train_step
    monkeypatch.setattr(Run, "train_step", lambda run, log: 1 / 0 if run.step == 12 else step(run, log))
    with pytest.raises(ZeroDivisionError):
        cli(*tiny, "--out", tmp_path)
    monkeypatch.undo()
    assert cli("train", "--resume", "--out", tmp_path).code == 0
    seconds = [line["seconds"] for line in read(tmp_path / "metrics.jsonl") if line["event"] == "train"]
    assert seconds == sorted(seconds) and len(seconds) == 24


def test_resume_from_another_place(tiny, cli, text, tmp_path, monkeypatch):
    """A text given by a relative path is found again."""
    monkeypatch.chdir(text.parent)
    assert cli("train", "--text", text.name, *tiny[3:], "--out", tmp_path / "run").code == 0
    monkeypatch.chdir(tmp_path)
    assert cli("train", "--resume", "--out", "run").code == 0
