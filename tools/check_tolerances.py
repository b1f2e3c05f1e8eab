"""Checks that no test compares with a literal tolerance: bounds are derived, in the test or in tests/testing/.

Looked for are numbers given as atol, rtol and the like, and comparisons with a small number in an `assert` or CHECK.
Zero is exact, and allowed.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from report import finish, root_argument

KEYWORDS = {"atol", "rtol", "rel_tol", "abs_tol", "rel", "abs"}  # torch, NumPy, math, pytest.approx
SMALL = 1e-2  # a limit below it is taken for a tolerance
CPP = re.compile(r"\bCHECK\b.*[<>]=?\s*\d*\.?\d+e-\d+")


def literal(node: ast.expr) -> float | None:
    """The magnitude of a number written out; None for anything computed."""
    if isinstance(node, ast.UnaryOp):
        return literal(node.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return abs(float(node.value))
    return None


def python_problems(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.keyword) and node.arg in KEYWORDS and literal(node.value):
            yield node.value.lineno, f"{node.arg}={ast.unparse(node.value)}"
        elif isinstance(node, ast.Assert):
            for inner in ast.walk(node.test):
                sides = [inner.left, *inner.comparators] if isinstance(inner, ast.Compare) else []
                for side in sides:
                    if 0 < (literal(side) or 0) < SMALL:
                        yield node.lineno, ast.unparse(inner)


def cpp_problems(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if found := CPP.search(line):
            yield number, found[0]


def main() -> int:
    root = root_argument()
    files = {path: python_problems for path in root.glob("tests/**/*.py")}
    files |= {path: cpp_problems for path in root.glob("tests/cpp/*.cpp")}
    found = (
        f"{path.relative_to(root)}:{line}: literal tolerance `{text}`; derive it"
        for path, problems in files.items()
        for line, text in problems(path)
    )
    return finish(found, f"{len(files)} files")


if __name__ == "__main__":
    sys.exit(main())
