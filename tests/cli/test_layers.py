"""`NAME.layers.jsonl`: a row for each matrix at each recorded step, once, whatever interrupts the run or the file."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal

import pytest
from cli_cases import TINY, at_step, flags
from lowrank_core.cli import checkpoint, files
from lowrank_core.cli.files import claimed
from lowrank_core.cli.layers import read
from lowrank_core.optim.monitor_rows import KEYS

MATRICES = [  # in the order of the groups: what is not projected comes first
    "embed.weight", "lm_head.weight", *(f"blocks.0.attention.{name}_proj.weight" for name in "qkvo"),
    *(f"blocks.0.ffn.{name}_proj.weight" for name in ("gate", "up", "down")),
]  # fmt: skip
RESUME = ("train", "--resume", "--out")


def recorded(folder, name="galore"):
    """(step, matrix) of each row, in order."""
    return [(row["step"], row["name"]) for row in read(folder / f"{name}.layers.jsonl")]


def steps(*which):
    return [(step, name) for step in which for name in MATRICES]


def test_a_row_for_each_matrix_at_each_recorded_step(tiny, cli, tmp_path):
    assert cli(*tiny, "--monitor-every", 5, "--compare", "muon", "adamw", "--out", tmp_path).code == 0
    assert sorted(path.name for path in tmp_path.glob("*.layers.jsonl")) == ["galore.layers.jsonl", "muon.layers.jsonl"]
    assert recorded(tmp_path) == recorded(tmp_path, "muon") == steps(5, 10, 15, 20)
    for row in read(tmp_path / "galore.layers.jsonl"):
        projected = row["name"] not in ("embed.weight", "lm_head.weight")
        assert tuple(row) == KEYS and row["rank"] == (4 if projected else None)
        assert (row["refreshes"] > 0) is projected and 0 < row["update_ratio"] < 1
        assert (row["overlap"] is None) == (not projected or row["step"] == 5)
    summary = json.loads((tmp_path / "summary.json").read_text())
    galore, muon, adamw = (row["layers"] for row in summary["runs"])
    assert (galore["matrices"], galore["projected"], galore["rank"]) == (9, 7, 4)
    assert 0 < galore["refresh_share"] < 1 and muon["refresh_seconds"] == 0 and adamw is None


def test_seven_times_interrupted(tiny, cli, tmp_path):
    """No row twice and none lost, though each part ends between a record and a checkpoint."""
    options = [*tiny, "--monitor-every", 2, "--save-every", 3]
    for cut in range(2, 23, 3):
        with at_step(cut, lambda: 1 / 0), pytest.raises(ZeroDivisionError):
            cli(*(options if cut == 2 else RESUME[:2]), "--out", tmp_path)
    assert cli(*RESUME, tmp_path).code == 0
    assert recorded(tmp_path) == steps(*range(2, 25, 2))


def test_none_is_recorded_where_none_is_wanted(tiny, cli, tmp_path):
    assert cli(*tiny, "--monitor-every", 0, "--out", tmp_path).code == 0
    assert not list(tmp_path.glob("*.layers.jsonl"))
    assert "What happens in the layers" not in (tmp_path / "report.html").read_text()
    assert cli(*RESUME, tmp_path, "--monitor-every", 5).code == 2


def test_refused_where_there_is_nothing_to_record(text, cli, tmp_path):
    for options, names in ((["--compare", "lisa"], "adamw or lisa"), ([], "adamw")):
        command = ["train", "--text", text, *TINY, "--optimizer", "adamw", *options, *flags(monitor_every=2)]
        outcome = cli(*command, "--out", tmp_path / "run")
        assert outcome.code == 2 and not (tmp_path / "run").exists()
        assert f"`--monitor-every` must come with an optimizer other than {names}; leave it out" in outcome.err


@pytest.mark.parametrize("part", ["finished", "stopped"])
@pytest.mark.parametrize("damage", ["lost", "garbage", "a row", "a whole record", "unfinished"])
def test_a_damaged_file_is_said_and_goes_on(tiny, cli, tmp_path, damage, part):
    """What can be read stays; the run computes the same."""
    if part == "stopped":
        with at_step(15, lambda: os.kill(os.getpid(), signal.SIGINT)):
            assert cli(*tiny, "--out", tmp_path).code == 130
    else:
        assert cli(*tiny, "--out", tmp_path).code == 0
    done = 16 if part == "stopped" else 24
    path = tmp_path / "galore.layers.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == done * len(MATRICES)
    fourth = slice(3 * len(MATRICES), 4 * len(MATRICES))
    if damage == "lost":
        path.unlink()
        kept, lost, missing = [], 0, done
    elif damage == "unfinished":  # as a killed process leaves it: of no record
        path.write_text("".join(lines) + lines[0][:30])
        kept, lost, missing = lines, 0, 0
    elif damage == "a whole record":
        kept, lost, missing = lines[: fourth.start] + lines[fourth.stop :], 0, 1
        path.write_text("".join(kept))
    else:
        bad = {"garbage": "\0\0{\n", "a row": lines[5].replace('"step": 1,', '"step": "x",')}[damage]
        assert bad != lines[5]
        kept, lost, missing = lines[:5] + lines[6:], 1, 0
        path.write_text("".join([*lines[:5], bad, *lines[6:]]))
    outcome = cli(*RESUME, tmp_path)
    assert outcome.code == 0, outcome.err
    said = f"note: galore.layers.jsonl has lost {lost} lines and all of {missing} of the {done} records that galore"
    assert (said in outcome.err) is (lost + missing > 0), outcome.err
    assert path.read_text().startswith("".join(kept))
    assert recorded(tmp_path)[len(kept) :] == (steps(*range(17, 25)) if part == "stopped" else [])
    assert "lost" not in cli(*RESUME, tmp_path).err or missing


def test_a_full_disk_is_one_sentence(tiny, cli, tmp_path, monkeypatch):
    """At a row, and where rows are made durable; the checkpoint before stands."""
    from lowrank_core.optim.monitor import Monitor

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name, where, what in (("row", Monitor, "_tell"), ("sync", files.os, "fsync")):
        folder = tmp_path / name
        with at_step(12, lambda where=where, what=what: monkeypatch.setattr(where, what, full)):
            outcome = cli(*tiny, "--out", folder)
        monkeypatch.undo()
        assert outcome.code == 2 and "cannot write" in outcome.err and "the last checkpoint is intact" in outcome.err
        assert "galore.layers.jsonl" in outcome.err and outcome.err.count("\n") == 1
        assert checkpoint.load(folder / "galore.checkpoint.safetensors")["progress"]["step"] == 12
        assert cli(*RESUME, folder).code == 0
        assert recorded(folder) == steps(*range(1, 25))


def test_skipped_steps_of_float16_have_no_record(tiny, cli, tmp_path):
    """A step of the optimizer is what counts; a loss scale that is too large takes none."""
    assert cli(*tiny, "--precision", "amp-fp16", "--out", tmp_path).code == 0
    taken = checkpoint.load(tmp_path / "galore.checkpoint.safetensors")["optimizer"]["state"][0]["step"]
    assert recorded(tmp_path) == steps(*range(1, int(taken) + 1))


def test_a_new_run_deletes_the_rows_of_the_old(finished_runs, text, cli, tmp_path):
    folder = shutil.copytree(finished_runs, tmp_path / "run")
    assert recorded(folder)
    options = ["train", "--text", text, *TINY, "--optimizer", "adamw", "--overwrite", "--out", folder]
    assert cli(*options).code == 0 and not recorded(folder)


def test_a_file_that_cannot_be_read(finished_runs, cli, tmp_path):
    folder = shutil.copytree(finished_runs, tmp_path / "run")
    (folder / "galore.layers.jsonl").unlink()
    (folder / "galore.layers.jsonl").mkdir()
    outcome = cli(*RESUME, folder)
    assert outcome.code == 2 and "cannot read" in outcome.err and "galore.layers.jsonl" in outcome.err
    with claimed(folder):
        pass
