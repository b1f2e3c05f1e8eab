"""The generator of a kernel family: what it writes is complete, compiles and computes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
STEM = "ripple_carry"


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/new_family.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def load(path: Path) -> ModuleType:
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    done = generate(STEM, "carries that ripple", "--root", str(root))
    assert done.returncode == 0, done.stderr
    assert f"register_{STEM}" in done.stdout and "newfamily" not in done.stdout
    return root


def test_every_layer_is_there(tree: Path) -> None:
    """check_families passes once the stem is in its list, and does not before."""
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import check_families as check\n"
        "root = pathlib.Path(sys.argv[2]); check.FAMILIES = check.WITHOUT_CUDA = tuple(sys.argv[3:])\n"
        "print(*check.problems(root), sep='\\n')"
    )
    for stems, clean in (((STEM,), True), ((), False)):
        command = [sys.executable, "-c", code, str(ROOT / "tools"), str(tree), *stems]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (done.stdout.strip() == "") == clean, done.stdout


def test_nothing_of_the_template_is_left(tree: Path) -> None:
    found = [path for path in tree.rglob("*.*") if path.is_file()]
    assert len(found) == 9
    for path in found:
        text = path.read_text().lower()
        assert "newfamily" not in text and "what the family is" not in text, path


@pytest.mark.parametrize("check", ["layers", "sizes", "tolerances"])
def test_the_other_checks_pass(check: str, tree: Path) -> None:
    for header in ("caster.h", "kernel.h", "register.h"):  # which stand beside every binding
        shutil.copy(ROOT / "cpp/bindings" / header, tree / "cpp/bindings")
    done = subprocess.run(
        [sys.executable, str(ROOT / f"tools/check_{check}.py"), str(tree)], capture_output=True, text=True
    )
    assert not [line for line in done.stdout.splitlines() if STEM in line], done.stdout


def test_the_kernel_compiles(tree: Path) -> None:
    folders = [f"-I{tree / 'cpp/include'}", f"-I{ROOT / 'cpp/include'}"]
    source = tree / f"cpp/src/{STEM}/{STEM}.cpp"
    command = ["c++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fopenmp", "-fsyntax-only", *folders, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_reference_computes(tree: Path) -> None:
    reference = load(tree / f"python/lowrank_core/reference/{STEM}.py")
    assert torch.equal(getattr(reference, STEM)(torch.ones(3)), torch.full((3,), 2.0, dtype=torch.float64))


def test_refusals(tree: Path) -> None:
    for stem, text in ((STEM, "exists"), ("Ripple", "must be lower case words joined by _, got 'Ripple'")):
        done = generate(stem, "carries that ripple", "--root", str(tree))
        assert done.returncode == 1 and text in done.stderr
