"""tools/same_bits.py: what it takes for a difference between two revisions, and what it compiles anew."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOOLS = Path(__file__).resolve().parents[1] / "tools"
PLACES = ("generic, 1 thread", "generic, 2 threads")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Imports from tools/, without leaving modules of such general names behind."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.syspath_prepend(str(TOOLS / "probe"))
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(TOOLS)):
            del sys.modules[name]


@pytest.fixture
def same_bits(tools: None) -> ModuleType:
    return import_module("same_bits")


def everywhere(**hashes: str) -> dict[str, dict[str, str]]:
    return {place: dict(hashes) for place in PLACES}


def test_equal_results_are_clean(same_bits: ModuleType) -> None:
    found = same_bits.compare(everywhere(a="1", b="2"), everywhere(a="1", b="2"))
    assert found == same_bits.Comparison(4, {}, {}, {})
    assert list(same_bits.lines(found, "old", "new", 2)) == ["same_bits: 4 results at 2 places: no calls differ"]


def test_what_differs_is_named_with_its_place(same_bits: ModuleType) -> None:
    old, new = everywhere(a="1", b="2"), everywhere(a="1", b="3")
    new[PLACES[1]]["a"] = "ValueError"  # refused now
    found = same_bits.compare(old, new)
    assert found.differ == {"a": [PLACES[1]], "b": list(PLACES)}
    assert list(same_bits.lines(found, "old", "new", 2)) == [
        "differs: a (generic, 2 threads)",
        "differs: b (everywhere)",
        "same_bits: 4 results at 2 places: 2 calls differ",
    ]


def test_what_one_revision_lacks_is_listed_and_does_not_differ(same_bits: ModuleType) -> None:
    found = same_bits.compare(everywhere(a="1", gone="2"), everywhere(a="1", come="2"))
    assert (found.differ, list(found.only_old), list(found.only_new)) == ({}, ["gone"], ["come"])
    assert list(same_bits.lines(found, "old", "new", 2))[:2] == ["only in old: gone", "only in new: come"]


def test_levels_that_one_revision_lacks_are_left_out(same_bits: ModuleType) -> None:
    old, new = everywhere(a="1"), everywhere(a="1")
    old["avx2, 1 thread"] = {"a": "4"}
    assert same_bits.compare(old, new) == same_bits.Comparison(2, {}, {}, {})


def test_a_hash_sees_every_bit(tools: None) -> None:
    digest = import_module("probe").digest
    zero, nan = torch.zeros(2), torch.full((2,), torch.nan)
    assert digest(nan) == digest(nan.clone())
    others = [zero, -zero, nan, zero.double(), zero[:1], zero[:, None], [zero], [zero, zero], None, 0, 0.0]
    assert len({digest(other) for other in others}) == len(others)
    assert digest([zero.expand(3, 2), 1]) == digest((torch.zeros(3, 2), 1))


def test_a_refusal_is_a_result_and_an_unknown_option_is_none(tools: None) -> None:
    outcome = import_module("probe").outcome

    def refuse() -> None:
        raise ValueError("no")

    assert outcome(refuse) == "ValueError"
    assert outcome(lambda: refuse(much=1)) is None
    assert outcome(lambda: len(3)) == "TypeError"


def test_only_what_changed_is_compiled(tools: None, tmp_path: Path) -> None:
    trees = import_module("same_bits_trees")
    tree, to = tmp_path / "tree", tmp_path / "to"
    for name in ("CMakeLists.txt", "cpp/src/a.cpp", "cpp/src/b.cpp", "python/lowrank_core/c.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    trees.mirror(tree, to)
    before, first = (to / "cpp/src/a.cpp").stat().st_mtime_ns, trees.digest(tree)
    (tree / "python/lowrank_core/c.py").write_text("other")
    assert trees.digest(tree) == first
    (tree / "cpp/src/b.cpp").rename(tree / "cpp/src/d.cpp")
    (tree / "CMakeLists.txt").write_text("other")
    trees.mirror(tree, to)
    assert trees.digest(tree) != first and trees.digest(tree) == trees.digest(to)
    assert [path.relative_to(to).as_posix() for path in trees.sources(to)] == [
        "CMakeLists.txt",
        "cpp/src/a.cpp",
        "cpp/src/d.cpp",
    ]
    assert (to / "CMakeLists.txt").read_text() == "other"
    assert (to / "cpp/src/a.cpp").stat().st_mtime_ns == before
