"""The text to train on: found, checked, split by file, and cut into windows by (seed, step) alone."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank_core.cli.errors import CliError

# Third-party packages and tests differ between installations of one Python version; the rest does not.
STDLIB_SKIP = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
SEPARATOR = b"\0"  # between files; no accepted text holds it


@dataclass(frozen=True)
class Corpus:
    """Text as bytes: `train` and `val` `[n]` uint8; `sha256` covers both; `split` says how they were parted."""

    train: Tensor
    val: Tensor
    files: int
    skipped: int
    split: str
    sha256: str


def load_corpus(paths: Sequence[str], *, val_fraction: float, window: int) -> Corpus:
    """Reads all text under `paths` (none: the standard library's `.py` files) and splits it.

    A file belongs to the validation part if the hash of its name relative to the given path is below
    `val_fraction`, so its side does not depend on the other files. Where that leaves a part shorter than a
    window (a single file, say) the end of the whole text is held out instead.

    Raises:
      CliError: a path is missing or unreadable, a file is binary, or the text is empty or too short.
    """
    found = sorted(_files(paths), key=lambda file: file.order)
    texts = [(file.name, text) for file in found if (text := _read(file))]
    if not texts:
        raise CliError(f"`--text` must hold text, got none in {_where(paths)}; name files or folders with text")
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for name, text in texts:
        parts[_hash01(name) < val_fraction].append(text)
    train, val = (SEPARATOR.join(part) for part in parts)
    split = "by file"
    if min(len(train), len(val)) < window:
        whole = SEPARATOR.join(text for _, text in texts)
        cut = len(whole) - max(window, round(len(whole) * val_fraction))
        train, val, split = whole[: max(0, cut)], whole[max(0, cut) :], "by position"
        if len(train) < window:
            raise CliError(
                f"`--text` must hold at least {2 * window} bytes (a training and a validation window), "
                f"got {len(whole)} in {_where(paths)}; add text or lower `--seq-len`"
            )
    digest = hashlib.sha256(len(train).to_bytes(8, "little") + train + val).hexdigest()
    return Corpus(_tensor(train), _tensor(val), len(texts), len(found) - len(texts), split, digest)


def training_batch(text: Tensor, *, seed: int, step: int, size: int, window: int) -> Tensor:
    """`[size, window]` int64 windows of `text` `[n]`; a function of its arguments: a resume needs no state."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))
    return _windows(text, random.integers(0, len(text) - window + 1, size), window)


def validation_windows(text: Tensor, *, count: int, window: int) -> Tensor:
    """`[count, window]` int64 windows, evenly spread over `text` `[n]`, always the same."""
    return _windows(text, np.linspace(0, len(text) - window, count).astype(np.int64), window)


def _windows(text: Tensor, starts: NDArray[np.int64], window: int) -> Tensor:
    return text[torch.from_numpy(starts)[:, None] + torch.arange(window)].long()


@dataclass(frozen=True)
class _File:
    """`name` is relative to the path given by the user (the `root`-th); `chosen` if that is this very file."""

    root: int
    name: str
    path: Path
    chosen: bool = False

    @property
    def order(self) -> tuple[int, str]:
        return self.root, self.name


def _files(paths: Sequence[str]) -> Iterator[_File]:
    if not paths:
        found = _walk(0, Path(sysconfig.get_path("stdlib")), STDLIB_SKIP)
        yield from (file for file in found if file.path.suffix == ".py")
    for number, given in enumerate(paths):
        if os.path.isdir(given):
            yield from _walk(number, Path(given), frozenset({"__pycache__"}))
        elif os.path.isfile(given):
            yield _File(number, Path(given).name, Path(given), chosen=True)
        else:
            problem = "is neither" if os.path.exists(given) else "does not exist"
            raise CliError(f"`--text` must name files or folders, got '{given}', which {problem}")


def _walk(number: int, root: Path, skip: frozenset[str]) -> Iterator[_File]:
    """Regular files under `root`, without hidden ones."""
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if name not in skip and not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield _File(number, path.relative_to(root).as_posix(), path)


def _read(file: _File) -> bytes:
    """The file's bytes; empty if it is binary (holds a NUL byte) and was merely found in a folder."""
    try:
        data = file.path.read_bytes()
    except OSError as failure:
        _refuse(failure)
    if SEPARATOR not in data:
        return data
    if file.chosen:
        raise CliError(f"`--text` must name text, got '{file.path}', which is binary (it holds a NUL byte)")
    return b""


def _refuse(failure: OSError) -> NoReturn:
    raise CliError(
        f"cannot read '{failure.filename}' ({failure.strerror}); make it readable or leave it out of `--text`"
    ) from failure


def _hash01(name: str) -> float:
    """[0, 1), the same on every machine (Python's own `hash` is salted)."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:6], "big") / 2**48


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _where(paths: Sequence[str]) -> str:
    return ", ".join(f"'{path}'" for path in paths) or f"'{sysconfig.get_path('stdlib')}'"
