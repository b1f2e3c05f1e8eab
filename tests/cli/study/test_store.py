"""Which runs are used again: those that today's sources, versions and text would make again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.study import sources, store
from lowrank_core.cli.study.contenders import CONTENDERS, GALORE
from lowrank_core.cli.study.store import Store, decided_by
from lowrank_core.cli.study.trial import Trial
from study_cases import TINY, faked, tiny_study, trial_of


@pytest.fixture
def study(tmp_path):
    return tiny_study(tmp_path)


@pytest.fixture
def run(study):
    trial = trial_of(study.contenders[2], TINY, 0, study.contenders[2].start)
    faked(study, trial, 2.5)
    return trial


def test_a_run_is_found_by_what_decides_it(study, run, tmp_path):
    assert study.store.find(run)["val_loss"] == 2.5
    assert Store(tmp_path).find(Trial.from_json(json.loads(Store(tmp_path).path(run).read_text()))) is not None
    for other in (
        Trial(run.size, 1, run.options),
        Trial(run.size, 0, {**run.options, "lr": 0.5}),
        Trial(run.size, 0, run.options, {"stagger": False}),
        Trial(run.size, 0, run.options, {}, "bitsandbytes"),
    ):
        assert other.name != run.name and study.store.find(other) is None


@pytest.mark.parametrize("key", ["sources", "text", "torch", "numpy", "own"])
def test_a_run_is_not_used_again_where_something_else_decides_it(study, run, tmp_path, monkeypatch, key):
    changed = {**decided_by(run), key: "other"}
    monkeypatch.setattr(store, "decided_by", lambda trial: changed)
    assert Store(tmp_path).find(run) is None
    assert Store(tmp_path, past=True).find(run) is not None, "the page shows it all the same"


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "is damaged"), (b'{"size": "small"', "is damaged"), (b"{}", "size is missing"), (b"[]", "is damaged"),
     (b'\xff\xfe', "is damaged"), (b"3", "is damaged")],
)  # fmt: skip
def test_a_damaged_run_file_is_named(study, run, tmp_path, data, says):
    path = study.store.path(run)
    path.write_bytes(data)
    for read in (lambda: Store(tmp_path).find(run), lambda: list(Store(tmp_path).records())):
        with pytest.raises(CliError, match=f"run file '{path}' .*{says}.*; delete it, and the run is made again"):
            read()


def test_every_file_says_what_it_was_made_with(study, run):
    record = study.store.find(run)
    assert {"command", "commit", "dirty", "versions", "machine", "date", "seed", "options", "threads"} <= set(record)
    assert str(Path.cwd()) not in json.dumps(record) and str(Path.home()) not in json.dumps(record)


# ---- the digest of the sources -------------------------------------------------------------------------------------


CHANGES = (
    ("optim/methods/fira.py", "\nX = 1\n", {"fira"}),
    ("optim/lisa.py", "\nX = 1\n", {"lisa"}),
    ("optim/methods/fira.py", "\n# a comment\n", set()),
    ("cli/loop.py", "\nX = 1\n", {"fira", "lisa", "adamw"}),
    ("cli/report.py", "\nX = 1\n", set()),
    ("../../cpp/src/core/gemm.cpp", "\nint x;\n", {"fira", "lisa"}),
    ("../../cpp/src/core/gemm.cpp", "\n// int x;\n/* int\ny; */", set()),
)


def test_a_change_counts_for_those_that_it_reaches(tmp_path, monkeypatch):
    root, unread = sources.PACKAGE.parents[1], shutil.ignore_patterns("*.so", "__pycache__")
    copy = shutil.copytree(sources.PACKAGE, tmp_path / "python/lowrank_core", ignore=unread)
    shutil.copytree(root / "cpp", tmp_path / "cpp")
    monkeypatch.setattr(sources, "PACKAGE", copy)

    def digests():
        sources.forget()
        return {name: sources.digest_of(name, None) for name in ("fira", "lisa", "adamw")}

    try:
        before = digests()
        for file, change, moved in CHANGES:
            path = copy / file
            kept = path.read_text()
            path.write_text(kept + change)
            after = digests()
            assert {name for name in before if before[name] != after[name]} == moved, (file, change)
            path.write_text(kept)
    finally:
        sources.forget()


def test_a_docstring_counts_for_nothing(tmp_path):
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text('"""One."""\n\ndef f(x):\n    """Adds."""\n    return x + 1  # one\n')
    other.write_text("def f(x):\n    return (x +\n        1)\n")
    assert sources.meaning(one) == sources.meaning(other)


def test_what_looks_like_a_comment_in_a_string_counts(tmp_path):
    one, other = tmp_path / "one.cpp", tmp_path / "other.cpp"
    one.write_text('auto x = "// a"; char c = \'"\'; // b\n')
    other.write_text('auto x = "// c"; char c = \'"\';\n')
    assert sources.meaning(one) != sources.meaning(other)
    other.write_text('auto x =   "// a";\nchar c = \'"\';\n')
    assert sources.meaning(one) == sources.meaning(other)


def test_foreign_optimizers_do_not_depend_on_ours():
    assert {sources.digest_of("adamw", None), sources.digest_of("adamw", "bitsandbytes")} == {
        sources.digest_of("adamw", None)
    }
    assert len({sources.digest_of(row.optimizer, row.foreign) for row in CONTENDERS}) == len(CONTENDERS) - 3
    assert sources.digest_of(GALORE.optimizer, None) != sources.digest_of("adamw", None)
