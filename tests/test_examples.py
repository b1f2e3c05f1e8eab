"""The examples run."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    """Examples seed torch's global generator; no other test shall see it."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_a_resumed_example_has_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples/train_and_resume.py"), run_name="__main__")
    assert "resumed: the same bits" in capsys.readouterr().out
