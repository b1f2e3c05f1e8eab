"""A copy of the tree with a build of its own, for mutants of the C++ headers.

The build has the generic level alone, and no optimization beyond -O1: the formulas and their order are the same, and a
mutant is compiled in a fraction of the time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mutation.copies import Copy, Trial

_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_CXX_FLAGS_RELEASE": "-O1",
    "CMAKE_INTERPROCEDURAL_OPTIMIZATION": "OFF",
    "LRC_CUDA": "OFF",
    "LRC_PYTHON": "ON",
    "LRC_TESTS": "ON",
    "LRC_X86_LEVELS": "OFF",
}


class BuiltCopy(Copy):
    """As `Copy`; `configure` comes first, and `build` before the tests."""

    def configure(self) -> None:
        """Raises RuntimeError if CMake fails."""
        pybind = subprocess.run(
            [sys.executable, "-m", "pybind11", "--cmakedir"], check=True, capture_output=True, text=True
        )
        options = {**_OPTIONS, "pybind11_DIR": pybind.stdout.strip(), "Python_EXECUTABLE": sys.executable}
        if launcher := shutil.which("ccache"):
            options["CMAKE_CXX_COMPILER_LAUNCHER"] = launcher
        os.environ |= {"CCACHE_BASEDIR": str(self.tree), "CCACHE_NOHASHDIR": "1"}
        defined = [f"-D{name}={value}" for name, value in options.items()]
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_program('ninja')}"]
        status, output = self.run([_program("cmake"), "-S", ".", "-B", "build", *generator, *defined])
        if status:
            raise RuntimeError(f"mutate: CMake must configure the copy, got:\n{output}")

    def build(self, targets: Sequence[str]) -> str:
        """Builds `targets`, and puts the extension, if it is one of them, into the package; the errors, or ""."""
        status, output = self.run([_program("cmake"), "--build", "build", "--parallel", "1", "--target", *targets])
        if status:
            return next((line for line in output.splitlines() if "error" in line), output[-200:])
        if "_core" in targets:
            [built] = (self.tree / "build").glob("_core*.so")
            shutil.copy2(built, self.tree / "python/lowrank_core")
        return ""

    def compiled_test(self, name: str) -> Trial:
        """Runs one of the C++ tests."""
        started = time.monotonic()
        status, _ = self.run([f"build/{name}"])
        return Trial(status != 0, f"tests/cpp/{name}.cpp" if status else "", time.monotonic() - started)


def _program(name: str) -> str:
    """Of the environment, or else of the machine."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name
