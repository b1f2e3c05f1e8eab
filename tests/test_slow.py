"""`tests/testing/slow.py` names tests that are there: else cases would leave continuous integration unseen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from testing import slow

ROOT = Path(__file__).resolve().parents[1]


def test_what_always_runs_is_there_and_what_is_left_out_too() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("hypothesis")
    files = sorted({test.partition("::")[0] for test in slow.ALWAYS})
    found = {}
    for marked in ("slow", "not slow"):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            marked,
            *files,
        ]
        lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
        found[marked] = {line for line in lines if "::" in line}
    for test, always in slow.ALWAYS.items():
        assert {f"{test}[{case}]" for case in always} <= found["not slow"], test
        assert any(line.partition("[")[0] == test for line in found["slow"]), test
