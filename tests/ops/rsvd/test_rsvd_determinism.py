"""Tier D1: one input, one seed, one level: the same bits whatever the threads, the batch or the library."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import lowrank_core
import numpy as np
import pytest
import rsvd_family as family
import torch
from lowrank_core import _core
from lowrank_core.ops import range_finder_list
from test_rsvd_reference import check
from testing import cases, checks, machine, tolerance

LEVELS = _core.isa_levels()
DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("call", family.ALL)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_a_bit(call: str, dtype: torch.dtype) -> None:
    a = family.matrix(300, 411, dtype=dtype)
    results = []
    for count in (1, 2, 3):
        with machine.threads(count):
            results.append(family.arrays(family.ALL[call](a)))
    assert checks.same_bits(results[0], results[1]) and checks.same_bits(results[0], results[2])


@pytest.mark.parametrize("call", family.CALLS)
@pytest.mark.parametrize("dtype", (*DTYPES, torch.bfloat16), ids=str)
def test_a_batch_equals_its_members(call: str, dtype: torch.dtype) -> None:
    """Small members run side by side, large ones one after another; either way as if alone."""
    a = family.matrix(61, 83, 2, 3, dtype=dtype)
    with machine.threads(2):
        together = family.arrays(family.CALLS[call](a))
        for i in range(2):
            for j in range(3):
                alone = family.arrays(family.CALLS[call](a[i, j]))
                assert checks.same_bits(tuple(x[i, j].contiguous() for x in together), alone)


def test_a_batch_of_large_matrices_equals_its_members() -> None:
    a = family.matrix(2049, 2051, 2)
    with machine.threads(2):
        together = lowrank_core.range_finder(a, 3, oversample=2, niter=1)
        assert checks.same_bits(together[1].contiguous(), lowrank_core.range_finder(a[1], 3, oversample=2, niter=1))


def test_a_list_of_any_shapes_equals_its_members() -> None:
    """The list entry point of the refreshes: each matrix with its own shape, dtype, seed and start."""
    shapes = ((60, 40), (17, 90), (128, 128), (2, 30, 20))
    dtypes = (*DTYPES, torch.bfloat16, torch.float32)
    items = [cases.gaussian(*s[-2:], *s[:-2]).to(dtype) for s, dtype in zip(shapes, dtypes, strict=True)]
    bases, seeds, ranks = [None, items[1][:, :3].clone(), None, None], [4, 5, 6, 7], [8, 9, 10, 11]
    with machine.threads(2):
        together = range_finder_list(items, ranks, niter=1, bases=bases, seeds=seeds, precision="highest")
    for q, a, rank, basis, seed in zip(together, items, ranks, bases, seeds, strict=True):
        alone = lowrank_core.range_finder(a, rank, niter=1, basis=basis, seed=seed, precision="highest")
        assert checks.same_bits(q, alone)
    plain = range_finder_list([a.numpy() for a in items[:2]], [3, 3])
    assert checks.same_bits(tuple(plain), tuple(lowrank_core.range_finder(a.numpy(), 3) for a in items[:2]))
    assert range_finder_list([], []) == []


def test_lists_of_different_lengths_are_refused() -> None:
    a = cases.gaussian(6, 5)
    for options in ({"ranks": [1]}, {"ranks": [1, 1], "seeds": [1]}, {"ranks": [1, 1], "bases": [None]}):
        with pytest.raises(ValueError, match=r"range_finder_list: .* must have the same length, got 2"):
            range_finder_list([a, a], **options)
    with pytest.raises(ValueError, match=r"range_finder_list: `ranks\[1\]` must be between 0 and 5, got 6"):
        range_finder_list([a, a], [1, 6])


@pytest.mark.parametrize("call", family.ALL)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numpy_equals_torch(call: str, dtype: torch.dtype) -> None:
    a = family.matrix(dtype=dtype)
    from_torch, from_numpy = (family.arrays(family.ALL[call](x)) for x in (a, a.numpy()))
    assert all(isinstance(x, torch.Tensor) for x in from_torch)
    assert all(isinstance(x, np.ndarray) for x in from_numpy)
    assert checks.same_bits(from_torch, from_numpy)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", (*DTYPES, torch.bfloat16, torch.float16), ids=str)
def test_every_level_agrees_with_the_reference(level: str, dtype: torch.dtype) -> None:
    with machine.isa(level):
        assert _core.isa() == level
        for case in cases.CASES[::2]:
            check(cases.gaussian(case.m, case.n).to(dtype), case)
        a = cases.decaying(90, 70).to(dtype)
        medium = lowrank_core.rsvd(a, 8, precision="medium")
        assert checks.residual(a, *medium) <= checks.residual(a, *lowrank_core.rsvd(a, 8)) + tolerance.medium(a)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_repeats_its_bits_for_any_threads(level: str) -> None:
    a = family.matrix(200, 311)
    with machine.isa(level):
        results = []
        for count in (1, 3):
            with machine.threads(count):
                results.append(tuple(lowrank_core.rsvd(a, 9, precision=p) for p in ("highest", "medium")))
        assert checks.same_bits(*results)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("level", LEVELS)
def test_the_environment_chooses_the_level(level: str) -> None:
    done = run("from lowrank_core import _core; print(_core.isa())", LOWRANK_CORE_ISA=level)
    assert done.stdout.strip() == level, done.stderr


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match=r"isa: the level must be one of .*generic.*, got 'sse9'"):
        _core.set_isa("sse9")
    done = run("from lowrank_core import _core; _core.isa()", LOWRANK_CORE_ISA="sse9")
    assert done.returncode == 1
    assert "ValueError: isa: the level must be one of" in done.stderr and "got 'sse9'" in done.stderr


def test_the_level_is_as_before_after_a_refusal() -> None:
    before = _core.isa()
    with pytest.raises(ValueError, match="isa:"):
        _core.set_isa("")
    assert _core.isa() == before


def test_threads_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="set_num_threads: `count` must be >= 1, got 0"):
        _core.set_num_threads(0)


def test_torch_governs_the_threads() -> None:
    """One pool: the kernels and torch link the same libgomp."""
    with machine.threads(1):
        torch.set_num_threads(2)
        assert _core.num_threads() == 2


def test_another_seed_is_another_sketch() -> None:
    a = family.matrix()
    by_seed = [lowrank_core.rsvd(a, 9, niter=0, seed=seed).s for seed in (0, 1, 2**32, 2**63 - 1)]
    assert len({tuple(s.tolist()) for s in by_seed}) == 4
    warm = [lowrank_core.range_finder(a, 9, basis=a[:, :4].clone(), niter=1, seed=seed) for seed in (0, 1)]
    assert not checks.same_bits(*warm)
    grown = [lowrank_core.qb(a, energy=0.5, niter=0, seed=seed).b for seed in (0, 1)]
    assert not checks.same_bits(*grown)


@pytest.mark.parametrize("call", family.ALL)
def test_global_generators_are_left_alone(call: str) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)

    def states() -> tuple[Any, ...]:
        kind, keys, *rest = np.random.get_state()
        return torch.get_rng_state().tolist(), kind, keys.tolist(), rest, random.getstate()

    before = states()
    family.ALL[call](family.matrix())
    family.ALL[call](family.matrix().numpy())
    assert states() == before


@pytest.mark.parametrize("convert", [lambda a: a, lambda a: a.numpy()], ids=["torch", "numpy"])
def test_precision_none_follows_torch(convert: Any) -> None:
    a = convert(family.matrix())
    for function in (lowrank_core.rsvd, lowrank_core.range_finder):
        explicit = {p: function(a, 9, precision=p) for p in ("highest", "medium")}
        for setting in ("highest", "high", "medium"):
            with machine.matmul_precision(setting):
                implicit = function(a, 9)
            expected = explicit["medium" if setting == "medium" else "highest"]
            assert checks.same_bits(family.arrays(implicit), family.arrays(expected))


def test_without_torch_precision_is_highest() -> None:
    code = (
        "import sys, numpy, lowrank_core\n"
        "a = numpy.random.default_rng(0).standard_normal((60, 50)).astype('float32')\n"
        "s = [lowrank_core.rsvd(a, 9, precision=p).s.tobytes() for p in (None, 'highest')]\n"
        "print(s[0] == s[1], 'torch' in sys.modules)"
    )
    done = run(code)
    assert done.stdout.split() == ["True", "False"], done.stderr
