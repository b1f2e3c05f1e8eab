"""From any array to a view: what is read, what is refused, who is kept alive."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core import _core
from testing import capsules, cases, foreign, layouts
from testing.capsules import HandMade
from testing.layouts import DLPackOnly

A = "gemm: `a` must "


def multiply(out: Any, a: Any, b: Any) -> None:
    """out <- a b: the plainest kernel that reads two arrays and writes one."""
    _core.gemm(out, a, b)


def integers(m: int, n: int, dtype: Any = np.float64) -> np.ndarray:
    """Small integers: their products are exact in every dtype and order."""
    return cases.generator(m, n).integers(-3, 4, (m, n)).astype(dtype)


def assert_reads(convert: Callable[[np.ndarray], Any]) -> None:
    a, b = integers(5, 4), integers(4, 3)
    out = np.full((5, 3), math.nan)
    multiply(out, convert(a), convert(b))
    assert np.array_equal(out, a @ b)


def assert_writes(convert: Callable[[np.ndarray], Any]) -> None:
    a, b = integers(5, 4), integers(4, 3)
    out = np.full((5, 3), math.nan)
    multiply(convert(out), a, b)
    assert np.array_equal(out, a @ b)


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def exported_read_only(a: np.ndarray) -> DLPackOnly:
    """A read-only array behind DLPack, which older NumPys do not export."""
    try:
        read_only(a).__dlpack__(max_version=(1, 0))
    except TypeError:
        pytest.skip(f"NumPy {np.__version__} exports no read-only array by DLPack")
    return DLPackOnly(read_only(a))


class Subclass(np.ndarray):
    pass


class TensorSubclass(torch.Tensor):
    pass


SOURCES: dict[str, Callable[[np.ndarray], Any]] = {
    "numpy": lambda a: a,
    "fortran": np.asfortranarray,
    "reversed": layouts.reversed_view,
    "numpy subclass": lambda a: a.view(Subclass),
    "torch": torch.from_numpy,
    "torch that requires a gradient": lambda a: torch.from_numpy(a).requires_grad_(),
    "parameter": lambda a: torch.nn.Parameter(torch.from_numpy(a)),
    "tensor subclass": lambda a: torch.from_numpy(a).as_subclass(TensorSubclass),
    "dlpack of numpy": DLPackOnly,
    "dlpack of torch": lambda a: DLPackOnly(torch.from_numpy(a)),
    "dlpack before 1.0": lambda a: DLPackOnly(torch.from_numpy(a), versioned=False),
    "strided dlpack": lambda a: DLPackOnly(layouts.strided(torch.from_numpy(a))),
}


@pytest.mark.parametrize("source", SOURCES)
def test_reads(source: str) -> None:
    assert_reads(SOURCES[source])


@pytest.mark.parametrize("source", [s for s in SOURCES if s not in ("fortran", "reversed", "strided dlpack")])
def test_writes(source: str) -> None:
    assert_writes(SOURCES[source])


def test_reads_what_it_may_not_write() -> None:
    assert_reads(read_only)
    assert_reads(exported_read_only)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_float_of_torch(dtype: torch.dtype) -> None:
    """bfloat16 has no way through NumPy: attributes and DLPack both carry it."""
    a, b = torch.from_numpy(integers(5, 4)).to(dtype), torch.from_numpy(integers(4, 3)).to(dtype)
    for convert in (lambda x: x, DLPackOnly):
        out = torch.full((5, 3), math.nan, dtype=dtype)
        multiply(convert(out), convert(a), convert(b))
        assert torch.equal(out, a @ b)


def test_numpy_float16_reaches_the_kernels() -> None:
    a, b = integers(5, 4, np.float16), integers(4, 3, np.float16)
    out = np.empty((5, 3), np.float16)
    multiply(out, a, b)
    assert np.array_equal(out, a @ b)


def test_unit_and_empty_dimensions_may_have_any_stride() -> None:
    a = np.lib.stride_tricks.as_strided(np.array([[2.0]]), (1, 1), (8000, 16000))
    out = np.zeros((1, 1))
    multiply(out, a, a)
    assert out[0, 0] == 4.0
    for empty in (np.empty((0, 4)), np.empty((4, 0)).T):
        multiply(np.empty((0, 3)), empty, np.ones((4, 3)))


def test_views_into_the_middle_of_memory() -> None:
    big = torch.full((20, 20), math.nan, dtype=torch.float64)
    a, b = (big[3:8, 2:6], big[10:14, 7:10])
    a.copy_(torch.from_numpy(integers(5, 4)))
    b.copy_(torch.from_numpy(integers(4, 3)))
    out = np.empty((5, 3))
    for convert in (lambda x: x, DLPackOnly, lambda x: x.numpy()):
        multiply(out, convert(a), convert(b))
        assert np.array_equal(out, integers(5, 4) @ integers(4, 3))


# ---- refusals ------------------------------------------------------------------------------------------------------

OK = np.ones((2, 2))
UNREADABLE: dict[str, tuple[Any, str]] = {
    "list": ([[1.0]], "be a numpy.ndarray, a torch.Tensor or an array with `__dlpack__`, got list"),
    "none": (None, "be a numpy.ndarray, a torch.Tensor or an array with `__dlpack__`, got NoneType"),
    "byte order": (OK.astype(">f8"), "have the machine's byte order, got >f8; call `.astype(x.dtype.newbyteorder"),
    "complex": (OK.astype(complex), "be float32 or float64, got complex128"),
    "object": (OK.astype(object), "be float32 or float64, got object"),
    "bool": (OK.astype(bool), "be float32 or float64, got bool"),
    "long double": (OK.astype(np.longdouble), "-bit floats"),
    "int16": (OK.astype(np.int16), "be int8, uint8, int32 or int64 if it holds integers, got 16-bit ones"),
    "uint32": (OK.astype(np.uint32), "be int8, uint8, int32 or int64 if it holds integers, got 32-bit ones"),
    "nine": (np.ones((1,) * 9), "have at most 8 dimensions, got 9"),
    "torch nine": (torch.ones((1,) * 9), "have at most 8 dimensions, got 9"),
    "dlpack nine": (DLPackOnly(np.ones((1,) * 9)), "have at most 8 dimensions, got 9"),
    "meta": (torch.ones(2, 2, device="meta"), "be in memory of cpu or cuda, got device meta"),
    "torch complex": (torch.ones(2, 2, dtype=torch.complex64), "or an integer type, got torch.complex64"),
    "torch bool": (torch.ones(2, 2, dtype=torch.bool), "or an integer type, got torch.bool"),
    "torch float8": (torch.ones(2, 2).to(torch.float8_e5m2), "got torch.float8_e5m2"),
    "dlpack complex": (DLPackOnly(OK.astype(complex)), "be of a floating-point or integer type"),
    "dlpack bool": (DLPackOnly(torch.ones(2, 2, dtype=torch.bool)), "be of a floating-point or integer type"),
    "no capsule": (type("Odd", (), {"__dlpack__": lambda self, **_: 3})(), "give a DLPack capsule, got a int"),
    "split": (
        np.zeros((2, 2), dtype=[("tag", "i1"), ("x", "f8")])["x"],
        "have strides of whole elements, got 18 bytes for elements of 8; pass a contiguous copy",
    ),
    "unaligned": (foreign.unaligned(OK), "be aligned to its elements of 8 bytes, got an address between two of them"),
    "unaligned torch": (foreign.unaligned_tensor(torch.ones(2, 2)), "be aligned to its elements of 4 bytes"),
    "unaligned dlpack": (HandMade(np.ones(5), (2, 2), byte_offset=4), "be aligned to its elements of 8 bytes"),
    "negated": (foreign.negated(torch.ones(2, 2)), "hold its values, got a view that is to be negated"),
    "sparse": (torch.ones(2, 2).to_sparse(), "be an ordinary dense tensor, got a Tensor of layout torch.sparse_coo"),
    "nested": (foreign.nested(torch.ones(2, 2)), "be an ordinary dense tensor, got a "),
    "quantized": (foreign.quantized(torch.ones(2, 2)), "got torch.qint8"),
    "wrapper": (
        foreign.Wrapper(torch.ones(2, 2)),
        "hold memory of its own, got a Wrapper without any; pass the tensor",
    ),
    "fake": (foreign.fake(torch.ones(2, 2)), "hold memory of its own, got a FakeTensor without any"),
}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", UNREADABLE)
def test_refuses_to_read(name: str) -> None:
    array, text = UNREADABLE[name]
    with pytest.raises(_core.ArrayError) as caught:
        multiply(np.empty((2, 2)), array, OK)
    assert str(caught.value).startswith(A) and text in str(caught.value)
    assert _core.array_refusal(array) == str(caught.value).removeprefix("gemm: `a` ")


def test_an_empty_array_needs_no_memory() -> None:
    out = np.full((2, 2), math.nan)
    multiply(out, foreign.Wrapper(torch.ones(2, 0, dtype=torch.float64)), foreign.unaligned(np.ones((0, 2))))
    assert not out.any()


@pytest.mark.parametrize("convert", [read_only, exported_read_only], ids=["numpy", "dlpack"])
def test_refuses_to_write_what_is_read_only(convert: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="gemm: `c` must be writable, got a read-only array; pass a writable copy"):
        multiply(convert(np.zeros((2, 2))), OK, OK)


def test_a_broadcast_array_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        multiply(np.broadcast_to(np.zeros(2), (2, 2)), OK, OK)


def test_errors_of_the_producer_pass_through() -> None:
    class Broken:
        def __dlpack__(self, **options: Any) -> Any:
            raise OverflowError("no more capsules")

    with pytest.raises(OverflowError, match="no more capsules"):
        multiply(np.empty((2, 2)), Broken(), OK)


# ---- capsules that no library exports ------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, (1, 0), (1, 9)], ids=str)
def test_byte_offsets_and_missing_strides(version: tuple[int, int] | None) -> None:
    base = np.arange(40.0)
    compact = HandMade(base, (2, 3), byte_offset=8 * 5, version=version)
    reversed_rows = HandMade(base, (3, 2), (-4, 1), byte_offset=8 * 30, version=version)
    out = np.empty((2, 2))
    multiply(out, compact, reversed_rows)
    assert np.array_equal(out, base[5:11].reshape(2, 3) @ np.array([[30.0, 31], [26, 27], [22, 23]]))
    gc.collect()
    assert compact.deleted == reversed_rows.deleted == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"version": (2, 0)}, "speak DLPack version 1, got 2"),
        ({"device": capsules.METAL}, "be in memory of cpu or cuda, got DLPack device 8"),
        ({"lanes": 2}, "hold numbers, got DLPack vectors of 2"),
        ({"bits": 8}, "got 8-bit floats"),
    ],
    ids=str,
)
def test_foreign_capsules_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=A + ".*" + text):
        multiply(np.empty((2, 2)), HandMade(np.ones(4), (2, 2), **options), OK)


def test_memory_of_a_gpu_is_not_read() -> None:
    with pytest.raises(ValueError, match=A + "be in host memory, got a CUDA array"):
        multiply(np.empty((2, 2)), HandMade(np.ones(4), (2, 2), device=capsules.CUDA), OK)
