"""A digest of the sources that decide a run's numbers: not of the commit, nor of comments, layout or docstrings.

Of Python: the training loop, and what the module of the method imports, directly or not. What reads options is left
out: they are kept with a run. Of C++: all of it for methods of this package, none for others; which function calls
which is not followed there.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lowrank_core.memory.methods import FACADES, METHODS

PACKAGE = Path(__file__).resolve().parents[2]
_CLI = ("data", "loop", "model", "optimizers", "text", "study.foreign", "study.measure")
_TRAINING = tuple(f"cli.{name}" for name in _CLI)
_GROUPS = ("optim.targets",)
_INDEX = {"", "optim", "ops", "cli"}  # packages whose own file only lists the others
_COMPILED = ("include", "src", "bindings")
# A C++ string or character, which may hold what looks like a comment, or a comment.
_CPP = re.compile(r"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|//[^\n]*|/\*.*?\*/""", re.DOTALL)


@cache
def digest_of(optimizer: str, foreign: str | None) -> str:
    """Of all sources that decide what `optimizer` computes, or the class of another package in its place."""
    ours = foreign is None and optimizer in (*METHODS, *FACADES)
    roots = [*_GROUPS, *(_method(optimizer) if ours else ())]
    return digest_of_modules(tuple(roots), with_these=_TRAINING, compiled=ours)


def digest_of_modules(
    roots: tuple[str, ...], *, with_these: tuple[str, ...] = (), but: tuple[str, ...] = (), compiled: bool = True
) -> str:
    """Of the modules `roots`, relative to this package, and all that they import; of others without what they import.

    `but`: modules left out, and what they alone import. `compiled`: of all C++ sources as well.
    """
    names = sorted({*with_these, *_imported(list(roots), PACKAGE, but)})
    facts = [(name, _digest_of_file(_path(name, PACKAGE))) for name in names]
    if compiled:
        facts += _compiled(PACKAGE)
    return digest(json.dumps(facts))


def digest(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _digest_of_file(path: Path) -> str:
    return digest(meaning(path))


def meaning(path: Path) -> str:
    """The file without what computes nothing: comments, layout, docstrings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return " ".join(_CPP.sub(lambda hit: hit[1] or " ", text).split())
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_string(body[0]):
            del body[0]
    return ast.dump(tree)


def _is_string(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _method(optimizer: str) -> tuple[str, ...]:
    if optimizer in FACADES:
        return (f"optim.{optimizer}",)
    return (f"optim.methods.{METHODS[optimizer].optimizer.partition(':')[0]}",)


def _imported(roots: list[str], package: Path, but: tuple[str, ...] = ()) -> set[str]:
    """The modules `roots`, relative to `package`, and all of it that they import, directly or not, without `but`."""
    found: set[str] = set()
    open_ = list(roots)
    while open_:
        name = open_.pop()
        if name in found or name in _INDEX or name in but:
            continue
        found.add(name)
        open_ += _imports(_path(name, package), package)
    return found


@cache
def _imports(path: Path, package: Path) -> list[str]:
    return list(_named(path, package))


def _named(path: Path, package: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            top, _, rest = name.partition(".")
            if top == package.name and rest and _exists(rest, package):
                yield rest


def _exists(name: str, package: Path) -> bool:
    return _path(name, package).is_file()


def _path(name: str, package: Path) -> Path:
    path = package.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _compiled(package: Path) -> list[tuple[str, str]]:
    """Name and digest of the C++ sources, where the package lies in its source tree; else of the compiled module."""
    root = package.parents[1] / "cpp"
    if not root.is_dir():
        return [(path.name, digest(path.read_bytes().hex())) for path in sorted(package.glob("_core*.so"))]
    paths = sorted(path for folder in _COMPILED for path in (root / folder).rglob("*") if path.suffix in {".h", ".cpp"})
    return [(path.relative_to(root).as_posix(), _digest_of_file(path)) for path in paths]


def forget() -> None:
    """Reads all files again the next time."""
    for cached in (digest_of, _digest_of_file, _imports, _compiled):
        cached.cache_clear()
