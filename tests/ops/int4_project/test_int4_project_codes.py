"""Codes against the float64 reference: shapes, layouts, dtypes, levels, threads, libraries; the published errors."""

from __future__ import annotations

import math

import int4_cases
import lowrank_core
import numpy as np
import pytest
import torch
from lowrank_core import _core
from lowrank_core.reference import int4_project as reference
from testing import cases, checks, layouts, machine, tolerance
from torch import Tensor

SCHEMES, ROUNDINGS = int4_cases.SCHEMES, int4_cases.ROUNDINGS


def assert_equals_reference(x: Tensor, rounding: str, **settings: object) -> None:
    """Scales and offsets to the bit, codes too but for places within rounding of a decision."""
    q = int4_cases.quantize(x, rounding=rounding, seed=7, **settings)
    packed, scales, offsets = reference.quantize_int4(x.float(), rounding=rounding, seed=7, **settings)
    assert q.packed.shape == packed.shape and q.packed.dtype == torch.uint8
    assert torch.equal(q.scales.double(), scales)
    assert q.offsets is None or torch.equal(q.offsets.double(), offsets)
    ours, theirs = (int4_cases.codes(q._replace(packed=p)).long() for p in (q.packed, packed))
    assert bool(((ours - theirs).abs() <= 1).all())
    # A place moves by about 4 units in 16 steps; a decision is met by a share of that of all elements.
    share = float((ours != theirs).double().mean()) if x.numel() else 0.0
    assert share * x.numel() <= 1 + 128 * tolerance.UNIT[torch.float32] * x.numel()
    exact = int4_cases.decoded(q)
    assert torch.equal(lowrank_core.dequantize_int4(q), exact.float())
    whole = q._replace(shape=tuple(2 * n if d == q.dim else n for d, n in enumerate(q.packed.shape)))
    used = q.shape[q.dim]
    assert not int4_cases.codes(whole).narrow(q.dim, used, whole.shape[q.dim] - used).any()


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_length_and_group(scheme: str, rounding: str) -> None:
    for group_size in int4_cases.GROUPS:
        for length in int4_cases.LENGTHS:
            x = cases.gaussian(3, length, seed=group_size)
            assert_equals_reference(x, rounding, scheme=scheme, group_size=group_size)
            assert_equals_reference(x.mT, rounding, scheme=scheme, group_size=group_size, dim=0)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("shape", [(97,), (17, 45), (3, 70, 5), (2, 3, 33, 4), (1, 1, 1), (5, 40, 1)])
def test_every_dimension(shape: tuple[int, ...], rounding: str) -> None:
    x = torch.from_numpy(cases.generator(*shape).standard_normal(shape))
    for dim in range(-len(shape), len(shape)):
        assert_equals_reference(x, rounding, scheme="affine", group_size=32, dim=dim)
        assert int4_cases.quantize(x, dim=dim).dim == dim % len(shape)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 2)])
def test_empty_arrays(shape: tuple[int, ...]) -> None:
    for dim in range(len(shape)):
        q = int4_cases.quantize(torch.ones(shape), dim=dim)
        assert q.shape == shape and q.packed.numel() == 0
        assert lowrank_core.dequantize_int4(q).shape == shape


@pytest.mark.parametrize("dtype", int4_cases.FLOATS, ids=str)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_any_strides_and_dtype_and_nan_around(layout: str, dtype: torch.dtype, dim: int) -> None:
    x = cases.gaussian(45, 37, 2).to(dtype)
    for rounding in ROUNDINGS:
        expected = int4_cases.quantize(x.float().contiguous(), dim=dim, group_size=32, rounding=rounding)
        q = int4_cases.quantize(layouts.LAYOUTS[layout](x), dim=dim, group_size=32, rounding=rounding)
        assert checks.same_bits(int4_cases.arrays(q), int4_cases.arrays(expected))


def test_negative_and_repeated_strides() -> None:
    x = cases.gaussian(33, 40).float()
    plain = int4_cases.quantize(x.numpy(), dim=0)
    assert checks.same_bits(
        int4_cases.arrays(int4_cases.quantize(layouts.reversed_view(x.numpy()), dim=0)), int4_cases.arrays(plain)
    )
    line = x[:1].expand(20, 40)
    assert checks.same_bits(
        int4_cases.arrays(int4_cases.quantize(line)), int4_cases.arrays(int4_cases.quantize(line.clone()))
    )


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_levels_threads_and_libraries_give_the_same_bits(scheme: str, rounding: str) -> None:
    x = cases.gaussian(300, 201).float()
    for dim in (0, 1):
        settings = {"scheme": scheme, "rounding": rounding, "dim": dim, "seed": 3}
        q = int4_cases.quantize(x, **settings)
        plain = (*int4_cases.arrays(q), lowrank_core.dequantize_int4(q))
        for level in _core.isa_levels():
            for count in (1, 2, 3):
                with machine.isa(level), machine.threads(count):
                    other = int4_cases.quantize(x, **settings)
                    assert checks.same_bits((*int4_cases.arrays(other), lowrank_core.dequantize_int4(q)), plain)
        numpy = int4_cases.quantize(x.numpy(), **settings)
        assert all(isinstance(part, np.ndarray) for part in int4_cases.arrays(numpy))
        assert checks.same_bits(numpy.packed, q.packed)
        for ours, theirs in ((numpy.scales, q.scales), (numpy.offsets, q.offsets)):
            assert (ours is None and theirs is None) or checks.same_bits(ours, theirs.float())
        assert checks.same_bits(lowrank_core.dequantize_int4(numpy), plain[-1])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", int4_cases.FLOATS, ids=str)
def test_dequantization_rounds_once_to_any_dtype(dtype: torch.dtype, scheme: str) -> None:
    q = int4_cases.quantize(cases.gaussian(70, 33), scheme=scheme, dim=0, group_size=32)
    exact = int4_cases.decoded(q).float()
    for wanted in (dtype, str(dtype).removeprefix("torch.")):
        assert checks.same_bits(lowrank_core.dequantize_int4(q, wanted), exact.to(dtype))
    assert checks.same_bits(lowrank_core.dequantize_int4(q), exact)
    numpy = int4_cases.quantize(cases.gaussian(70, 33).numpy(), scheme=scheme, dim=0, group_size=32)
    for wanted in (np.float64, "float64", np.dtype("float64")):
        assert checks.same_bits(lowrank_core.dequantize_int4(numpy, wanted), exact.double())


# ---- the published errors ------------------------------------------------------------------------------------------

GAUSSIAN = {  # relative Frobenius error of Gaussian data, by group size
    32: {"affine_zp": 0.0808, "affine": 0.0783, "symmetric": 0.0971, "nf4": 0.0873},
    64: {"affine_zp": 0.0911, "affine": 0.0896, "symmetric": 0.1077, "nf4": 0.0920},
    128: {"affine_zp": 0.1006, "affine": 0.0998, "symmetric": 0.1174, "nf4": 0.0956},
    256: {"affine_zp": 0.1094, "affine": 0.1090, "symmetric": 0.1264, "nf4": 0.0987},
}
ORTHONORMAL = {64: (0.091, 0.099), 128: (0.100, 0.109), 256: (0.109, 0.121)}  # of [2048, 256]: error, ‖PᵀP - 1‖₂
LARGEST_STEP = 1 + 2 * tolerance.UNIT[torch.bfloat16]  # a scale that is rounded up, over the one of the tables


def relative_error(x: Tensor, q: lowrank_core.Int4Matrix) -> float:
    return tolerance.norm(lowrank_core.dequantize_int4(q, "float64") - x.double()) / tolerance.norm(x)


def assert_anchor(found: float, anchor: float, digits: int, groups: int) -> None:
    """The anchor is rounded, and both are means over groups whose errors scatter by less than a third of their size."""
    spread = 3 * (1 / 3) / math.sqrt(groups)
    assert (1 - spread) * anchor - 10.0**-digits <= found <= (LARGEST_STEP + spread) * anchor + 10.0**-digits


@pytest.mark.parametrize("group_size", GAUSSIAN)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_error_of_gaussian_data(scheme: str, group_size: int) -> None:
    x = cases.gaussian(512, 1024).float()
    q = int4_cases.quantize(x, scheme=scheme, group_size=group_size)
    assert_anchor(relative_error(x, q), GAUSSIAN[group_size][scheme], 4, x.numel() // group_size)


@pytest.mark.parametrize("group_size", ORTHONORMAL)
def test_error_of_an_orthonormal_basis(group_size: int) -> None:
    p = cases.orthonormal(2048, 256)
    q = int4_cases.quantize(p, scheme="affine_zp", group_size=group_size, dim=0)
    error, defect = ORTHONORMAL[group_size]
    assert_anchor(relative_error(p, q), error, 3, p.numel() // group_size)
    read = lowrank_core.dequantize_int4(q, "float64")
    found = float(torch.linalg.matrix_norm(read.mT @ read - torch.eye(256, dtype=torch.float64), ord=2))
    assert_anchor(found, defect, 3, 256)


def test_bytes_an_element() -> None:
    """Two codes a byte and two bfloat16 numbers a group: not one code a byte."""
    for scheme, most in (("affine", 0.53125), ("affine_zp", 0.53125), ("symmetric", 0.515625), ("nf4", 0.515625)):
        q = int4_cases.quantize(torch.ones(64, 1024), scheme=scheme)
        assert sum(part.nbytes for part in int4_cases.arrays(q)) == most * 64 * 1024
