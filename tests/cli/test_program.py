"""The command as a process of its own: its streams, its locale, its threads, and how soon it answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from lowrank_core.cli import waiting

COMMAND = [sys.executable, "-m", "lowrank_core"]


def run(*arguments: str | bytes, shell: str = '"$@"', **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = ["bash", "-c", shell, "bash", *COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment}, timeout=120)


def test_threads_of_train_wait_asleep():
    """What libgomp itself says it has read, before and after the command has started over."""
    spins = r"GOMP_SPINCOUNT = '(\d+)'"

    def spun(**chosen: str) -> list[bytes]:
        ours = {name: value for name, value in os.environ.items() if name not in waiting.CHOICES}
        done = subprocess.run([*COMMAND, "train", "--text", "/nowhere"], capture_output=True,
                              env={**ours, "OMP_DISPLAY_ENV": "verbose", **chosen})  # fmt: skip
        assert done.returncode == 2 and b"does not exist" in done.stderr
        return re.findall(spins.encode(), done.stderr)

    default, passive = spun()
    assert int(default) > 0 == int(passive)
    assert spun(GOMP_SPINCOUNT="77") == [b"77"]
    assert len(spun(OMP_WAIT_POLICY="active")) == 1


def test_start_over_where_it_cannot(monkeypatch):
    """No executable, or a system that refuses: the run goes on as it is."""
    for name in waiting.CHOICES:
        monkeypatch.delenv(name, raising=False)

    def refuse(*arguments):
        raise OSError("no")

    monkeypatch.setattr(waiting.os, "execv", refuse)
    waiting.start_over_passive()
    assert waiting.chosen() == "OMP_WAIT_POLICY=passive"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(waiting.sys, "executable", "")
    waiting.start_over_passive()
    assert waiting.chosen() is None


def test_wrong_text_is_told_without_torch():
    code = (
        "import sys; from lowrank_core.cli import main\n"
        "for path in ('/nowhere', '/dev/null', sys.executable):\n"
        "    assert main(['train', '--text', path]) == 2\n"
        "assert not {'torch', 'matplotlib', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)


def test_paths_that_the_terminal_cannot_show():
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for environment in (plain, {"LC_ALL": "C.UTF-8"}, {"PYTHONIOENCODING": "ascii:strict"}):
        done = run("train", "--text", b"/no/\xff\xc3\xbc", **environment)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"Traceback" not in done.stderr
        assert b"does not exist" in done.stderr


def test_streams_that_cannot_be_written():
    """One process for each would be slow: all in one shell."""
    shell = (
        '"$@" >/dev/full 2>full; echo $?; cat full; "$@" >&-; echo $?; "$@" >&- 2>&-; echo $?;'
        '"$@" -h | true; echo ${PIPESTATUS[0]}'
    )
    done = run("--version", shell=f"cd $(mktemp -d); {shell}", PYTHONUNBUFFERED="")
    assert done.stderr == b"", done.stderr
    codes = done.stdout.split(b"\n")
    assert codes[0] == b"2" and b"cannot use standard output (No space left on device)" in codes[1]
    assert codes[2:4] == [b"0", b"0"] and codes[4] in (b"0", b"141")
