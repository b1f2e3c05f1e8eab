"""Checks that files and Python functions stay small enough to be read in one sitting."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from report import finish, root_argument

# Folder, suffixes, lines of a file. The first row that fits decides.
BUDGETS = (
    ("cpp/include", (".h",), 250),
    ("cuda", (".cu",), 400),
    (".", (".h", ".cuh", ".cpp"), 300),
    (".", (".py",), 300),
)
FOLDERS = ("cpp", "cuda", "python", "tests", "bench", "tools", "examples")
METHODS, METHOD = "python/lowrank_core/optim/methods", 60  # of a file: lines besides imports and docstrings
FUNCTION = 40  # lines of code in a Python function: no blank lines, comments or docstring
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
# A reason may break the rule, habit may not. File, or file:function.
EXCEPTIONS: dict[str, str] = {
    "tests/cpp/test_gemm.cpp": "one reference product that every table of cases runs through",
}


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of code of each function's body; a nested one counts for the outer too."""
    text = path.read_text(encoding="utf-8")
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield node.name, len(code & set(range(body[0].lineno, (node.end_lineno or 0) + 1))) if body else 0


def own_lines(path: Path) -> int:
    """Lines of a file without its imports and the docstrings of the file and of its classes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    owners: list[ast.Module | ast.ClassDef] = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    left_out += [owner.body[0] for owner in owners if ast.get_docstring(owner)]
    lines = len(path.read_text(encoding="utf-8").splitlines())
    return lines - sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in left_out)


def oversized(root: Path) -> Iterator[tuple[str, str]]:
    """What is too large, and a word on how much."""
    for path in (path for folder in FOLDERS for path in sorted((root / folder).rglob("*"))):
        where = path.relative_to(root)
        budget = next((n for top, kinds, n in BUDGETS if path.suffix in kinds and where.is_relative_to(top)), None)
        if budget is None:
            continue
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > budget:
            yield where.as_posix(), f"has {length} lines, more than {budget}"
        if path.parent == root / METHODS and path.suffix == ".py" and own_lines(path) > METHOD:
            yield where.as_posix(), f"has {own_lines(path)} lines besides imports and docstrings, more than {METHOD}"
        if path.suffix == ".py":
            for name, lines in functions(path):
                if lines > FUNCTION:
                    yield f"{where.as_posix()}:{name}", f"has {lines} lines of code, more than {FUNCTION}"


def problems(root: Path) -> Iterator[str]:
    found = dict(oversized(root))
    for what, how in found.items():
        if what not in EXCEPTIONS:
            yield f"{what} {how}; split it by what it does"
    for what in EXCEPTIONS.keys() - found.keys():
        yield f"{what} is small enough now; take it off EXCEPTIONS"


if __name__ == "__main__":
    sys.exit(finish(problems(root_argument()), f"budgets of {len(BUDGETS)} kinds of file"))
