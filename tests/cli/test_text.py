"""Which files are text, in which encoding, and that none is read twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.text import load_corpus

LINES = "Größe, 寸法, размер\r\n" * 20


def load(*paths: Path, out: Path | None = None, val_fraction: float = 0.25):
    return load_corpus([str(path) for path in paths], val_fraction=val_fraction, window=17, out=out)


def content(corpus) -> set[bytes]:
    """The files read. The side of each is another test's."""
    return set((corpus.train.tobytes() + b"\0" + corpus.val.tobytes()).split(b"\0"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_encodings_are_read_by_their_mark(tmp_path, encoding):
    path = tmp_path / "wide.txt"
    path.write_bytes(("\ufeff" + LINES).encode(encoding))
    corpus = load(path)
    assert corpus.train.tobytes() + corpus.val.tobytes() == LINES.encode()


@pytest.mark.parametrize(
    "data", [LINES.encode(), LINES.encode("utf-8-sig"), LINES.encode("gbk", "replace"), b"\xff\xfe\xff"]
)
def test_other_bytes_stay_as_they_are(tmp_path, data):
    """Windows' line ends, a mark of UTF-8, other encodings, and a mark with nothing right behind it."""
    path = tmp_path / "text.txt"
    path.write_bytes(data * 21)
    corpus = load(path)
    assert corpus.train.tobytes() + corpus.val.tobytes() == data * 21


@pytest.mark.parametrize(
    "data", [LINES.encode("utf-16-le"), b"\xff\xfe" + LINES.encode("utf-16-le") + b"\0", b"\xff\xfe\0\0a\0b\0"]
)
def test_wide_text_without_a_mark_or_cut_off_is_named(tmp_path, data):
    path = tmp_path / "wide.txt"
    path.write_bytes(data)
    with pytest.raises(CliError, match=r"binary .* convert it to UTF-8 if it is UTF-16 without a byte order mark"):
        load(path)


def links(folder: Path, text: Path) -> list[Path]:
    """Other ways to the first file of `text`, and to all of it."""
    first = text / "file00.py"
    (folder / "symlink").symlink_to(first)
    os.link(first, folder / "hardlink")
    (folder / "folder").symlink_to(text)
    return [folder / "symlink", folder / "hardlink", folder / "folder", first, Path(os.path.relpath(first))]


@pytest.mark.parametrize("way", range(5))
@pytest.mark.parametrize("first", [False, True])
def test_a_file_given_twice_is_read_once(text, tmp_path, way, first):
    """Otherwise its copy could be held out, and what is trained on would be validated on."""
    copy = Path(shutil.copytree(text, tmp_path / "text"))
    other = links(tmp_path, copy)[way]
    alone = load(copy)
    both = load(other, copy) if first else load(copy, other)
    assert both.files == alone.files == 24 and both.repeated == (24 if other.is_dir() else 1)
    assert content(both) == content(alone) and len(both.train) + len(both.val) == len(alone.train) + len(alone.val)


def test_links_within_a_folder_are_no_second_copy(text, tmp_path):
    copy = Path(shutil.copytree(text, tmp_path / "text"))
    links(copy, copy)
    (copy / "nothing").symlink_to("nowhere")
    (copy / "loop").symlink_to("loop")
    (copy / "up").symlink_to(copy)
    corpus = load(copy)
    assert corpus.files == 24 and corpus.repeated == 2 and content(corpus) == content(load(text))


def test_binary_file_in_a_folder_is_refused_where_it_is_named_too(text, tmp_path):
    copy = Path(shutil.copytree(text, tmp_path / "text"))
    (copy / "picture").write_bytes(b"\0" * 100)
    assert load(copy).skipped == 1
    for paths in ((copy, copy / "picture"), (copy / "picture", copy)):
        with pytest.raises(CliError, match=r"'.*picture', which is binary"):
            load(*paths)


def test_what_a_run_wrote_is_no_text(text, tmp_path, tiny, cli):
    """A run in the folder of its own text can be resumed: the text does not change by it."""
    copy = Path(shutil.copytree(text, tmp_path / "text"))
    alone = load(copy)
    run = ["train", "--text", copy, *tiny[3:], "--steps", 2, "--warmup", 1, "--out", copy]
    assert cli(*run).code == 0 and (copy / "report.html").exists()
    assert load(copy, out=copy).sha256 == alone.sha256 != load(copy).sha256
    assert cli("train", "--resume", "--out", copy, "--steps", 3).code == 0


def test_order_is_that_of_the_bytes(tmp_path):
    """The same in every locale, in which undecodable names look different."""
    for name in (b"\xff", "é".encode(), b"z", "\U0001f600".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name.hex().encode() * 20)
    corpus = load(tmp_path, val_fraction=1e-9)
    whole = corpus.train.tobytes() + corpus.val.tobytes()
    assert [part[:2] for part in whole.split(b"\0")] == [b"7a", b"c3", b"f0", b"ff"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "which does not exist"),
        (lambda path: path.symlink_to("nowhere"), "which is a link to nothing"),
        (lambda path: path.symlink_to(path), "which fails: Too many levels of symbolic links"),
        (os.mkfifo, "which is neither; save what a pipe or a device gives"),
    ],
)
def test_paths_that_are_no_text(tmp_path, make, sentence):
    path = tmp_path / "text"
    make(path)
    with pytest.raises(CliError, match=sentence):
        load(path)
    with pytest.raises(CliError, match="must hold text, got none"):
        load(tmp_path)


def test_name_too_long_and_file_as_folder(tmp_path):
    (tmp_path / "file").write_text(LINES)
    for path, reason in ((tmp_path / ("x" * 300), "File name too long"), (tmp_path / "file" / "x", "Not a directory")):
        with pytest.raises(CliError, match=f"which fails: {reason}"):
            load(path)


def test_giant_line(tmp_path):
    path = tmp_path / "line"
    path.write_bytes(b"x" * 5_000_000)
    corpus = load(path)
    assert len(corpus.train) + len(corpus.val) == 5_000_000
