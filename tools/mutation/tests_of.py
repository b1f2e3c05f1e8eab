"""The tests that are to notice a mutation of a file: those of the neighbourhood first, then wider ones.

A run ends with the first failure, so what is likely to fail, and quick, comes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from mutation.neighbourhoods import ANY_HEADER, FIRST, HEADERS, SLOW, THEN

T = TypeVar("T")


class Stages(NamedTuple):
    """What is run, one stage after another, until one fails."""

    compiled: tuple[str, ...]  # C++ tests
    python: tuple[tuple[str, ...], ...]
    more: bool = False  # whether there are wider tests, which are left out


def stages(path: str, tree: Path) -> Stages:
    """Those for a mutation of `path`, a file of the package or a header.

    Wider tests are run file by file: processor time is limited for one run, and folders of tests may take more than
    that, so that every mutant would seem to be caught.
    """
    compiled, (first, *wider) = _lists(path, tree)
    alone = tuple((file,) for files in wider for file in files)
    return Stages(compiled, (*((file,) for file in first), *alone) if path.endswith(".h") else (first, *alone))


def nearest(path: str, tree: Path) -> Stages:
    """The first of the lists alone."""
    compiled, (first, *wider) = _lists(path, tree)
    return Stages(compiled, (first,), bool(wider))


def _lists(path: str, tree: Path) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """C++ tests, and lists of files of Python tests, the nearest ones first."""
    if path.endswith(".h"):
        compiled, python = HEADERS.get(path.partition("lowrank_core/")[2].removesuffix(".h"), ANY_HEADER)
        return compiled, (_files(python, tree),)
    name = path.removeprefix("python/lowrank_core/")
    return (), _distinct((_of_longest(FIRST, name, ()), *_of_longest(THEN, name, ())), tree)


def _of_longest(rows: Iterable[tuple[str, T]], name: str, otherwise: T) -> T:
    """What the row says whose prefix of `name` is the longest."""
    return max(((len(prefix), what) for prefix, what in rows if name.startswith(prefix)), default=(0, otherwise))[1]


def _distinct(lists: Iterable[tuple[str, ...]], tree: Path) -> tuple[tuple[str, ...], ...]:
    """Files of each list, without those of an earlier one."""
    seen: set[str] = set()
    found = []
    for entries in lists:
        fresh = tuple(file for file in _files(entries, tree) if file not in seen)
        seen.update(fresh)
        found.append(fresh)
    return tuple(files for files in found if files)


def _files(entries: Iterable[str], tree: Path) -> tuple[str, ...]:
    """Test files in the order of `entries`, slow ones of a folder last."""
    found: dict[str, None] = {}
    for entry in entries:
        top = tree / "tests" / entry
        files = sorted(top.rglob("test_*.py"), key=lambda path: (any(word in path.name for word in SLOW), path))
        for path in files or [top]:
            found[path.relative_to(tree).as_posix()] = None
    return tuple(found)
