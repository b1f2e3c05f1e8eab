"""Signals: which stop a run, which are left alone, and what happens when the terminal goes away."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys

import pytest
from cli_cases import at_step
from lowrank_core.cli import checkpoint

CHECKPOINT = "galore.checkpoint.safetensors"


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_stops_with_a_checkpoint(tiny, cli, tmp_path, name, code):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with at_step(7, lambda: send(getattr(signal, name))):
        outcome = cli(*tiny, "--out", tmp_path, "--save-every", 1000)
    assert outcome.code == code and "galore stopped at step 8 of 24; go on with: " in outcome.out
    assert "stopping after this step" in outcome.err
    assert checkpoint.load(tmp_path / CHECKPOINT)["progress"]["step"] == 8
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_closing_terminal_hangs_up_twice(tiny, cli, tmp_path, monkeypatch):
    """The kernel tells the group, and the shell tells its jobs: one wish to stop."""
    monkeypatch.setattr("lowrank_core.cli.stop.os._exit", lambda code: pytest.fail("ended at once"))
    with at_step(7, lambda: send(signal.SIGHUP, signal.SIGHUP)):
        assert cli(*tiny, "--out", tmp_path).code == 129
    assert checkpoint.load(tmp_path / CHECKPOINT)["progress"]["step"] == 8


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_ignored_signals_stay_ignored(tiny, cli, tmp_path, number):
    """By nohup, or by a shell for what it runs in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with at_step(7, lambda: send(number)):
            assert cli(*tiny, "--out", tmp_path).code == 0
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


WAITS = """
import fcntl, os, termios, time
from lowrank_core.cli.stop import StopRequest
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
with StopRequest() as stop:
    os.write(1, b"ready")
    deadline = time.monotonic() + 60
    while stop.signum is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.write(1, b"nobody reads this")
    os.write(2, b"nor this")
os._exit(stop.exit_code)
"""


def test_terminal_that_is_gone():
    """A hung-up terminal fails every write; the run must still come to its checkpoint."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", WAITS], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        assert os.read(ours, 100) == b"ready"
        os.close(ours)
        assert process.wait(timeout=90) == 129


@pytest.mark.parametrize("stage", ["text.load_corpus", "memory.check_fits", "report.write_report"])
def test_ctrl_c_outside_of_the_steps(tiny, cli, tmp_path, monkeypatch, stage):
    """While the text is read, before and after the run: a word instead of a traceback, and the command works again."""
    from lowrank_core.cli import memory, report, text, train

    module, name = stage.split(".")
    target = {"text": train, "memory": memory, "report": report}[module]

    def interrupted(*arguments, **named):
        send(signal.SIGINT)

    assert text.load_corpus is train.load_corpus
    with monkeypatch.context() as patch:
        patch.setattr(target, name, interrupted)
        outcome = cli(*tiny, "--out", tmp_path / "run")
    assert outcome.code == 130 and outcome.err == "lowrank-core train: interrupted\n"
    again = ["--resume"] if module == "report" else []
    assert cli(*tiny, *again, "--out", tmp_path / "run").code == 0


def test_ctrl_c_while_the_checkpoint_is_written(tiny, cli, tmp_path, monkeypatch):
    from lowrank_core.cli import files

    sync = files.os.fsync
    with at_step(4, lambda: monkeypatch.setattr(files.os, "fsync", lambda handle: (sync(handle), send(signal.SIGINT)))):
        # The steps' log is synced first, then the checkpoint and its folder; each asks again, and the second ends.
        monkeypatch.setattr("lowrank_core.cli.stop.os._exit", lambda code: None)
        outcome = cli(*tiny, "--out", tmp_path, "--save-every", 8)
    monkeypatch.undo()
    assert outcome.code == 130
    assert checkpoint.load(tmp_path / CHECKPOINT)["progress"]["step"] == 8
    assert cli("train", "--resume", "--out", tmp_path).code == 0
