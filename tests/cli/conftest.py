"""What the tests of the command line share: a small text, a tiny run, and two ways to start it."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_cases import TEXT_WORDS, TINY_GALORE
from lowrank_core.cli import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def extras() -> None:
    """What `pip install` brings for the command line."""
    for package in ("torch", "safetensors", "matplotlib"):
        pytest.importorskip(package)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 small text files."""
    folder = tmp_path_factory.mktemp("text")
    words = random.Random(0)
    for i in range(24):
        lines = (" ".join(words.choices(TEXT_WORDS, k=8)) for _ in range(60))
        (folder / f"file{i:02d}.py").write_text("\n".join(lines))
    return folder


@pytest.fixture
def tiny(text: Path) -> list[str]:
    """Options of a run that takes a fraction of a second."""
    return ["train", "--text", str(text), *TINY_GALORE]


@pytest.fixture(scope="session")
def finished_runs(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with both optimizers; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["train", "--text", str(text), *TINY_GALORE, "--compare", "adamw", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as leave:  # argparse's way
            code = int(leave.code or 0)
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line in a process of its own, which does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "lowrank_core", *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
