"""The text: what is read, how it is split, which windows a step sees."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from lowrank_core.cli.data import training_batch, validation_windows
from lowrank_core.cli.text import load_corpus


def load(*paths: Path, val_fraction: float = 0.25, window: int = 17):
    return load_corpus([str(path) for path in paths], val_fraction=val_fraction, window=window)


def files_in(part: np.ndarray) -> list[bytes]:
    return part.tobytes().split(b"\0")


def test_split_is_by_file_and_deterministic(text):
    corpus = load(text)
    originals = {path.read_bytes() for path in text.iterdir()}
    train, val = set(files_in(corpus.train)), set(files_in(corpus.val))
    assert corpus.split == "by file" and corpus.files == 24 and corpus.skipped == 0
    assert train | val == originals and not train & val and train and val
    assert load(text).sha256 == corpus.sha256


def test_side_of_a_file_depends_on_its_own_name_alone(text, tmp_path):
    val = set(files_in(load(text).val))
    for path in sorted(text.iterdir())[:12]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    kept = {path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files_in(load(tmp_path).val)) == val & kept


def test_side_is_known_in_advance(tmp_path):
    """SHA-256 of the name, so that no machine and no Python version splits otherwise."""
    for name in "abcdefgh":
        (tmp_path / name).write_text(f"{name}: " + "text " * 10)
    assert [part[:1].decode() for part in files_in(load(tmp_path).val)] == list("bcdef")


def test_single_file_is_split_by_position(text):
    path = text / "file00.py"
    corpus = load(path)
    data = path.read_bytes()
    assert corpus.split == "by position" and corpus.files == 1
    assert corpus.train.tobytes() + corpus.val.tobytes() == data
    assert len(corpus.val) == round(0.25 * len(data))


def test_short_text_still_gives_both_windows(tmp_path):
    (tmp_path / "short.txt").write_text("x" * 34)
    corpus = load(tmp_path / "short.txt")
    assert len(corpus.train) == len(corpus.val) == 17


def test_binary_empty_and_hidden_files_of_a_folder_are_left_out(text, tmp_path):
    for path in text.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / ".hidden").write_text("hidden")
    corpus = load(tmp_path)
    assert (corpus.files, corpus.skipped) == (24, 2)
    assert corpus.sha256 == load(text).sha256


def test_files_and_folders_together(text):
    corpus = load(text / "file03.py", text / "file04.py")
    assert corpus.files == 2


def test_standard_library_without_tests_and_packages():
    corpus = load()
    root = Path(sysconfig.get_path("stdlib"))
    data = corpus.train.tobytes() + b"\0" + corpus.val.tobytes()
    assert (root / "argparse.py").read_bytes() in data
    assert len(data) > 5e6
    assert Path(torch.__file__).read_bytes() not in data


def test_batches_are_a_function_of_seed_and_step(text):
    train = load(text).train
    keys = [(0, 1), (0, 2), (1, 1)]
    first = [training_batch(train, seed=seed, step=step, size=5, window=17) for seed, step in keys]
    again = [training_batch(train, seed=seed, step=step, size=5, window=17) for seed, step in reversed(keys)][::-1]
    for one, other in zip(first, again, strict=True):
        assert one.shape == (5, 17) and one.dtype == torch.int64 and torch.equal(one, other)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_batches_leave_the_global_generators_alone(text):
    before = torch.get_rng_state()
    training_batch(load(text).train, seed=0, step=1, size=5, window=17)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("length", [17, 18, 1000])
def test_windows_reach_both_ends(length):
    data = (np.arange(length) % 251).astype(np.uint8)
    windows = validation_windows(data, count=4, window=17)
    assert windows[0].tolist() == data[:17].tolist() and windows[-1].tolist() == data[-17:].tolist()
    drawn = training_batch(data, seed=0, step=0, size=100, window=17)
    assert drawn.shape == (100, 17) and int(drawn.max()) < 251
