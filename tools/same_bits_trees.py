"""For tools/same_bits.py: the package of a revision, built and ready to be put on PYTHONPATH."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from report import ROOT

CACHE = ROOT / "build/same_bits"
SOURCE = CACHE / "source"
BUILD = SOURCE / "build/dev"  # where `make` has it in its tree, so that ccache may know the objects from there
COMPILED = ("CMakeLists.txt", "cpp", "cuda")  # what the extension is made of


def commit_of(revision: str) -> str:
    """The full name of the commit, or SystemExit."""
    command = ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    if not found:
        raise SystemExit(f"same_bits: `REV` must be a revision of this repository, got {revision}")
    return found


@contextmanager
def tree_of(revision: str | None) -> Iterator[Path]:
    """The files of `revision`, for as long as the body runs; None: the working tree itself."""
    if revision is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="same_bits-") as folder:
        tree = Path(folder) / "tree"
        _run("git", "worktree", "add", "--quiet", "--detach", str(tree), commit_of(revision))
        try:
            yield tree
        finally:
            _run("git", "worktree", "remove", "--force", str(tree))


def package(revision: str | None) -> Path:
    """A folder that holds `lowrank_core` of `revision`: its Python files, and the extension beside them."""
    folder = CACHE / "packages" / (commit_of(revision) if revision else "working-tree")
    with tree_of(revision) as tree:
        core = _extension(tree)
        shutil.rmtree(folder, ignore_errors=True)
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(tree / "python/lowrank_core", folder / "lowrank_core", ignore=ignored)
    shutil.copy2(core, folder / "lowrank_core")
    return folder


def _extension(tree: Path) -> Path:
    """The extension built from the sources in `tree`, or from the same ones before."""
    kept = CACHE / "extensions" / digest(tree)
    if not kept.exists():
        mirror(tree, SOURCE)
        _compile()
        [built] = BUILD.glob("_core*.so")
        fresh = kept.with_name(f"{kept.name}.new")
        fresh.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built, fresh)
        fresh.rename(kept)
    return next(kept.glob("_core*.so"))


def digest(tree: Path) -> str:
    """A hash of what is compiled, and of who it is compiled for."""
    found = hashlib.sha256(f"{sys.version} {os.environ.get('CXX')} {os.environ.get('CXXFLAGS')}".encode())
    for path in sources(tree):
        found.update(f"{path.relative_to(tree).as_posix()} {path.stat().st_size}\n".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def sources(tree: Path) -> list[Path]:
    """Every file that is compiled."""
    tops = [tree / name for name in COMPILED]
    return sorted(path for top in tops for path in (top, *top.rglob("*")) if path.is_file())


def mirror(tree: Path, to: Path) -> None:
    """Makes `to` hold the sources of `tree`. Files that are the same stay as they are, and are not compiled again."""
    wanted = {path.relative_to(tree): path.read_bytes() for path in sources(tree)}
    for path in sources(to):
        if path.relative_to(to) not in wanted:
            path.unlink()
    for name, content in wanted.items():
        path = to / name
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _compile() -> None:
    pybind = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], check=True, capture_output=True, text=True
    )
    options = {
        "LRC_PYTHON": "ON",
        "LRC_CUDA": "OFF",
        "pybind11_DIR": pybind.stdout.strip(),
        "Python_EXECUTABLE": sys.executable,
    }
    if "CXX" not in os.environ and (compiler := shutil.which("g++")):
        options["CMAKE_CXX_COMPILER"] = compiler  # by the name that pip's builds call it, which ccache looks at
    if launcher := shutil.which("ccache"):
        options["CMAKE_CXX_COMPILER_LAUNCHER"] = launcher
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_program('ninja')}"]
    defined = [f"-D{name}={value}" for name, value in options.items()]
    os.environ |= {"CCACHE_BASEDIR": str(SOURCE), "CCACHE_NOHASHDIR": "1"}
    # Fresh, for CMake forgets its options where the compiler is another; objects stay.
    _run(_program("cmake"), "--fresh", "-S", str(SOURCE), "-B", str(BUILD), *generator, *defined)
    _run(_program("cmake"), "--build", str(BUILD), "--target", "_core")


def _program(name: str) -> str:
    """Of the environment, or else of the machine."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name


def _run(*command: str) -> None:
    """Runs `command`, whose output is shown only if it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"same_bits: {' '.join(command)}\n{done.stdout}{done.stderr}")
