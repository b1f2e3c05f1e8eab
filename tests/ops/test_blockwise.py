"""The 8-bit blocks of moments and weights, through their private binding: the same bits everywhere, error, mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lowrank_core import _core
from lowrank_core.reference.philox import bits
from testing import cases, checks, machine, tolerance
from torch import Tensor

BLOCK, STATE_STREAM = 256, 3
MAPS = {"signed": (torch.int8, 127), "root": (torch.uint8, 255)}
SIZES = (1, cases.VECTOR, BLOCK - 1, BLOCK, BLOCK + 1, 1000, 128 * BLOCK + 5)


def sample(size: int, kind: str) -> Tensor:
    x = cases.gaussian(1, size)[0].float()
    return x if kind == "signed" else x.square()


def encode(values: Tensor, kind: str, **draws: int) -> tuple[Tensor, Tensor]:
    codes = torch.empty(values.shape, dtype=MAPS[kind][0])
    scales = torch.empty(-(-values.numel() // BLOCK))
    _core.blockwise_encode(codes, scales, values, map=kind, **draws)
    return codes, scales


def decode(codes: Tensor, scales: Tensor, kind: str) -> Tensor:
    values = torch.empty(codes.shape)
    _core.blockwise_decode(values, codes, scales, map=kind)
    return values


def statement(values: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Places in steps of the scale, and the scales, in float64."""
    spread = values.double() if kind == "signed" else values.double().sqrt()
    largest = torch.stack([block.abs().max() for block in spread.split(BLOCK)])
    scale = largest / MAPS[kind][1]
    return spread / scale.repeat_interleave(BLOCK)[: values.numel()], scale


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("size", SIZES)
def test_codes_are_those_of_the_statement(size: int, kind: str) -> None:
    values = sample(size, kind)
    place, scale = statement(values, kind)
    codes, scales = encode(values, kind)
    # Of the float32 scale: one division, and for root the square root before it.
    assert bool(((scales.double() - scale).abs() <= 2 * tolerance.UNIT[torch.float32] * scale).all())
    rounding = 4 * 255 * tolerance.UNIT[torch.float32]
    off = (codes.double() - place).abs()
    raised = (place < 1) & (codes == 1) if kind == "root" else torch.zeros_like(place, dtype=torch.bool)
    assert bool(((off <= 0.5 + rounding) | raised).all())
    read = codes.double() * scales.double().repeat_interleave(BLOCK)[:size]
    read = read if kind == "signed" else read.square()
    error = 3 * tolerance.UNIT[torch.float32] * read.abs()
    assert bool(((decode(codes, scales, kind).double() - read).abs() <= error).all())


@pytest.mark.parametrize("kind", MAPS)
def test_stochastic_codes_are_those_of_their_words(kind: str) -> None:
    values = sample(1000, kind)
    place, _ = statement(values, kind)
    codes, _ = encode(values, kind, seed=5, step=9)
    words = bits(5, np.arange(1000, dtype=np.uint64), stream=STATE_STREAM, step=9).astype(np.int64) >> 8
    uniform = torch.from_numpy(words).double() * 2.0**-24
    below = place.floor()
    chance = place - below if kind == "signed" else (place**2 - below**2) / (2 * below + 1)
    expected = below + (uniform < chance)
    # A decision within the rounding of a place may fall either way; a positive root code is never 0.
    clear = ((uniform - chance).abs() > 8 * 255 * tolerance.UNIT[torch.float32]) & (
        place > 1 if kind == "root" else True
    )
    assert torch.equal(codes.double()[clear], expected[clear]) and int(clear.sum()) > 900
    assert not torch.equal(codes, encode(values, kind, seed=5, step=10)[0])


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("draws", [{}, {"seed": 3}], ids=["nearest", "stochastic"])
def test_levels_and_threads_give_the_same_bits(draws: dict[str, int], kind: str) -> None:
    values = sample(SIZES[-1], kind)
    plain = encode(values, kind, **draws)
    back = decode(*plain, kind)
    for level in _core.isa_levels():
        for count in (1, 2, 3):
            with machine.isa(level), machine.threads(count):
                assert checks.same_bits(encode(values, kind, **draws), plain)
                assert checks.same_bits(decode(*plain, kind), back)


def test_refusals() -> None:
    values, codes, scales = torch.ones(300), torch.empty(300, dtype=torch.int8), torch.empty(2)
    for arguments, sentence in (
        ((codes, scales, values.double()), "must be float32"),
        ((codes.byte(), scales, values), "`codes` int8 for signed"),
        ((codes, scales[:1], values), "one scale for each block"),
        ((codes[::2], scales[:1], values[:150]), "must be contiguous"),
    ):
        with pytest.raises(ValueError, match=sentence):
            _core.blockwise_encode(*arguments, map="signed")
    with pytest.raises(ValueError, match="`map` must be 'signed' or 'root', got 'log'"):
        _core.blockwise_encode(codes, scales, values, map="log")
