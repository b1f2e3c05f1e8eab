"""tools/test_all.py: a stage's outcome is told as it is, and a run of some stages leaves those of the others."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.fixture
def test_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The tool in an empty tree."""
    monkeypatch.syspath_prepend(str(TOOLS))
    for name in ("test_all", "report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = import_module("test_all")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULT", tmp_path / "test-all.md")
    monkeypatch.setattr(module, "commit", lambda: "abc1234")
    return module


def given(
    test_all: ModuleType, monkeypatch: pytest.MonkeyPatch, *commands: str, arguments: tuple[str, ...] = ()
) -> int:
    stages = [test_all.Stage(f"stage{i}", command, "a command") for i, command in enumerate(commands)]
    monkeypatch.setattr(test_all, "stages", lambda: stages)
    monkeypatch.setattr(sys, "argv", ["test_all.py", *arguments])
    return int(test_all.main())


def cells(test_all: ModuleType, stage: str) -> list[str]:
    """The row of `stage`: what, result, minutes, pytest, commit, date, machine."""
    row = next(line for line in test_all.RESULT.read_text().splitlines() if line.startswith(f"| {stage} "))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_a_failure_is_told_and_the_rest_still_runs(test_all, monkeypatch):
    assert given(test_all, monkeypatch, "echo '== 2 failed, 3 passed in 4.5s =='; exit 1", "true") == 1
    assert cells(test_all, "stage0")[:5] == ["a command", "failed", "0.0", "2 failed, 3 passed in 4.5s", "abc1234"]
    assert cells(test_all, "stage1")[:5] == ["a command", "passed", "0.0", "", "abc1234"]


def test_some_stages_leave_the_rows_of_others(test_all, monkeypatch):
    assert given(test_all, monkeypatch, "exit 1", "true", arguments=("--only", "stage1")) == 0
    assert cells(test_all, "stage0")[1] == "never run" and cells(test_all, "stage1")[1] == "passed"
    monkeypatch.setattr(test_all, "commit", lambda: "def5678")
    assert given(test_all, monkeypatch, "exit 1", "true", arguments=("--only", "stage0")) == 1
    assert cells(test_all, "stage0")[1::3][:2] == ["failed", "def5678"]
    assert cells(test_all, "stage1")[1::3][:2] == ["passed", "abc1234"]


def test_what_was_finished_before_an_interruption_stays(test_all, monkeypatch):
    ran = test_all.run

    def interrupted(stage):
        if stage.name == "stage1":
            raise KeyboardInterrupt
        return ran(stage)

    monkeypatch.setattr(test_all, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        given(test_all, monkeypatch, "true", "true")
    assert cells(test_all, "stage0")[1] == "passed" and cells(test_all, "stage1")[1] == "never run"


def test_a_commit_that_moved_meanwhile_is_told(test_all, monkeypatch):
    commits = iter(["abc1234", "def5678"])
    monkeypatch.setattr(test_all, "commit", lambda: next(commits))
    assert given(test_all, monkeypatch, "true") == 0
    assert cells(test_all, "stage0")[4] == "abc1234, def5678 at its end"


def test_a_missing_program_is_no_success(test_all):
    outcome = test_all.run(test_all.Stage("a", "true", "", needs="no-such-program"))
    assert outcome.result == "not run: no-such-program is missing"


def test_variables_of_the_make_around_it_stay_outside(test_all, monkeypatch):
    monkeypatch.setenv("MAKEFLAGS", " -- ARGS=x")
    assert (
        test_all.run(test_all.Stage("a", '[ -z "$MAKEFLAGS" ] && [ "$LEVEL" = 1 ]', "", "", {"LEVEL": "1"})).result
        == "passed"
    )


def test_every_stage_is_a_target(test_all):
    targets = (TOOLS.parent / "Makefile").read_text()
    for stage in test_all.stages():
        words = [word for word in stage.command.split() if word not in ("make", "-k")]
        assert f"\n{words[0]}:" in targets, stage
