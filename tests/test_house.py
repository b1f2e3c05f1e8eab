"""The repository keeps its own rules, and the checks of these rules notice when it does not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE_CHECKS = ("families", "layers", "device", "sizes", "tolerances")


def tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("check", SOURCE_CHECKS)
def test_this_tree(check: str) -> None:
    done = tool(f"check_{check}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(find_spec("pybind11_stubgen") is None, reason="needs pybind11-stubgen")
def test_stubs_are_those_of_the_extension() -> None:
    done = tool("make_stubs", "--check")
    assert done.returncode == 0, done.stdout + done.stderr


# ---- each check finds what it is for -------------------------------------------------------------------------------

PACKAGE = "python/lowrank_core"
BROKEN = [
    ("families", "cuda/stray.cu", "", "cuda/stray.cu belongs to no family"),
    ("families", f"{PACKAGE}/ops/stray.py", "", "belongs to no family"),
    ("families", f"{PACKAGE}/ops/stray/a.py", "", "belongs to no family"),
    ("families", f"{PACKAGE}/ops/rsvd_list.py", "", f"move it to {PACKAGE}/ops/rsvd"),
    ("families", "tests/ops/test_rsvd_a.py", "", "move it to tests/ops/rsvd"),
    ("families", "tests/ops/stray/test_a.py", "", "belongs to no family"),
    ("families", "cpp/src/stray/a.cpp", "", "cpp/src/stray is no family's folder"),
    ("families", "bench/none.py", "", "family rsvd lacks cpp/src/rsvd/*.cpp"),
    ("layers", f"{PACKAGE}/optim/a.py", "from lowrank_core import _core", "may not import `lowrank_core._core`"),
    ("layers", f"{PACKAGE}/ops/a.py", "def f():\n    import lowrank_core.optim", "`ops` may not import"),
    ("layers", f"{PACKAGE}/ops/a.py", "from lowrank_core.reference import rsvd", "`ops` may not import"),
    ("layers", f"{PACKAGE}/ops/chain_lr/a.py", "import lowrank_core.ops.rsvd.b", "which is family rsvd's own"),
    ("layers", f"{PACKAGE}/ops/a.py", "def f():\n    from lowrank_core.ops import rsvd", "which is family rsvd's own"),
    ("layers", f"{PACKAGE}/optim/a.py", "from lowrank_core import rsvd", "may not import `lowrank_core.rsvd`"),
    ("layers", f"{PACKAGE}/optim/a.py", "from . import b", "relative import"),
    ("layers", f"{PACKAGE}/memory/a.py", "from lowrank_core.optim import rules", "`memory` may not import"),
    ("layers", f"{PACKAGE}/memory/__init__.py", "import torch", "`import lowrank_core.memory` imports torch"),
    ("layers", f"{PACKAGE}/misc/a.py", "", "is in no layer"),
    ("layers", f"{PACKAGE}/__init__.py", "try:\n    import torch\nexcept ImportError:\n    pass", "imports torch"),
    ("layers", "cpp/src/a.cpp", "#include <pybind11/stl.h>", "may not include pybind11/stl.h"),
    ("layers", "cpp/src/a.cpp", "# include <cuda_runtime.h>", "may not include cuda_runtime.h"),
    ("layers", "cpp/src/core/a.cpp", '#include "lowrank_core/rsvd.h"', "which is family rsvd's own"),
    ("layers", "cpp/src/core/a.cpp", '#include "rsvd/parts.h"', "which is family rsvd's own"),
    ("layers", "cpp/src/rsvd/a.cpp", '#include "dct_select/level.h"', "which is family dct_select's own"),
    ("layers", "cpp/bindings/a.cpp", '#include "../src/parts.h"', "neither a public header nor beside it"),
    ("layers", "cpp/include/lowrank_core/a.h", "#include <iostream>", "may not include iostream"),
    ("layers", "cuda/a.cu", "#include <torch/extension.h>", "may not include torch/extension.h"),
    ("device", "cpp/include/lowrank_core/a.h", "LRC_HD int f(int x) { return x; }", "f() stands 1 times"),
    ("device", "cpp/include/lowrank_core/a.h", "LRC_HD int x = 1;", "marks by LRC_HD what is no function"),
    ("sizes", f"{PACKAGE}/ops/a.py", "x = 1\n" * 301, "has 301 lines, more than 300"),
    ("sizes", f"{PACKAGE}/ops/a.py", "def f():\n" + "    x = 1\n" * 41, "a.py:f has 41 lines of code, more than 40"),
    ("sizes", f"{PACKAGE}/optim/methods/a.py", "x = 1\n" * 61, "a.py has 61 lines besides imports and docstrings"),
    ("sizes", "cpp/include/lowrank_core/simd/a.h", "\n" * 251, "has 251 lines, more than 250"),
    ("tolerances", "tests/test_a.py", "assert_close(x, y, atol=1e-6, rtol=0)", "literal tolerance `atol=1e-06`"),
    ("tolerances", "tests/test_a.py", "def test():\n    assert f(x) < 1e-6", "literal tolerance `f(x) < 1e-06`"),
    ("tolerances", "tests/cpp/test_a.cpp", "  CHECK(error < 1e-6);", "literal tolerance `CHECK(error < 1e-6`"),
]


@pytest.mark.parametrize(("check", "path", "text", "problem"), BROKEN)
def test_a_check_finds(check: str, path: str, text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    done = tool(f"check_{check}", tmp_path)
    assert done.returncode == 1 and problem in done.stdout, done.stdout + done.stderr


CIRCLE = {
    "a": "def f():\n    from lowrank_core.optim import b",
    "b": "import lowrank_core.optim.c as c",
    "c": "from lowrank_core.optim.a import f",
}


ANNOTATIONS = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {}"


@pytest.mark.parametrize("form", ["{}", ANNOTATIONS], ids=["", "annotations"])
def test_the_layer_check_finds_circles(form: str, tmp_path: Path) -> None:
    """Through functions too; one that closes for annotations alone is told, and passes."""
    folder = tmp_path / PACKAGE / "optim"
    folder.mkdir(parents=True)
    for name, text in (CIRCLE | {"c": form.format(CIRCLE["c"])}).items():
        (folder / f"{name}.py").write_text(text)
    done = tool("check_layers", tmp_path)
    way = "lowrank_core.optim.a -> lowrank_core.optim.b -> lowrank_core.optim.c -> lowrank_core.optim.a"
    assert done.returncode == (form == "{}")
    assert (f"circle of imports: {way}" in done.stdout) == (form == "{}")
    assert (f"for annotations alone, which passes: {way}" in done.stdout) == (form != "{}")


SOUND = [
    ("layers", f"{PACKAGE}/ops/__init__.py", "from lowrank_core.ops.rsvd import rsvd"),
    ("layers", f"{PACKAGE}/__init__.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ("layers", f"{PACKAGE}/ops/a.py", "import torch\nfrom lowrank_core import _core"),
    ("sizes", f"{PACKAGE}/ops/a.py", 'def f():\n    """' + "x\n" * 99 + '    """\n' + "    # why\n\n" * 50),
    ("tolerances", "tests/test_a.py", "def test():\n    assert_close(x, y, atol=0, rtol=bound(k))\n    assert x < 0.5"),
]


@pytest.mark.parametrize(("check", "path", "text"), SOUND)
def test_a_check_lets_pass(check: str, path: str, text: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    lines = [line for line in tool(f"check_{check}", tmp_path).stdout.splitlines() if Path(path).name in line]
    assert not lines


@pytest.mark.skipif(shutil.which("c++") is None or shutil.which("nm") is None, reason="needs c++ and nm")
@pytest.mark.parametrize(("keyword", "code"), [("static ", 0), ("inline ", 1)])
def test_the_symbol_check_knows_weak_functions(keyword: str, code: int, tmp_path: Path) -> None:
    folder = tmp_path / "CMakeFiles/lrc_avx512.dir/cpp"
    folder.mkdir(parents=True)
    (tmp_path / "a.cpp").write_text(f"{keyword}int shared(int x) {{ return x; }}\nint (*use)(int) = shared;\n")
    subprocess.run(["c++", "-c", str(tmp_path / "a.cpp"), "-o", str(folder / "a.cpp.o")], check=True)
    done = tool("check_symbols", tmp_path)
    assert done.returncode == code and ("exports shared(int)" in done.stdout) == bool(code)


def test_the_symbol_check_does_not_pass_an_empty_tree(tmp_path: Path) -> None:
    assert "no level objects" in tool("check_symbols", tmp_path).stderr


# ---- importing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["lowrank_core", "lowrank_core.memory"])
def test_importing_the_package_imports_numpy_alone(module: str) -> None:
    loaded = python(f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))").split()
    foreign = {"torch", "cupy", "scipy", "matplotlib", "tqdm", "safetensors"} & set(loaded)
    assert "numpy" in loaded and not foreign


def test_importing_the_package_is_quick() -> None:
    """It takes less than NumPy. Processor time and not seconds, for others may use the machine."""
    code = """
import time
began = time.process_time(); import numpy
between = time.process_time(); import lowrank_core
print((time.process_time() - between) / (between - began))
"""
    assert min(float(python(code)) for _ in range(5)) < 1


# ---- what is written in two places ---------------------------------------------------------------------------------


def test_one_version() -> None:
    places = {
        "pyproject.toml": r'^version = "(.*)"$',
        "CMakeLists.txt": r"^project\(lowrank_core VERSION (\S+)",
        f"{PACKAGE}/__init__.py": r'^__version__ = "(.*)"$',
    }
    found = {path: re.findall(pattern, (ROOT / path).read_text(), re.MULTILINE) for path, pattern in places.items()}
    assert len({tuple(versions) for versions in found.values()}) == 1, found


def test_every_requirement_is_pinned() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    asked = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(requirement for name, extra in extras.items() if name != "cupy" for requirement in extra),
    ]
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in asked} - {"lowrank_core"}
    pinned = set(re.findall(r"^([\w-]+)==[\d.]+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert names == pinned


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not lost
