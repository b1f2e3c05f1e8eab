"""Compiles the CUDA kernels for one GPU and shows what each takes: registers, local memory, shared memory.

Local memory is where a thread keeps what has no register, and is as slow as the array: a kernel that needs any, or
spills, is a problem. Arguments: none. Needs nvcc; without it nothing is checked, and a line says so.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from report import ROOT, finish

ARCHITECTURE = "sm_90"
FLAGS = ("-std=c++20", "-fmad=false", "-Xptxas=-v", "-Werror=all-warnings", f"-arch={ARCHITECTURE}", "-cubin")
# What ptxas says of a kernel: its name, then its local memory, then its registers.
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Kernel(NamedTuple):
    """What one takes of a thread: registers, and bytes of local memory."""

    name: str
    registers: int
    local: int


def kernels_of(report: str) -> list[Kernel]:
    """Those that ptxas reports on."""
    return [
        Kernel(
            readable(hit["name"]), int(hit["registers"]), sum(int(hit[kind]) for kind in ("stack", "stores", "loads"))
        )
        for hit in KERNEL.finditer(report)
    ]


def readable(name: str) -> str:
    """The name of a function in an object file, without its namespaces and arguments where it can be told."""
    if shutil.which("c++filt") is None:
        return name
    told = subprocess.run(["c++filt", "-p", name], capture_output=True, text=True, check=True).stdout.strip()
    return told.replace("lowrank::", "").rpartition("(anonymous namespace)::")[2]


def compiled(path: Path) -> str:
    """What ptxas says of a file."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *FLAGS, f"-I{ROOT / 'cpp/include'}", f"-I{ROOT / 'cuda'}", "-o", f"{folder}/out", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{path.name} must compile, got:\n{done.stderr}")
    return done.stderr


def problems(paths: list[Path]) -> Iterator[str]:
    """Of all kernels; prints a table on the way."""
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(compiled, paths))
    for path, report in zip(paths, reports, strict=True):
        found = kernels_of(report)
        if not found:
            yield f"{path.name} must hold a kernel, got none; ptxas may speak otherwise than this program reads"
        for kernel in found:
            print(
                f"{path.name:20} {kernel.registers:4} registers {kernel.local:4} bytes of local memory  {kernel.name}"
            )
            if kernel.local:
                yield f"{path.name}: {kernel.name} takes {kernel.local} bytes of local memory; it must take none"


def main() -> int:
    if shutil.which("nvcc") is None:
        print("check_kernels: no nvcc; nothing is checked")
        return 0
    return finish(problems(sorted((ROOT / "cuda").glob("*.cu"))), f"registers of the kernels on {ARCHITECTURE}")


if __name__ == "__main__":
    sys.exit(main())
