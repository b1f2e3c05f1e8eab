"""The invariants of a quantizer, and the defects of the published ones."""

from __future__ import annotations

import math

import int4_cases
import lowrank_core
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowrank_core.reference import int4_project as reference
from testing import cases, checks, tolerance
from torch import Tensor

SCHEMES, ROUNDINGS = int4_cases.SCHEMES, int4_cases.ROUNDINGS
MOST = 2.0**126  # so that a group's range stays within 2^127
schemes, roundings = st.sampled_from(SCHEMES), st.sampled_from(ROUNDINGS)
sizes = st.floats(0.0, MOST, width=32)
numbers = st.floats(-MOST, MOST, width=32, allow_subnormal=True)
lists = st.lists(numbers | st.floats(-1.0, 1.0, width=32), min_size=1, max_size=80)


def vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


@given(lists, schemes, roundings, st.sampled_from([32, 64]))
def test_no_element_is_off_by_more_than_its_step(values: list[float], scheme: str, rounding: str, group: int) -> None:
    x = vector(values)
    q = int4_cases.quantize(x, scheme=scheme, rounding=rounding, group_size=group)
    int4_cases.assert_near(x, q, 0.5 if rounding == "nearest" else 1.0)
    assert bool(lowrank_core.dequantize_int4(q).isfinite().all())
    assert bool((q.scales >= 0).all())


@given(lists, schemes)
def test_larger_elements_have_no_smaller_codes(values: list[float], scheme: str) -> None:
    x = vector(values[:32]).sort().values
    q = int4_cases.quantize(x, scheme=scheme, group_size=32)
    assert bool((int4_cases.codes(q).int().diff() >= 0).all())


@given(st.lists(st.floats(-1.0, 1.0, width=16), min_size=1, max_size=70), schemes, st.integers(-80, 80))
def test_a_power_of_two_changes_scales_alone(values: list[float], scheme: str, power: int) -> None:
    x = vector(values)
    plain, scaled = (int4_cases.quantize(y, scheme=scheme, group_size=32) for y in (x, x * 2.0**power))
    assert torch.equal(plain.packed, scaled.packed)
    assert torch.equal(plain.scales.double() * 2.0**power, scaled.scales.double())


@given(schemes, st.integers(0, 99))
def test_permuted_groups_have_permuted_codes(scheme: str, seed: int) -> None:
    x = cases.gaussian(4, 32, 3, seed=seed).float()  # 4 groups in each of 3 lines
    order = torch.from_numpy(cases.generator(seed).permutation(4))
    first, second = (int4_cases.quantize(y.flatten(-2), scheme=scheme, group_size=32) for y in (x, x[:, order]))
    assert torch.equal(first.packed.unflatten(-1, (4, 16))[:, order].flatten(-2), second.packed)
    assert torch.equal(first.scales[:, order], second.scales)


@given(st.lists(st.integers(0, 15), min_size=30, max_size=30), schemes, st.integers(-9, 9), st.integers(-9, 9))
def test_codes_come_back(inner: list[int], scheme: str, power: int, start: int) -> None:
    """A decoded array that uses both ends is encoded as what it was decoded from."""
    ends = [1 if scheme == "symmetric" else 0, 15]
    codes = torch.tensor([*ends, *(max(c, ends[0]) for c in inner)], dtype=torch.uint8)
    scale = torch.tensor([2.0**power], dtype=torch.bfloat16)
    offset = {"affine": scale * start, "affine_zp": torch.tensor([abs(start) * 1.0], dtype=torch.bfloat16)}.get(scheme)
    made = lowrank_core.Int4Matrix(codes[::2] + 16 * codes[1::2], scale, offset, (32,), 0, 32, scheme)
    again = int4_cases.quantize(lowrank_core.dequantize_int4(made), scheme=scheme, group_size=32)
    assert checks.same_bits(int4_cases.arrays(again), int4_cases.arrays(made))


@given(numbers, schemes, st.integers(1, 70))
def test_constant_groups(value: float, scheme: str, length: int) -> None:
    """Also of one sign, zero and subnormal; a group without range has scale 0 where the scheme has an offset."""
    x = torch.full((length,), value, dtype=torch.float32)
    q = int4_cases.quantize(x, scheme=scheme, group_size=32)
    assert scheme != "affine" or not q.scales.any()
    # The constant is an end of the range, hence a code, up to the rounding of the scale and for "affine" of the offset.
    share = tolerance.UNIT[torch.bfloat16] * (1 if scheme == "affine" else 2)
    least = 16 * 2.0**-133  # the smallest bfloat16 scale
    assert bool(
        ((lowrank_core.dequantize_int4(q).double() - x.double()).abs() <= share * x.double().abs() + least).all()
    )


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_stay_zeros(scheme: str, rounding: str) -> None:
    q = int4_cases.quantize(torch.zeros(3, 100), scheme=scheme, rounding=rounding, group_size=32)
    assert not q.scales.any() and not lowrank_core.dequantize_int4(q).any()


def test_nothing_between_codes_moves_up_by_chance() -> None:
    """Ties go to the upper code: 16 even steps of 1 from 0."""
    x = torch.cat([torch.tensor([0.0, 15.0]), torch.arange(15) + 0.5, torch.arange(15) + 0.49999])
    assert int4_cases.codes(int4_cases.quantize(x)).tolist() == [0, 15, *range(1, 16), *range(15)]
    level = reference.levels("nf4").float()
    middle = (level[1:].double() + level[:-1].double()) / 2
    codes = int4_cases.codes(
        int4_cases.quantize(torch.cat([level, middle.float().nextafter(torch.tensor(2.0))]), scheme="nf4")
    )
    assert codes.tolist() == [*range(16), *range(1, 16)]


# ---- stochastic rounding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_stochastic_rounding_is_right_in_the_mean(scheme: str, shift: float) -> None:
    """Everywhere, the ends of the groups included: |z| < 5 for each of 128 elements, and two outcomes at most."""
    draws = 20000
    x = cases.gaussian(1, 128, seed=2).float() + shift
    q = int4_cases.quantize(x.expand(draws, 128), scheme=scheme, rounding="stochastic", group_size=64, seed=11)
    found = lowrank_core.dequantize_int4(q, "float64")
    low, high = found.amin(dim=0), found.amax(dim=0)
    one = q._replace(
        packed=q.packed[:1], scales=q.scales[:1], offsets=None if q.offsets is None else q.offsets[:1], shape=(1, 128)
    )
    rounding, gap = int4_cases.slack(x, one)[0], int4_cases.gap(x, one)[0]
    assert bool((high - low <= gap + 2 * rounding).all())
    away = (low - x.double()[0]).abs()  # of one of the two neighbours, whichever
    variance = (away * (gap - away)).clamp(min=0.0)
    bound = 5 * ((variance / draws).sqrt() + gap / draws)  # the second where an outcome is expected less than once
    assert bool(((found.mean(dim=0) - x.double()[0]).abs() <= bound + rounding).all())


def test_chance_depends_on_seed_and_place_alone() -> None:
    x = cases.gaussian(40, 130).float()
    plain = int4_cases.quantize(x, rounding="stochastic", seed=1).packed
    assert torch.equal(plain, int4_cases.quantize(x, rounding="stochastic", seed=1).packed)
    assert not torch.equal(plain, int4_cases.quantize(x, rounding="stochastic", seed=2).packed)
    assert torch.equal(plain[:9], int4_cases.quantize(x[:9], rounding="stochastic", seed=1).packed)
    assert not torch.equal(plain[1:2], int4_cases.quantize(x[1:2], rounding="stochastic", seed=1).packed)


# ---- defects of published quantizers -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("low", [10.0, 1.0, 0.3, -2.0, -11.0])
def test_groups_of_one_sign_survive(scheme: str, low: float) -> None:
    """A zero point clamped to the codes turns 10 .. 11 into 1."""
    x = low + torch.linspace(0.0, 1.0, 256) * abs(low) / 10
    q = int4_cases.quantize(x, scheme=scheme, group_size=256)
    int4_cases.assert_near(x, q)
    # Half a step of a scale that is rounded up from the range or the largest element.
    half = {"affine": 1 / 30, "affine_zp": 1 / 30, "symmetric": 1 / 14, "nf4": 0.14}[scheme]
    error = (lowrank_core.dequantize_int4(q) - x).abs().max() / x.abs().max()
    assert float(error) <= half * (1 + 4 * tolerance.UNIT[torch.bfloat16])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-38, 1e-20, 1e-7, 1.0, 1e20, 8e37])
def test_no_range_is_too_small_or_too_large(scheme: str, size: float) -> None:
    """A floor under the range, say of 1e-5, flattens small data."""
    x = (cases.gaussian(2, 256).clamp(-3, 3) / 3).float() * torch.tensor(size)
    int4_cases.assert_near(x, int4_cases.quantize(x, scheme=scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_outlier(scheme: str) -> None:
    x = cases.gaussian(1, 128).float() * 1e-3
    x[0, 50] = -100.0
    q = int4_cases.quantize(x, scheme=scheme)
    int4_cases.assert_near(x, q)
    # The outlier itself is an end of the range whatever its sign.
    assert abs(float(lowrank_core.dequantize_int4(q)[0, 50]) + 100) <= 200 * tolerance.UNIT[torch.bfloat16] + float(
        q.scales
    ) / 2 * (scheme == "affine_zp")


def test_nf4_has_both_ends() -> None:
    """A map without -1 shrinks a group whose largest element is negative at every round."""
    x = torch.tensor([-1.0, 0.5, 0.25, -0.125])
    q = int4_cases.quantize(x, scheme="nf4")
    for _ in range(5):
        q = int4_cases.quantize(lowrank_core.dequantize_int4(q), scheme="nf4")
    assert float(lowrank_core.dequantize_int4(q)[0]) == -1.0


@settings(max_examples=20)
@given(st.sampled_from([math.nan, math.inf, -math.inf]), schemes, st.integers(0, 299), st.sampled_from([0, 1]))
def test_what_is_not_finite_is_refused(bad: float, scheme: str, place: int, dim: int) -> None:
    x = np.ones((3, 100), dtype=np.float32)
    x.flat[place] = bad
    with pytest.raises(ValueError, match="quantize_int4: `x` must be finite, got NaN or infinity"):
        lowrank_core.quantize_int4(x, scheme=scheme, dim=dim)
