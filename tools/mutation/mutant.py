"""One mutation of one file, and how those to try are drawn."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple


class Mutant(NamedTuple):
    """`new` in place of the characters from `start` to `end` of a file."""

    path: str  # from the root of the tree
    kind: str
    start: int
    end: int
    new: str

    def applied(self, source: str) -> str:
        """The file with the mutation."""
        return source[: self.start] + self.new + source[self.end :]

    def line(self, source: str) -> int:
        """The number of the line that changes first."""
        return source.count("\n", 0, self.start) + 1

    def change(self, source: str) -> tuple[str, str]:
        """The lines that change, before and after."""
        first, mutated = source.rfind("\n", 0, self.start) + 1, self.applied(source)
        shift = len(mutated) - len(source)
        last = source.find("\n", max(self.end, self.start + 1) - 1)
        last = len(source) if last < 0 else last
        return source[first:last].strip(), mutated[first : last + shift].strip()

    def key(self, source: str) -> str:
        """Of the site, the change, and the source that it is made in."""
        return f"{self.path}:{self.start}:{self.end}:{self.new} of {digest(source)}"


def digest(text: str) -> str:
    """A short hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def between(path: str, kind: str, source: str, mutated: str) -> Mutant:
    """The mutation that turns `source` into `mutated`."""
    start = _alike(source, mutated)
    tail = min(_alike(source[::-1], mutated[::-1]), min(len(source), len(mutated)) - start)
    return Mutant(path, kind, start, len(source) - tail, mutated[start : len(mutated) - tail])


def _alike(a: str, b: str) -> int:
    """How many characters at the beginning are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class Site(NamedTuple):
    """A place that an operator of mutation can change, and how."""

    path: str
    kind: str
    start: int
    end: int
    mutated: Callable[[], str | None]  # the whole file; None where nothing else comes of it


def drawn(sites: Iterable[Site], sources: dict[str, str], seed: int) -> Iterator[Mutant]:
    """Mutants in an order drawn by `seed`, one for each place and kind, as long as they are asked for.

    Each place has a number of its own, from the seed, its file, its line and its rank among equal ones: an edit
    elsewhere leaves the order of the others as it is.
    """
    places: dict[tuple[str, str, int, int], list[Site]] = {}
    for site in sites:
        places.setdefault((site.path, site.kind, site.start, site.end), []).append(site)
    seen: Counter[str] = Counter()
    numbered = []
    for path, kind, start, end in sorted(places):
        line, _ = Mutant(path, kind, start, end, "").change(sources[path])
        name = f"{seed} {path} {kind} {line} {sources[path][start:end]}"
        numbered.append((digest(f"{name} {seen[name]}"), (path, kind, start, end)))
        seen[name] += 1
    for number, place in sorted(numbered):
        variants, first = places[place], int(number, 16)
        for site in (variants[(first + i) % len(variants)] for i in range(len(variants))):
            mutated = site.mutated()
            if mutated is not None:
                yield between(site.path, site.kind, sources[site.path], mutated)
                break
