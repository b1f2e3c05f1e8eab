"""The caller's floating-point mode decides no bit: denormals flushed or not, any direction of rounding, any thread."""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lowrank_core as lc
import numpy as np
import pytest
import torch
from every_operator import BY_NAME, CALLS, Call, bits, copies
from lowrank_core import _core
from testing import machine

BINDINGS = Path(__file__).resolve().parents[2] / "cpp/bindings"
ROUNDING = {"x86_64": {"up": 0x800, "down": 0x400, "to zero": 0xC00}, "aarch64": {"up": 0x400000, "down": 0x800000}}
DIRECTIONS = ROUNDING.get(platform.machine(), {})


@contextmanager
def flushing() -> Iterator[None]:
    """The calling thread flushes denormals to zero, as after `torch.set_flush_denormal(True)`."""
    assert torch.set_flush_denormal(True), "this CPU cannot flush denormals"
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def rounding(mode: int) -> Iterator[None]:
    """The calling thread rounds in another direction."""
    math = ctypes.CDLL(None)
    before = math.fegetround()
    assert math.fesetround(mode) == 0
    try:
        yield
    finally:
        math.fesetround(before)


def flushes() -> bool:
    return float(np.float64(1e-300) * np.float64(1e-15)) == 0.0


def inputs(call: Call, scale: float) -> dict[str, Any]:
    """The arrays of a call, the first one of floats so small that it, or what is made of it, is denormal."""
    arrays = copies(call)
    for a in arrays.values():
        if a.dtype == np.float32:
            a *= np.float32(scale)
            break
    return {name: torch.from_numpy(a) for name, a in arrays.items()} if call.torch_only else arrays


def outcome(call: Call, arrays: dict[str, Any]) -> list[bytes]:
    """What the call gives and changes, or its refusal."""
    try:
        return bits(call, arrays)
    except ValueError as error:
        return [str(error).encode()]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-39])
@pytest.mark.parametrize("op", BY_NAME)
def test_flushing_changes_no_bit(op: str, scale: float, count: int) -> None:
    call = BY_NAME[op]
    with machine.threads(count):
        expected, given = outcome(call, inputs(call, scale)), inputs(call, scale)
        with flushing():
            assert outcome(call, given) == expected
            assert flushes(), "the caller's mode was not put back"


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", BY_NAME)
def test_rounding_changes_no_bit(op: str, direction: str) -> None:
    call = BY_NAME[op]
    expected, given = bits(call, inputs(call, 1.0)), inputs(call, 1.0)
    with rounding(DIRECTIONS[direction]):
        assert bits(call, given) == expected
        small = np.float64(1e-20)
        assert (np.float64(1.0) + small > 1.0) == (direction == "up"), "the caller's mode was not put back"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_that_were_started_while_flushing(count: int) -> None:
    """A thread of the pool has the mode of the one that started it, for ever."""
    g = (np.random.default_rng(0).standard_normal((4096, 64)) * 1e-39).astype(np.float32)
    basis = np.eye(4096, 256, dtype=np.float32)
    with machine.threads(1):
        expected = lc.project(g, basis, side="left").tobytes()
    with machine.threads(count):
        for flush in (True, False, True):
            torch.set_flush_denormal(flush)
            torch.ones(1 << 20).mul_(2.0)  # in torch's threads, which are ours
            given = lc.project(g, basis, side="left").tobytes()
            torch.set_flush_denormal(False)
            assert given == expected
    assert np.count_nonzero(np.frombuffer(expected, np.float32)) > 10000


def test_the_mode_is_put_back_after_a_refusal() -> None:
    a = np.full((4, 4), np.nan)
    refused: tuple[tuple[type[Exception], Callable[[], Any]], ...] = (
        (FloatingPointError, lambda: _core.rsvd(np.empty((4, 2)), np.empty(2), np.empty((2, 4)), a)),
        (ValueError, lambda: _core.gemm(np.empty((2, 2)), a, a)),
        (ValueError, lambda: _core.gemm(a, a, a)),
    )
    with flushing():
        for kind, work in refused:
            with pytest.raises(kind):
                work()
            assert flushes()


def test_denormals_matter_here() -> None:
    """A product of torch's follows the mode, so the tests above would notice a kernel that did."""
    a, b = torch.full((4, 4), 1e-39), torch.eye(4)
    with flushing():
        flushed = (a * b).count_nonzero()
    assert flushed == 0 and lc.project(a, b, side="left").count_nonzero() == 16


# ---- no binding can forget it --------------------------------------------------------------------------------------

WITHOUT_ARITHMETIC = {
    "array_refusal", "build_info", "isa", "isa_levels", "set_isa", "fast_bfloat16", "num_threads", "set_num_threads",
    "overlaps_itself", "share_memory", "mkl_roots", "are_ordinary",
}  # fmt: skip


def test_every_function_that_computes_is_bound_as_a_kernel() -> None:
    bound, kernels = set(), set()
    for path in BINDINGS.glob("*.cpp"):
        text = path.read_text(encoding="utf-8")
        bound |= set(re.findall(r'\.def\(\s*"(\w+)"', text))
        kernels |= set(re.findall(r'\bkernel(?:<[\w:]+>)?\(module, "(\w+)"', text))
    public = {name for name in dir(_core) if not name.startswith("_") and not isinstance(getattr(_core, name), type)}
    assert bound == WITHOUT_ARITHMETIC
    assert kernels == public - WITHOUT_ARITHMETIC


def test_the_calls_cover_the_public_functions() -> None:
    functions = {name for name in lc.__all__ if callable(getattr(lc, name)) and name[0].islower()}
    assert functions - {"positive_features"} == {call.op for call in CALLS} - {"qb_list", "range_finder_list"}
