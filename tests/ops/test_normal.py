"""Normal numbers of a seed: tier D0, so what is drawn is pinned."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.normal import fill_normal, fill_normal_list
from testing import machine

SHAPE = (37, 113)  # more than one task, and odd


def drawn(dtype: torch.dtype = torch.float64, *, seed: int = 11, divisor: float = 1.0) -> torch.Tensor:
    out = torch.full(SHAPE, torch.nan, dtype=dtype)
    fill_normal(out, seed, divisor=divisor)
    return out


def test_the_numbers_are_those_of_every_machine() -> None:
    digest = hashlib.sha256(drawn().numpy().astype("<f8").tobytes()).hexdigest()
    assert digest[:16] == "b725658b0fd3e51c"


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("count", (1, 2, 3))
@pytest.mark.parametrize("level", _core.isa_levels())
def test_levels_and_threads_do_not_change_a_bit(level: str, count: int, dtype: torch.dtype) -> None:
    expected = drawn(dtype, divisor=7.0)
    with machine.isa(level), machine.threads(count):
        assert torch.equal(drawn(dtype, divisor=7.0), expected)


def test_numbers_are_divided_in_float64_and_rounded_once() -> None:
    assert torch.equal(drawn(divisor=3.0), drawn() / 3.0)
    assert torch.equal(drawn(torch.float32, divisor=3.0), (drawn() / 3.0).float())


def test_a_number_depends_on_its_place_and_the_seed() -> None:
    part = torch.empty(2, SHAPE[1], dtype=torch.float64)
    fill_normal(part, 11)
    assert torch.equal(part, drawn()[:2])
    assert not bool((drawn() == drawn(seed=12)).any())
    assert abs(float((drawn() * drawn(seed=12)).mean())) < 5 / drawn().numel() ** 0.5


@pytest.mark.parametrize(
    "out", (np.empty(4), np.empty((4, 4))[:, ::2], np.empty((2, 2), np.float16)), ids=("1-d", "strided", "float16")
)
def test_another_array_is_refused(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"gaussian: `out` must be a contiguous matrix of float32 or float64"):
        fill_normal(out, 0)


@pytest.mark.parametrize("divisor", (0.0, -1.0, float("nan")))
def test_another_divisor_is_refused(divisor: float) -> None:
    with pytest.raises(ValueError, match=r"gaussian: `divisor` must be positive"):
        fill_normal(np.empty((2, 2)), 0, divisor=divisor)


def test_each_of_a_list_is_what_it_is_alone() -> None:
    shapes = ((3, 5), (0, 4), SHAPE, (64, 65), (1, 1))  # one task, none, several
    out = [
        torch.full(shape, torch.nan, dtype=torch.float64 if i % 2 else torch.float32) for i, shape in enumerate(shapes)
    ]
    fill_normal_list(out, range(5), [1.0, 2.0, 3.0, 4.0, 5.0])
    for seed, one in enumerate(out):
        alone = torch.full_like(one, torch.nan)
        fill_normal(alone, seed, divisor=1.0 + seed)
        assert torch.equal(one, alone)


def test_lists_of_unlike_lengths_are_refused() -> None:
    for seeds, divisors in (([0, 1], [1.0]), ([0], [])):
        with pytest.raises(ValueError, match="gaussian: lists must be of one length"):
            fill_normal_list([np.empty((2, 2))], seeds, divisors)
