"""The command, with real runs: made, interrupted, gone on with, made again where sources change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from lowrank_core.cli.stop import StopRequest
from lowrank_core.cli.study import command, pool
from lowrank_core.cli.study.recheck import recheck
from lowrank_core.cli.study.stages import Study
from lowrank_core.cli.study.store import Store, decided_by
from study_cases import TINY, made, tiny_study, trial_of


def complete(study, hours=None) -> tuple[list[str], int | None]:
    with StopRequest(b"") as stop:
        return command.complete(study, stop, hours), stop.signum


def test_a_whole_study_is_made_and_goes_on_after_a_stop(tmp_path, monkeypatch):
    def study():
        rows = tiny_study(tmp_path).contenders
        return tiny_study(tmp_path, contenders=(rows[0], rows[2]), seeds=(1,), ablations=())

    finish = pool.finish

    def stopped_after_three(*arguments, **settings):
        for count, ended in enumerate(finish(*arguments, **settings), 1):
            yield ended
            if count == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(pool, "finish", stopped_after_three)
    assert complete(study()) == ([], signal.SIGTERM)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(files) >= 3 and all(json.loads(data)["val_loss"] > 0 for data in files.values())
    monkeypatch.setattr(pool, "finish", finish)

    assert complete(study()) == ([], None)
    assert files.items() <= {path.name: path.read_bytes() for path in tmp_path.iterdir()}.items()
    again = study()
    assert list(again.missing()) == [] and len(made(again)) == len(list(tmp_path.iterdir()))
    galore, same = again.row("galore"), again.point(again.row("galore"), again.small)
    losses = [again.loss(trial_of(galore, again.small, seed, same)) for seed in (0, 1)]
    assert len(set(losses)) == 2, "every seed has weights and batches of its own"


def test_a_run_that_is_measured_is_kept_though_its_process_is_told_to_end(tmp_path):
    """In a process of its own, which gets SIGTERM while it writes; before that it ends at once."""
    code = """
import os, signal, sys
from pathlib import Path
from lowrank_core.cli.study.pool import alone
def end(*_): os.kill(os.getpid(), signal.SIGTERM)
measure, keep = (lambda: end() or {}, Path) if sys.argv[1] == "measuring" else (dict, end)
alone(measure, lambda result: (keep(result), Path(sys.argv[2]).write_text(repr(sorted(result)))))
"""
    for when, status in (("writing", 0), ("measuring", -signal.SIGTERM)):
        path = tmp_path / when
        assert subprocess.run([sys.executable, "-c", code, when, path], check=False).returncode == status
        assert path.exists() is (when == "writing")


def test_no_run_is_begun_after_its_hours(tmp_path):
    assert complete(tiny_study(tmp_path), hours=0.0) == ([], None)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_is_told_and_the_others_are_made(tmp_path):
    row = tiny_study(tmp_path).contenders[2]
    waiting = [trial_of(row, TINY, 1, row.start), trial_of(row, TINY, 0, row.start, {"nonsense": 1})]
    names = [trial.name for trial in waiting]
    given = list(waiting)
    ended = pool.finish(lambda taken: given.pop() if given else None, decided_by, tmp_path, over=never, stop=never)
    assert {trial.name: made for trial, made in ended} == dict(zip(names, (True, False), strict=True))
    assert [path.stem for path in tmp_path.iterdir()] == names[:1]


@pytest.fixture
def one_run(tmp_path):
    """A study with one run of galore that was made."""
    study = tiny_study(tmp_path)
    trial = trial_of(study.contenders[2], TINY, 0, study.contenders[2].start)
    waiting = [trial]
    ended = pool.finish(lambda taken: waiting.pop() if waiting else None, decided_by, tmp_path, over=never, stop=never)
    assert [made for _, made in ended] == [True]
    return study, trial


def never() -> bool:
    return False


def older(study, trial, **more):
    """As if other sources had made it."""
    record = json.loads(study.store.path(trial).read_text())
    study.store.write(trial, {**record, "decided_by": {**record["decided_by"], "sources": "older"}, **more})


def test_two_runs_are_the_same_to_the_bit_and_so_is_adopted(one_run, tmp_path):
    study, trial = one_run
    older(study, trial)
    said: list[str] = []
    recheck(study.store, stop=never, tell=said.append)
    assert said == [f"{trial.name} comes out the same to the bit: 1 runs stand"]
    record = Store(tmp_path).find(trial)
    assert record["adopted"][0]["from"] == "older" and record["adopted"][0]["same_losses_of"] == trial.name


def test_a_run_that_comes_out_otherwise_is_made_again(one_run, tmp_path):
    study, trial = one_run
    older(study, trial, losses_sha256="others")
    said: list[str] = []
    recheck(study.store, stop=never, tell=said.append)
    assert said == [f"{trial.name} comes out otherwise: its 1 runs are made again"]
    assert Store(tmp_path).find(trial) is None


@pytest.mark.parametrize("key", ["torch", "text", "own"])
def test_another_version_or_text_is_no_matter_of_sources(one_run, tmp_path, key):
    study, trial = one_run
    record = json.loads(study.store.path(trial).read_text())
    study.store.write(trial, {**record, "decided_by": {**record["decided_by"], key: "other", "sources": "older"}})
    recheck(study.store, stop=never, tell=pytest.fail)
    assert Store(tmp_path).find(trial) is None


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--compare", "adamw"], "compare"),
        (["--steps", "5"], "steps"),
        (["--seed", "0"], "seed"),
        (["--resume"], "resume"),
        (["--overwrite"], "overwrite"),
        (["--threads", "2"], "threads"),
        (["--save-every", "7"], "save-every"),
    ],
)
def test_options_of_one_run_are_refused_before_anything_is_written(cli, tmp_path, words, named):
    outcome = cli("train", "--optimizer", "all", *words, "--out", tmp_path / "all")
    assert outcome.code == 2 and outcome.err.startswith(f"lowrank-core train: `--{named}` must come with one optimizer")
    assert not (tmp_path / "all").exists()


def test_the_command_writes_its_page_and_says_how_to_go_on(cli, tmp_path):
    outcome = cli("train", "--optimizer", "all", "--hours", "0", "--out", tmp_path)
    assert outcome.code == 0 and f"go on with: lowrank-core train --optimizer all --out {tmp_path}" in outcome.out
    assert "small-scale: rankings may flip at size" in (tmp_path / "optimizers.md").read_text().splitlines()[0]


def test_a_damaged_run_file_stops_the_command(cli, tmp_path):
    trial = next(Study(Store(tmp_path / "runs")).missing())
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / f"{trial.name}.json").write_text("{")
    outcome = cli("train", "--optimizer", "all", "--hours", "0", "--out", tmp_path)
    assert outcome.code == 2 and "is damaged" in outcome.err and outcome.err.count("\n") == 1


def test_no_run_can_be_resumed_as_the_comparison(cli, tiny, tmp_path):
    assert cli(*tiny, "--out", tmp_path).code == 0
    stored = json.loads((tmp_path / "run.json").read_text())
    stored["config"]["optimizer"] = "all"
    (tmp_path / "run.json").write_text(json.dumps(stored))
    outcome = cli("train", "--resume", "--out", tmp_path)
    assert outcome.code == 2 and "is damaged (optimizer is 'all')" in outcome.err
