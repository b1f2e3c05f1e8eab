"""Circles in a graph of imports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

Graph = Mapping[str, set[str]]


def resolved(imported: Iterable[str], modules: set[str]) -> set[str]:
    """The modules behind imported names: `a.b` where that is a module, else `a`, which then has a `b`."""
    found = set()
    for name in imported:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        found |= {name} - {""}
    return found


def circles(graph: Graph) -> Iterator[list[str]]:
    """The shortest way of a module back to itself; one for each set of modules that has some."""
    seen = set()
    for start in sorted(graph):
        way = _way_back(graph, start)
        if way and frozenset(way) not in seen:
            seen.add(frozenset(way))
            yield way


def _way_back(graph: Graph, start: str) -> list[str]:
    ways = [[start]]
    reached: set[str] = set()
    while ways:
        way = ways.pop(0)
        for following in sorted(graph.get(way[-1], ())):
            if following == start:
                return [*way, start]
            if following not in reached:
                reached.add(following)
                ways.append([*way, following])
    return []
