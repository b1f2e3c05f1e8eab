"""Stochastic rounding: the law, the mean, and what never moves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.subspace_step.check import BLOCK
from lowrank_core.ops.subspace_step.codecs import decode_moment, encode_moment, round_stochastic
from lowrank_core.reference import philox
from subspace_cases import Shape, every_side, take, weight
from testing import cases, machine, step_bounds, tolerance
from torch import Tensor

PARAMETER_STREAM, STATE_STREAM = 2, 3  # docs/numerics.md
DRAWS = 100_000
FINITE = 0x7F80  # the bfloat16 magnitudes below it


def rounded(values: Tensor, *, seed: int = 0, step: int = 1) -> Tensor:
    to = torch.empty_like(values, dtype=torch.bfloat16)
    round_stochastic(to, values, seed=seed, step=step)
    return to


def by_words(values: Tensor, words: np.ndarray) -> Tensor:
    """The law once more: 16 random bits are added below the last place, the rest is cut off."""
    bits = values.numpy().reshape(-1).view(np.uint32).astype(np.uint64) + (words >> np.uint64(16))
    return torch.from_numpy((bits >> np.uint64(16)).astype(np.uint16).view(np.int16)).view(torch.bfloat16)


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("shape", [(37, 45), (37, 64), (29, 100)], ids=str)  # the later ones have lines in step
@pytest.mark.parametrize(("seed", "step"), [(0, 1), (2**40 + 3, 7), (2**63 - 1, 2**32 - 1)])
def test_the_words_are_those_of_philox(seed: int, step: int, shape: tuple[int, int], level: str) -> None:
    """Of a weight by the row-major number of the element; a second moment's stand behind a first one's."""
    values = cases.gaussian(*shape).float()
    element = np.arange(values.numel())
    words = philox.bits(seed, element, stream=PARAMETER_STREAM, step=step)
    with machine.isa(level):
        assert torch.equal(rounded(values, seed=seed, step=step).view(-1), by_words(values, words))
        turned = rounded(values.mT, seed=seed, step=step).mT.contiguous()
    words = philox.bits(seed, element.reshape(shape[::-1]).T, stream=PARAMETER_STREAM, step=step).reshape(-1)
    assert torch.equal(turned.view(-1), by_words(values, words))
    for second in (False, True):
        kept = torch.empty(shape, dtype=torch.bfloat16)
        with machine.isa(level):
            encode_moment(kept, None, values, second=second, seed=seed, step=step)
        words = philox.bits(seed, element + second * values.numel(), stream=STATE_STREAM, step=step)
        assert torch.equal(kept.view(-1), by_words(values, words))


def test_the_mean_of_bfloat16() -> None:
    """64 values of all magnitudes: only the two neighbours occur, in the proportion that makes the value their mean."""
    values = (cases.gaussian(1, 64).float() * torch.logspace(-30, 30, 64)).expand(DRAWS, -1)
    found = rounded(values).double()
    low = (values[0].view(torch.int32) & -0x10000).view(torch.float32)
    high = (low.view(torch.int32) + 0x10000).view(torch.float32)
    x, a, b = (t.double() for t in (values[0], low, high))
    assert bool(((found == a) | (found == b)).all())
    assert bool(((found.mean(dim=0) - x).abs() <= step_bounds.mean_of_draws((b - x) * (x - a), DRAWS)).all())


def test_what_is_a_bfloat16_never_moves() -> None:
    """All bit patterns; NaN stays NaN, infinity stays infinity."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16)
    values = (every.to(torch.int32) << 16).view(torch.float32).view(256, 256)
    number = values.isnan().logical_not()
    for seed in range(5):
        found = rounded(values, seed=seed)
        assert torch.equal(found.view(torch.int16)[number], every.view(256, 256)[number])
        assert bool(found[~number].isnan().all())


def test_the_largest_numbers_stay_finite_and_nan_stays_nan() -> None:
    ends = torch.tensor([0x7F7FFFFF, 0x7F7F0001, 0x7F800001, 0x7FFFFFFF, 0x7F800000], dtype=torch.int32)
    values = torch.stack([ends, ends | -0x80000000]).view(torch.float32).view(-1, 1).expand(-1, 1000)
    found = rounded(values)
    finite = values.abs() < math.inf
    assert bool((found[finite].view(torch.int16) & 0x7FFF == FINITE - 1).all())
    assert torch.equal(found.isnan(), values.isnan())
    assert torch.equal(found[values.isinf()].float(), values[values.isinf()])


def test_denormals_round_to_their_neighbours() -> None:
    values = torch.tensor([1.5 * 2.0**-133, 2.0**-149, -(2.0**-140)]).view(-1, 1).expand(-1, DRAWS).contiguous()
    found, x = rounded(values).double(), values[:, 0].double()
    unit = 2.0**-133
    a, b = (x / unit).floor() * unit, ((x / unit).floor() + 1) * unit
    assert bool(((found == a[:, None]) | (found == b[:, None])).all())
    assert bool(((found.mean(dim=1) - x).abs() <= step_bounds.mean_of_draws((b - x) * (x - a), DRAWS)).all())


def encoded(values: Tensor, second: bool, step: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    codes = torch.empty_like(values, dtype=torch.uint8 if second else torch.int8)
    scales, decoded = torch.empty(-(-values.numel() // BLOCK)), torch.empty_like(values)
    encode_moment(codes, scales, values, second=second, seed=5, step=step)
    decode_moment(decoded, codes, scales, second=second)
    return codes, scales, decoded


@pytest.mark.parametrize("second", [False, True])
def test_the_mean_of_codes(second: bool) -> None:
    """One block many times: two neighbouring codes at most, and the mean is the value, of v itself for roots."""
    count = 4000
    one = cases.gaussian(1, BLOCK).float()
    one = one.square() + 1e-3 if second else one
    codes, scales, decoded = encoded(one.expand(count, -1).contiguous(), second)
    assert len(set(scales.tolist())) == 1
    scale = float(scales[0])
    lower = (one.double().sqrt() if second else one.double()).div(scale).floor()
    assert bool(((codes - lower >= 0) & (codes - lower <= 1)).all())
    a, b = ((x * scale) ** 2 if second else x * scale for x in (lower, lower + 1))
    x = one.double()
    variance = ((b - x) * (x - a)).clamp(min=0)
    rounding = 8 * tolerance.UNIT[torch.float32] * x.abs().max()  # of the place among the codes, and of decoding
    off = (decoded.double().mean(dim=0) - x).abs()
    assert bool((off <= step_bounds.mean_of_draws(variance, count) + rounding).all())


@pytest.mark.parametrize("second", [False, True])
def test_blocks_of_zeros_and_tails(second: bool) -> None:
    """A block of zeros has scale 0 and comes back as zeros; its neighbours do not change it."""
    values = cases.gaussian(1, 3 * BLOCK + 7).float().square()
    values[:, BLOCK : 2 * BLOCK] = 0.0
    values[:, 3 * BLOCK :] = 0.0
    codes, scales, decoded = encoded(values, second)
    assert torch.equal(scales == 0, torch.tensor([False, True, False, True]))
    zero = values == 0
    assert not codes[zero].any() and not decoded[zero].any()
    assert bool((decoded[~zero] > 0).all()) or not second  # a positive second moment never becomes 0
    empty = encoded(torch.empty(1, 0), second)
    assert all(x.numel() == 0 for x in empty)


@pytest.mark.parametrize("second", [False, True])
def test_what_is_not_finite_is_never_decoded_as_a_number(second: bool) -> None:
    for bad in (math.nan, math.inf):
        values = torch.ones(1, 2 * BLOCK)
        values[0, 3] = bad
        decoded = encoded(values, second)[2]
        assert not decoded[0, :BLOCK].isfinite().any() and bool(decoded[0, BLOCK:].isfinite().all())


@every_side
def test_a_second_moment_in_bfloat16_decays(side: str) -> None:
    """To nearest, 0.999 of it would be rounded back to itself for ever; stochastically it decays in the mean."""
    steps, beta, start = 200, 0.999, 1.0
    w = weight(Shape(16, 512, 8), side=side)
    w.grad.zero_()
    w.exp_avg, w.exp_avg_sq = (torch.full_like(x, start, dtype=torch.bfloat16) for x in (w.exp_avg, w.exp_avg_sq))
    for w.step in range(1, steps + 1):
        assert take(w, lr=0.0, betas=(0.9, beta))
    # Values of at most 1 are rounded by at most a spacing of 2^-8, with a variance of at most a quarter of its square.
    variance = torch.tensor(steps * (2.0**-8) ** 2 / 4)
    mean, expected = float(w.exp_avg_sq.double().mean()), start * beta**steps
    assert abs(mean - expected) <= float(step_bounds.mean_of_draws(variance, w.exp_avg_sq.numel()))
    assert expected < start - 0.1
