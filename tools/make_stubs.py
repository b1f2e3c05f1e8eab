"""Writes python/lowrank_core/_core.pyi from the built extension; with --check, only tells whether it is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from report import ROOT

MODULE = "lowrank_core._core"
STUB = ROOT / "python/lowrank_core/_core.pyi"


def generate() -> str:
    """The stub of the extension that this interpreter imports, formatted as the repository is."""
    with tempfile.TemporaryDirectory() as folder:
        _run("pybind11_stubgen", "--exit-code", "--output-dir", folder, MODULE)
        path = Path(folder, *MODULE.split(".")).with_suffix(".pyi")
        # pybind11 knows no type parameters of a plain py::dict.
        path.write_text(re.sub(r"\bdict:", "dict[str, typing.Any]:", path.read_text()))
        settings = ("--quiet", "--config", str(ROOT / "pyproject.toml"), str(path))
        _run("ruff", "check", "--fix-only", *settings)
        _run("ruff", "format", *settings)
        return path.read_text()


def _run(module: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"make_stubs: {module} failed:\n{done.stdout}{done.stderr}")


def main() -> int:
    fresh = generate()
    if sys.argv[1:] == ["--check"]:
        stale = not STUB.exists() or STUB.read_text() != fresh
        print(f"make_stubs: {STUB.relative_to(ROOT)} is {'stale; run `make stubs`' if stale else 'up to date'}")
        return int(stale)
    STUB.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
