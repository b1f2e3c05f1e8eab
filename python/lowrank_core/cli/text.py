"""The text to train on: found, read, checked and split by file. Needs no torch: a wrong path is told at once."""

from __future__ import annotations

import codecs
import hashlib
import os
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import is_run_file

# Third-party packages and tests differ between installations of one Python version; the rest does not.
STDLIB_SKIP = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
SEPARATOR = b"\0"  # between files; no accepted text holds it
# The longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Corpus:
    """Text as bytes: `train` and `val` `[n]` uint8, read-only; `sha256` covers both; `split` says how they were parted.

    `files` were read, `skipped` were empty or binary, `repeated` were met again by another path.
    """

    train: NDArray[np.uint8]
    val: NDArray[np.uint8]
    files: int
    skipped: int
    repeated: int
    split: str
    sha256: str


def load_corpus(paths: Sequence[str], *, val_fraction: float, window: int, out: Path | None = None) -> Corpus:
    """Reads all text under `paths` (none: the standard library's `.py` files) and splits it.

    A file belongs to the validation part if the hash of its name relative to the given path is below
    `val_fraction`, so its side does not depend on the other files. Where that leaves a part shorter than a
    window (a single file, say) the end of the whole text is held out instead. A file that is met more than once,
    through a link or inside a folder that is given too, is read once. What a run wrote into the folder `out` is
    no text.

    Raises:
      CliError: a path is missing or unreadable, a file is binary, or the text is empty or too short.
    """
    met = list(_files(paths, None if out is None else os.path.realpath(out)))
    found = _once(met)
    texts = [(file.name, text) for file in found if (text := _read(file))]
    if not texts:
        raise CliError(f"`--text` must hold text, got none in {_where(paths)}; name files or folders with text")
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for name, text in texts:
        parts[_hash01(name) < val_fraction].append(text)
    train, val = (SEPARATOR.join(part) for part in parts)
    split = "by file"
    if min(len(train), len(val)) < window:
        train, val = _split_by_position(SEPARATOR.join(text for _, text in texts), val_fraction, window, paths)
        split = "by position"
    return Corpus(
        train=np.frombuffer(train, np.uint8),
        val=np.frombuffer(val, np.uint8),
        files=len(texts),
        skipped=len(found) - len(texts),
        repeated=len(met) - len(found),
        split=split,
        sha256=hashlib.sha256(len(train).to_bytes(8, "little") + train + val).hexdigest(),
    )


def _split_by_position(whole: bytes, val_fraction: float, window: int, paths: Sequence[str]) -> tuple[bytes, bytes]:
    cut = len(whole) - max(window, round(len(whole) * val_fraction))
    if cut < window:
        raise CliError(
            f"`--text` must hold at least {2 * window} bytes (a training and a validation window), "
            f"got {len(whole)} in {_where(paths)}; add text or lower `--seq-len`"
        )
    return whole[:cut], whole[cut:]


@dataclass(frozen=True)
class _File:
    """`name` is relative to the path given by the user (the `root`-th); `chosen` if that is this very file."""

    root: int
    name: str
    path: Path
    identity: tuple[int, int]
    chosen: bool = False

    @property
    def order(self) -> tuple[int, bytes]:
        return self.root, os.fsencode(self.name)  # not the str, which depends on the locale


def _once(met: list[_File]) -> list[_File]:
    """In order, without those that were met before: the same device and inode."""
    kept: dict[tuple[int, int], _File] = {}
    for file in sorted(met, key=lambda file: file.order):
        first = kept.setdefault(file.identity, file)
        kept[file.identity] = replace(first, chosen=first.chosen or file.chosen)
    return list(kept.values())


def _files(paths: Sequence[str], out: str | None) -> Iterator[_File]:
    if not paths:
        found = _walk(0, Path(sysconfig.get_path("stdlib")), STDLIB_SKIP, None)
        yield from (file for file in found if file.path.suffix == ".py")
    for number, given in enumerate(paths):
        try:
            status = os.stat(given)
        except OSError as failure:
            problem = "does not exist" if isinstance(failure, FileNotFoundError) else f"fails: {failure.strerror}"
            problem = "is a link to nothing" if problem == "does not exist" and os.path.islink(given) else problem
            raise CliError(f"`--text` must name files or folders, got '{given}', which {problem}") from failure
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(number, Path(given), frozenset({"__pycache__"}), out)
        elif stat.S_ISREG(status.st_mode):
            yield _File(number, Path(given).name, Path(given), (status.st_dev, status.st_ino), chosen=True)
        else:
            raise CliError(
                f"`--text` must name files or folders, got '{given}', which is neither; "
                "save what a pipe or a device gives to a file first"
            )


def _walk(number: int, root: Path, skip: frozenset[str], out: str | None) -> Iterator[_File]:
    """Regular files under `root`, without hidden ones. Links to files are followed, links to folders are not."""
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if name not in skip and not name.startswith(".")]
        own = out is not None and os.path.realpath(folder) == out
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or (own and is_run_file(name)):
                continue
            try:
                status = path.stat()
            except OSError:  # a link to nothing, a loop of links
                continue
            if stat.S_ISREG(status.st_mode):
                yield _File(number, path.relative_to(root).as_posix(), path, (status.st_dev, status.st_ino))


def _read(file: _File) -> bytes:
    """The file's bytes; empty if it is binary (holds a NUL byte) and was merely found in a folder."""
    try:
        data = _as_utf8(file.path.read_bytes())
    except OSError as failure:
        _refuse(failure)
    if SEPARATOR not in data:
        return data
    if file.chosen:
        raise CliError(
            f"`--text` must name text, got '{file.path}', which is binary (it holds a NUL byte); "
            "leave it out, or convert it to UTF-8 if it is UTF-16 without a byte order mark"
        )
    return b""


def _as_utf8(data: bytes) -> bytes:
    """UTF-16 and UTF-32 with a byte order mark become UTF-8; anything else stays as it is."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding).encode()
            except UnicodeError:
                continue
    return data


def _refuse(failure: OSError) -> NoReturn:
    raise CliError(
        f"cannot read '{failure.filename}' ({failure.strerror}); make it readable or leave it out of `--text`"
    ) from failure


def _hash01(name: str) -> float:
    """[0, 1), the same on every machine (Python's own `hash` is salted)."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:6], "big") / 2**48


def _where(paths: Sequence[str]) -> str:
    return ", ".join(f"'{path}'" for path in paths) or f"'{sysconfig.get_path('stdlib')}'"
