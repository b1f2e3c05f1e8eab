"""tools/check_kernels.py: what ptxas says of a kernel is read, and local memory is a problem."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN4free6kernelEv' for 'sm_90'
ptxas info    : Function properties for _ZN4free6kernelEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 46 registers, used 1 barriers, 825 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN4full6kernelEv' for 'sm_90'
ptxas info    : Function properties for _ZN4full6kernelEv
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 16 bytes cumulative stack size, 848 bytes cmem[0]
"""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(TOOLS)
    yield import_module("check_kernels")
    sys.modules.pop("check_kernels", None)


def test_registers_and_local_memory_are_read(tool: ModuleType) -> None:
    assert [(one.registers, one.local) for one in tool.kernels_of(REPORT)] == [(46, 0), (255, 28)]


def test_local_memory_is_a_problem_and_so_is_a_file_without_kernels(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = {"full.cu": REPORT, "none.cu": "ptxas info    : 0 bytes gmem\n"}
    monkeypatch.setattr(tool, "compiled", lambda path: reports[path.name])
    (local,) = tool.problems([Path("full.cu")])
    assert "28 bytes of local memory; it must take none" in local
    (none,) = tool.problems([Path("none.cu")])
    assert "none.cu must hold a kernel, got none" in none


def test_a_file_that_does_not_compile_is_an_error(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "FLAGS", ("--no-such-option",))
    if tool.shutil.which("nvcc") is None:
        monkeypatch.setattr(tool.shutil, "which", lambda name: None)
        assert tool.main() == 0, "nothing is checked without nvcc"
    else:
        with pytest.raises(RuntimeError, match=r"rsvd\.cu must compile, got"):
            tool.compiled(TOOLS.parent / "cuda/rsvd.cu")
