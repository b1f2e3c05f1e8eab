"""What `help()` shows is true: every public function has an example that runs, and tiers are explained."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import lowrank_core
from lowrank_core import adapters, memory, optim
from testing import examples, pages

PACKAGE = Path(lowrank_core.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = dict(item for module in (lowrank_core, memory, optim, adapters) for item in examples.public(module))


@pytest.mark.parametrize("name", PUBLIC)
def test_example_in_a_docstring(name: str) -> None:
    test = examples.example(name, PUBLIC[name])
    assert test.examples and examples.tells(test), f"the docstring of {name} has no `Example:` that shows a result"
    assert len([line for line in test.examples if "import " not in line.source]) <= 5, f"{name}: longer than a glance"
    assert examples.failures(test) == ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_tiers_are_explained_where_they_first_stand(path: Path) -> None:
    assert pages.unexplained_tiers(path.read_text(encoding="utf-8")) == set()
