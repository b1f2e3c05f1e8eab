"""Bad input gets one sentence on stderr and exit code 2, and nothing is lost."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import at_step
from lowrank_core.cli import checkpoint
from lowrank_core.cli.files import run_files
from safetensors.torch import load_file, save_file

CHECKPOINT = "galore.checkpoint.safetensors"


def assert_refused(outcome, pattern: str) -> None:
    assert outcome.code == 2
    assert re.search(pattern, outcome.err), outcome.err
    assert outcome.err.startswith("lowrank-core") and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run_files(folder)}


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--optimizer", "sgd"], "--optimizer: invalid choice: 'sgd'"),
        (["--moment", "1"], "unrecognized arguments: --moment"),
        (["--optim", "adamw"], "unrecognized arguments: --optim"),
        (["--steps", "-3"], "--steps: must be a whole number >= 1, got '-3'"),
        (["--steps", "1.5"], "--steps: must be a whole number >= 1, got '1.5'"),
        (["--lr", "-1"], "--lr: must be a number > 0, got '-1'"),
        (["--lr", "nan"], "--lr: must be a number > 0, got 'nan'"),
        (["--scale", "inf"], "--scale: must be a number > 0, got 'inf'"),
        (["--betas", "0.9", "1"], "--betas: must be a number >= 0 and < 1, got '1'"),
        (["--val-fraction", "0"], "--val-fraction: must be a number > 0 and < 1, got '0'"),
        (["--rank", "16"], "`--rank` must be < 16, .* got 16; the largest allowed is 15"),
        (["--ffn", "3"], "`--rank` must be < 3, .* got 4; the largest allowed is 2"),
        (["--dim", "18"], "`--dim` must be a multiple of 2 \\* heads = 4, got 18"),
        (["--warmup", "25"], "`--warmup` must be at most `--steps`, 24, got 25"),
        (["--optimizer", "adamw"], "`--rank` must come with the optimizer galore, .* dct or trion, got adamw"),
        (["--compare", "galore"], "`--compare` must be another optimizer"),
        (["--compare-lr", "1"], "`--compare-lr` must come with `--compare`"),
        (["--compare-lr-others", "1"], "`--compare-lr-others` must come with `--compare`"),
        (["--compare-betas", "0.5", "0.5"], "`--compare-betas` must come with `--compare`"),
        (["--compare-weight-decay", "0"], "`--compare-weight-decay` must come with `--compare`"),
        (["--lr-others", "0"], "--lr-others: must be a number > 0, got '0'"),
        (["--resume", "--overwrite"], "not allowed with"),
        (["--hours", "1"], "`--hours` must come with `--optimizer all`"),
        (["--recheck"], "`--recheck` must come with `--optimizer all`"),
        (["--optimizer", "all"], "`--text` must come with one optimizer, got `--optimizer all`"),
        (["--compare", "all"], "--compare: invalid choice: 'all'"),
        (["--optimizer", "all", "--hours", "-1"], "--hours: must be a number >= 0, got '-1'"),
        (["--text", "/nowhere"], "got '/nowhere', which does not exist"),
        (["--text", "/dev/null"], "got '/dev/null', which is neither"),
        (["--text", sys.executable], "which is binary .* UTF-16 without"),
        (["--text", ""], "--text: must name a file or a folder, got ''"),
        (["--out", ""], "--out: must name a file or a folder, got ''"),
        (["--out", __file__], "`--out` must be a folder .* got '.*' \\(a file\\)"),
        (["--out", "/dev/null/run"], "`--out` must be a folder .* got '/dev/null/run' \\(Not a directory\\)"),
        (["--steps", "9" * 19], "--steps: must be a whole number <= 9223372036854775807, got '9999999999999999999'"),
        (["--seed", "9" * 5000], "--seed: must be a whole number <= .*, got '9{40}\\.\\.\\.' \\(5000 characters\\)"),
        (["--threads", "1025"], "--threads: must be a whole number <= 1024"),
        (["--rounding", "stochastic"], "`--rounding` must come with `--precision bf16`, got fp32"),
        (["--rounding", "nearest", "--precision", "amp-bf16"], "`--rounding` must come with `--precision bf16`"),
        (["--seq-len", "100000"], "`--text` must hold at least 200002 bytes"),
        (
            ["--dim", str(2**62), "--ffn", "9"],
            "optimizer state of galore take [0-9,.]+ MB .* lower `--dim`, `--layers`",
        ),
        (["--layers", str(2**62)], "optimizer state of galore take [0-9,.]+ MB .* lower `--dim`, `--layers`"),
        (["--accumulation", str(2**62)], "windows of 17 bytes take .* lower `--batch-size` or `--accumulation`"),
        (["--eval-batches", str(2**62)], "windows of 17 bytes take .* lower `--eval-batches` or `--batch-size`"),
        (["--out", "/proc/nothing"], "`--out` must be a folder that can be written"),
    ],
)
def test_bad_options(tiny, cli, tmp_path, options, pattern):
    out = [] if "--out" in options else ["--out", tmp_path / "run"]
    assert_refused(cli(*tiny, *out, *options), pattern)
    assert not (tmp_path / "run").exists()


def test_texts_that_are_none(tiny, cli, tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "folder").mkdir()
    for name, sentence in (
        ("empty.txt", "must hold text, got none in"),
        ("folder", "must hold text, got none in"),
        ("short.txt", "at least 34 bytes .* got 9"),
    ):
        assert_refused(cli("train", "--text", tmp_path / name, *tiny[3:], "--out", tmp_path / "run"), sentence)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_text(tiny, cli, tmp_path):
    (tmp_path / "secret.txt").write_text("text")
    (tmp_path / "secret.txt").chmod(0)
    assert_refused(cli(*tiny, "--text", tmp_path / "secret.txt", "--out", tmp_path / "run"), "cannot read .*Permission")


def test_folder_with_a_run(tiny, cli, tmp_path):
    assert cli(*tiny, "--out", tmp_path).code == 0
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    assert_refused(cli(*tiny, "--out", tmp_path), "must not hold a run")
    assert_refused(cli(*tiny, "--out", tmp_path, "--overwrite", "--text", "/nowhere"), "does not exist")
    assert contents(tmp_path) == before
    assert cli(*tiny, "--out", tmp_path, "--overwrite", "--steps", 8, "--lr", 0.005).code == 0
    assert checkpoint.load(tmp_path / CHECKPOINT)["progress"]["step"] == 8
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resume_needs_the_same_options_and_text(tiny, cli, tmp_path, text):
    copy = shutil.copytree(text, tmp_path / "text")
    options = [*tiny[:2], copy, *tiny[3:]]
    assert_refused(cli(*options, "--out", tmp_path / "run", "--resume"), "there is none in")
    assert cli(*options, "--out", tmp_path / "run").code == 0
    before = contents(tmp_path / "run")
    resume = ("train", "--resume", "--out", tmp_path / "run")
    assert_refused(cli(*resume, "--steps", 23), "`--steps` may only grow .*, from 24, got 23")
    assert_refused(cli(*resume, "--dim", 32), "`--dim` must stay 16 as in the run being resumed, got 32")
    assert_refused(cli(*resume, "--betas", 0.8, 0.9), "`--betas` must stay 0.9 0.999 .*, got 0.8 0.9")
    (copy / "file00.py").write_text("other text, " * 100)
    assert_refused(cli(*resume), "the text has changed since")
    assert contents(tmp_path / "run") == before


def test_two_processes_do_not_share_a_folder(tiny, cli, tmp_path):
    from lowrank_core.cli.files import claimed

    with claimed(tmp_path):
        assert_refused(cli(*tiny, "--out", tmp_path), "another process trains in")


@pytest.fixture
def finished(finished_runs, tmp_path):
    """The folder of a finished run, with what a test does to its checkpoint still to come."""
    return shutil.copytree(finished_runs, tmp_path / "run")


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.999])
def test_truncated_and_flipped_checkpoints(cli, finished, share):
    path = finished / CHECKPOINT
    good = path.read_bytes()
    at = int(share * len(good))
    for bad in (good[:at], flipped(good, at)):
        path.write_bytes(bad)
        assert_refused(
            cli("train", "--resume", "--out", finished), f"the checkpoint '{path}' is damaged|must be of format"
        )
        assert path.read_bytes() == bad  # kept for whoever wants to save it


def test_foreign_checkpoints(tiny, cli, finished, tmp_path):
    path = finished / CHECKPOINT
    resume = ("train", "--resume", "--out", finished)
    good = path.read_bytes()
    save_file(load_file(path), path)
    assert_refused(cli(*resume), "must be of format lowrank_core.train, version 1, got no format")
    assert cli(*tiny, "--compare", "adamw", "--out", tmp_path / "other", "--dim", 8, "--rank", 2).code == 0
    shutil.copy(tmp_path / "other" / CHECKPOINT, path)
    assert_refused(cli(*resume), "belongs to another run: `--dim` is 8 there, 16 here")
    tree = checkpoint.load(tmp_path / "other" / CHECKPOINT)
    checkpoint.save(path, {**tree, "run": "adamw"})
    assert_refused(cli(*resume), "is one of adamw")
    path.write_bytes(good)
    assert cli(*resume).code == 0


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("{", "", "run.json' is damaged"),
        ('"config"', '"configs"', "damaged \\('config' is missing\\)"),
        ('"dim": 16', '"dim": "wide"', "damaged \\(dim is 'wide'\\)"),
        ('"dim": 16', '"dim": 0', "damaged \\(dim is 0\\)"),
        ('"dim": 16', '"dim": null', "damaged \\(dim is None\\)"),
        ('"dim": 16', '"dim": 16, "wings": 2', "damaged .*wings"),
        ('"optimizer": "galore"', '"optimizer": "sgd"', "damaged \\(optimizer is 'sgd'\\)"),
        ('"lr": 0.01', '"lr": NaN', "damaged \\(lr is nan\\)"),
        ('"threads": 1', '"threads": true', "damaged"),
        ('"threads": 1', '"threads": 1e9', "damaged \\(threads is 1000000000.0\\)"),
    ],
)
def test_damaged_description(cli, finished, old, new, sentence):
    path = finished / "run.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert_refused(cli("train", "--resume", "--out", finished), sentence)


def test_deleted_checkpoint_starts_that_optimizer_anew(cli, finished):
    """The remedy that the sentence about a damaged checkpoint names."""
    metrics = (finished / "metrics.jsonl").read_text()
    (finished / CHECKPOINT).unlink()
    assert cli("train", "--resume", "--out", finished).code == 0
    assert (finished / "metrics.jsonl").read_text().count("\n") == metrics.count("\n")


def test_diverged_run_keeps_its_checkpoint(tiny, cli, tmp_path):
    options = ["--lr", 1e30, "--compare-lr", 1, "--clip", 0, "--save-every", 1, "--warmup", 24, "--compare", "adamw"]
    assert_refused(cli(*tiny, "--out", tmp_path, *options), "galore diverged at step .* lower its learning rate")
    tensors = load_file(tmp_path / CHECKPOINT)
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


@pytest.mark.parametrize("fail_at", ["checkpoint", "metrics"])
def test_full_disk(tiny, cli, tmp_path, monkeypatch, fail_at):
    """No space left while writing: the checkpoint before stands, and the run goes on from it once there is room."""
    from lowrank_core.cli import files, metrics

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole = cli(*tiny, "--out", tmp_path / "whole")
    with at_step(12, lambda: monkeypatch.setattr((files if fail_at == "checkpoint" else metrics).os, "fsync", full)):
        assert_refused(cli(*tiny, "--out", tmp_path / "cut"), "No space left on device.*is intact.*`--resume`")
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "cut" / CHECKPOINT)["progress"]["step"] == 12
    assert not list((tmp_path / "cut").glob("*.tmp"))
    assert (
        cli("train", "--resume", "--out", tmp_path / "cut").out.splitlines()[-3].split()[:3]
        == (whole.out.splitlines()[-3].split()[:3])
    )


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
def test_disk_that_is_really_full(tiny, cli, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mount is not allowed here")
    try:
        assert_refused(cli(*tiny, "--out", disk / "run"), "No space left on device")
        assert not list((disk / "run").glob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert cli("train", "--resume", "--out", disk / "run").code == 0
    finally:
        subprocess.run(["umount", disk], check=True)
