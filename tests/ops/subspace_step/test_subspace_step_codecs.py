"""A step of stored numbers is the float32 step between decoding and encoding, bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.subspace_step.check import BLOCK
from lowrank_core.ops.subspace_step.codecs import decode_moment, encode_moment, round_stochastic
from subspace_cases import (
    LARGE,
    LIMITED,
    STRONG,
    Shape,
    Weight,
    every_residual,
    every_rule,
    every_side,
    stepped,
    take,
    weight,
)
from testing import checks, layouts, machine
from torch import Tensor

STORAGES = ("float32", "bfloat16", "codes")
LEVELS = _core.isa_levels()
Stored = Any


def room(like: Tensor, storage: str, second: bool) -> Stored:
    """Uninitialised memory for a moment; the codes of a second one have no sign."""
    if storage == "float32":
        return torch.empty_like(like)
    if storage == "bfloat16":
        return torch.empty_like(like, dtype=torch.bfloat16)
    codes = torch.empty_like(like, dtype=torch.uint8 if second else torch.int8)
    return codes, torch.empty(-(-like.numel() // BLOCK))


def stored(values: Tensor, storage: str, second: bool, seed: int, step: int) -> Stored:
    if storage == "float32":
        return values.clone()
    kept = room(values, storage, second)
    encode_moment(*(kept if isinstance(kept, tuple) else (kept, None)), values, second=second, seed=seed, step=step)
    return kept


def read(kept: Stored, second: bool) -> Tensor:
    if isinstance(kept, Tensor) and kept.dtype == torch.float32:
        return kept.clone()
    codes, scales = kept if isinstance(kept, tuple) else (kept, None)
    values = torch.empty_like(codes, dtype=torch.float32)
    decode_moment(values, codes, scales, second=second)
    return values


def composed(before: Weight, storages: tuple[str, str], **options: Any) -> Weight:
    """Decode, step in float32, encode: what a step of stored moments is."""
    plain = before.clone()
    plain.exp_avg = read(before.exp_avg, False)
    plain.exp_avg_sq = None if before.exp_avg_sq is None else read(before.exp_avg_sq, True)
    after = stepped(plain, **options)
    after.exp_avg = stored(after.exp_avg, storages[0], False, before.seed, before.step)
    if after.exp_avg_sq is not None:
        after.exp_avg_sq = stored(after.exp_avg_sq, storages[1], True, before.seed, before.step)
    return after


def coded(shape: Shape, storages: tuple[str, str], **keys: Any) -> Weight:
    w = weight(shape, **keys)
    w.exp_avg = stored(w.exp_avg, storages[0], False, 3, 1)
    w.exp_avg_sq = None if w.exp_avg_sq is None else stored(w.exp_avg_sq, storages[1], True, 3, 1)
    return w


@every_side
@every_rule
@pytest.mark.parametrize("storage", STORAGES[1:])
def test_coded_moments(storage: str, rule: str, side: str) -> None:
    """Also where the last block is not full, and where it is."""
    for shape, residual in itertools.product((Shape(45, 37, 7), Shape(30, 64, 8), LARGE), ("drop", "scaled", "sign")):
        before = coded(shape, (storage, storage), side=side, rule=rule, seed=11)
        options = {**STRONG, "rule": rule, "residual": residual}
        expected = composed(before, (storage, storage), **options)
        with machine.threads(2):
            assert checks.same_bits(stepped(before, **options).state(), expected.state())


@pytest.mark.parametrize("storages", [pair for pair in itertools.product(STORAGES, STORAGES) if len({*pair}) == 2])
def test_moments_stored_differently_are_refused(storages: tuple[str, str]) -> None:
    with pytest.raises(TypeError, match=r"`exp_avg_sq\[0\]` must be stored as `exp_avg\[0\]`, in \w+, got \w+"):
        take(coded(Shape(45, 37, 7), storages), **STRONG)


def test_numpy_holds_codes() -> None:
    before = coded(Shape(45, 37, 7), ("codes", "codes"))
    found = stepped(before.numpy(), **STRONG)
    assert isinstance(found.exp_avg[0], np.ndarray)
    assert checks.same_bits(found.state(), stepped(before, **STRONG).state())


@every_side
@every_residual
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_stochastic_weights(layout: str, residual: str, side: str) -> None:
    """A bfloat16 weight becomes what the float32 one does, rounded by the words of its seed, step and elements."""
    options = {**STRONG, "residual": residual}
    for shape in (Shape(45, 37, 6), Shape(150, 131, 9)):
        limit = 3.0 if residual in LIMITED else None
        before = weight(shape, side=side, dtype=torch.bfloat16, step=5, seed=77, limit=limit)
        before.param = layouts.LAYOUTS[layout](before.param)
        wide = before.clone()
        wide.param = layouts.LAYOUTS[layout](before.param.float())
        ours, exact = before, wide
        assert take(ours, rounding="stochastic", **options) and take(exact, **options)
        expected = torch.empty_like(ours.param)
        round_stochastic(expected, exact.param, seed=77, step=5)
        assert checks.same_bits(ours.param, expected)
        assert checks.same_bits(ours.state()[1:], exact.state()[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_only_bfloat16_is_rounded_stochastically(dtype: torch.dtype) -> None:
    w = weight(Shape(45, 37, 6), dtype=dtype)
    both = [stepped(w, rounding=rounding, **STRONG).state() for rounding in ("nearest", "stochastic")]
    assert checks.same_bits(*both)
    values = weight(Shape(45, 37, 6)).param.to(torch.float64 if dtype == torch.float64 else torch.float32)
    to = torch.empty(45, 37, dtype=dtype)
    round_stochastic(to, values, seed=1, step=1)
    assert checks.same_bits(to, values.to(dtype))


def test_codes_are_the_same_at_every_level() -> None:
    """Tier D0, with 1 and 3 threads."""
    values = weight(LARGE).exp_avg
    found = []
    for level, count in itertools.product(LEVELS, (1, 3)):
        with machine.isa(level), machine.threads(count):
            rows, columns = torch.empty(2, *values.shape, dtype=torch.bfloat16)
            columns = columns.mT.contiguous().mT
            for to in (rows, columns):
                round_stochastic(to, values, seed=9, step=4)
            moments = ((values, False), (values.square(), True))
            kept = [stored(x, storage, second, 9, 4) for storage in STORAGES[1:] for x, second in moments]
            decoded = [read(x, second) for x, second in zip(kept, (False, True) * 2, strict=True)]
            found.append((rows, columns.contiguous(), *kept, *decoded))
    assert checks.same_bits(found[0][0], found[0][1])
    assert all(checks.same_bits(found[0], other) for other in found[1:])
