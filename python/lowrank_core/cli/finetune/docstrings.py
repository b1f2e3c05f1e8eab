"""The data that is always there: docstrings of Python's standard library, labelled by their package."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from pathlib import Path

from lowrank_core.cli.finetune.rows import Row
from lowrank_core.cli.text import STDLIB_SKIP

CLASSES = 8  # packages with the most docstrings
SHORTEST = 20  # characters


def docstrings(root: Path | None = None) -> list[Row]:
    """Docstrings of modules, classes and functions under `root`, None for the standard library of this Python.

    The `CLASSES` packages that have the most are the labels, each with as many docstrings as the last of them has,
    chosen by their hashes. A docstring that several packages have is left out.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    owners: dict[str, set[str]] = {}
    for path in sorted(root.glob("*/**/*.py")):
        parts = path.relative_to(root).parts
        if not STDLIB_SKIP & set(parts) and (root / parts[0] / "__init__.py").exists():
            for text in _of_file(path):
                owners.setdefault(text, set()).add(parts[0])
    found: dict[str, list[str]] = {}
    for text, packages in owners.items():
        if len(packages) == 1:
            found.setdefault(next(iter(packages)), []).append(text)
    chosen = sorted(found, key=lambda name: (-len(found[name]), name))[:CLASSES]
    fewest = min((len(found[name]) for name in chosen), default=0)
    return [Row(text, name) for name in sorted(chosen) for text in sorted(found[name], key=_hash)[:fewest]]


def _of_file(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [text for text in texts if text is not None and len(text) >= SHORTEST]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
