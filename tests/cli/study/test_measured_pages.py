"""The pages say what the run files say."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import measured_pages  # noqa: E402


def test_pages_are_those_of_the_run_files():
    for path, text in measured_pages.pages(measured_pages.DOCS).items():
        assert path.read_text(encoding="utf-8") == text, f"{path} differs; run `python tools/measured_pages.py`"


@pytest.fixture
def docs(tmp_path, monkeypatch):
    """A copy of the pages with nothing but one run."""
    (tmp_path / "docs/results/runs").mkdir(parents=True)
    shutil.copy(ROOT / "docs/optimizers.md", tmp_path / "docs")
    run = min((ROOT / "docs/results/runs").glob("adamw-small-seed0-*.json"))
    shutil.copy(run, tmp_path / "docs/results/runs")
    monkeypatch.setattr(measured_pages, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(sys, "argv", ["measured_pages.py"])
    return tmp_path / "docs"


def test_a_page_that_differs_is_named_and_mended(docs, monkeypatch, capsys):
    assert measured_pages.main() == 0 and "wrote docs/optimizers.md" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["measured_pages.py", "--check"])
    assert measured_pages.main() == 0
    page = docs / "optimizers.md"
    page.write_text(page.read_text().replace("| adamw |", "| adamw, better |"))
    assert measured_pages.main() == 1
    assert capsys.readouterr().out == "differs from the run files: docs/optimizers.md\n"


def test_every_run_file_is_whole():
    files = sorted((ROOT / "docs/results/runs").glob("*-small*-seed*.json"))
    assert files
    for path in files:
        record = json.loads(path.read_text())
        assert record["dirty"] is False and record["commit"], path.name
        assert (record["val_loss"] is None) == (record["diverged"] is not None), path.name
