"""The diagonal Kalman step and gain against the dense float64 statement: shapes, dtypes, layouts, levels, threads."""

from __future__ import annotations

from typing import Any

import kalman_cases
import lowrank_core as lc
import pytest
import torch
from kalman_cases import SHAPES, Filter
from lowrank_core import _core
from lowrank_core.reference import kalman_diag as reference
from testing import cases, checks, layouts, machine, tolerance
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LR = 0.7


def assert_close(found: Any, f: Filter, dtype: torch.dtype, **options: Any) -> None:
    """`found` is the step of `f`, whose numbers are those of `dtype`."""
    exact = reference.kalman_diag_step(*f, lr=LR, **options)
    for x, want, bound in zip(found, exact, kalman_cases.bounds(f, dtype, LR), strict=True):
        assert bool(((x.double() - want).abs() <= bound).all())


def widened(f: Filter) -> Filter:
    return Filter(*(a.double() for a in f))


# The reference solves once for each parameter; larger ones are below.
SMALL = [shape for shape in SHAPES if shape[1] <= kalman_cases.TASK]


@pytest.mark.parametrize(("m", "n"), SMALL)
def test_the_step_is_that_of_the_reference(m: int, n: int) -> None:
    for dtype in DTYPES:
        f = kalman_cases.make(m, n).to(dtype)
        found = lc.kalman_diag_step(*f, lr=LR)
        assert (found.theta.dtype, found.p.dtype) == (dtype, f.p.dtype) and found.theta.shape == found.p.shape == (n,)
        assert_close(found, widened(f), dtype)


def test_a_step_of_many_tasks_is_that_of_the_whole() -> None:
    """Directly from S⁻¹, which is exact enough while no leverage is near 1."""
    f = kalman_cases.make(10, 3 * kalman_cases.TASK + 5)
    s = torch.eye(10, dtype=torch.float64) + (f.jac * f.p) @ f.jac.mT
    solved = torch.linalg.solve(s, f.jac)
    exact = (
        f.theta + LR * f.p * (f.score - solved.mT @ (f.jac @ (f.p * f.score))),
        f.p * (1 - f.p * (f.jac * solved).sum(0)),
    )
    for x, want, bound in zip(
        lc.kalman_diag_step(*f, lr=LR), exact, kalman_cases.bounds(f, torch.float64), strict=True
    ):
        assert bool(((x - want).abs() <= bound).all())


@pytest.mark.parametrize(("m", "n"), SMALL)
def test_the_gain_is_that_of_the_reference(m: int, n: int) -> None:
    for dtype in DTYPES:
        f = kalman_cases.make(m, n).to(dtype)
        root = cases.gaussian(m, m, seed=4)
        for r in (0.5, torch.linspace(0.5, 2, m, dtype=torch.float64), torch.eye(m) + root @ root.mT):
            found = lc.kalman_diag_gain(f.p, f.jac, r if isinstance(r, float) else r.double())
            assert found.dtype == dtype and found.shape == (n, m)
            p, h = f.p.double(), f.jac.double()
            exact = reference.kalman_diag_gain(p, h, r)
            s = (h * p) @ h.mT + reference.noise_matrix(r, m)
            values = torch.linalg.eigvalsh(s)
            condition = float(values[-1] / values[0]) if m else 1.0
            # Of the inverse of S, m + 1 products each, and one rounding of the result.
            scale = (p * h.norm(dim=0)).unsqueeze(-1) / (float(values[0]) if m else 1.0)
            solve = (m + 1) ** 1.5 * tolerance.gamma(n + m + 2, torch.float64) * condition
            bound = solve * scale + tolerance.UNIT[dtype] * (exact.abs() + solve * scale)
            smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
            assert bool(((found.double() - exact).abs() <= bound + smallest).all())


def test_the_gain_takes_the_symmetric_part_of_the_noise() -> None:
    f, r = kalman_cases.make(3, 9), 3 * torch.eye(3, dtype=torch.float64) + cases.gaussian(3, 3, seed=8).triu(1) / 4
    assert checks.same_bits(lc.kalman_diag_gain(f.p, f.jac, r), lc.kalman_diag_gain(f.p, f.jac, 0.5 * (r + r.mT)))


def test_the_gain_does_not_depend_on_the_units_of_the_outputs() -> None:
    """Outputs 40 orders apart: S is put on a diagonal of ones before it is factored."""
    f, units = kalman_cases.make(4, 30), torch.tensor([1e-20, 1.0, 1e10, 1e20], dtype=torch.float64)
    found = lc.kalman_diag_gain(f.p, units.unsqueeze(-1) * f.jac, units.square())
    plain = lc.kalman_diag_gain(f.p, f.jac, 1.0)
    bound = kalman_cases.condition(f) * 5 * tolerance.gamma(40, torch.float64) * plain.norm()
    assert bool(((found * units - plain).abs() <= bound).all())


@pytest.mark.parametrize("layout", [name for name in layouts.LAYOUTS if name != "batch_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_strides_have_the_same_bits(dtype: torch.dtype, layout: str) -> None:
    f = kalman_cases.make(7, 300).to(dtype)
    lay = layouts.LAYOUTS[layout]
    want = lc.kalman_diag_step(*f, lr=LR), lc.kalman_diag_gain(f.p, f.jac, 0.3)
    vectors = {name: lay(a.unsqueeze(0))[0] for name, a in f._asdict().items() if name != "jac"}
    given = Filter(jac=lay(f.jac), **vectors)
    assert checks.same_bits(want, (lc.kalman_diag_step(*given, lr=LR), lc.kalman_diag_gain(given.p, given.jac, 0.3)))
    assert lc.kalman_diag_step_(*given, lr=LR)
    assert checks.same_bits((given.theta, given.p), want[0])
    if layout in ("embedded", "strided"):
        assert layouts.outside_is_nan(given.theta) and layouts.outside_is_nan(given.p)


def test_negative_strides() -> None:
    f = kalman_cases.make(5, 40)
    arrays = [layouts.reversed_view(a.view(-1, 40).numpy()).reshape(a.shape) for a in f]
    arrays[0], arrays[1], arrays[3] = (a[::-1].copy()[::-1] for a in (arrays[0], arrays[1], arrays[3]))
    assert arrays[2].strides[1] < 0 and arrays[0].strides[0] < 0
    assert checks.same_bits(lc.kalman_diag_step(*arrays), lc.kalman_diag_step(*f))


def every_size() -> list[Filter]:
    return [kalman_cases.make(m, n).to(torch.float32) for m, n in (*SHAPES, (33, 2 * kalman_cases.TASK))]


def stepped(filters: list[Filter]) -> list[Any]:
    return [(*lc.kalman_diag_step(*f, lr=LR), lc.kalman_diag_gain(f.p, f.jac, 1.0)) for f in filters]


@pytest.mark.parametrize("level", _core.isa_levels())
def test_threads_do_not_change_a_bit_at_any_level(level: str) -> None:
    with machine.isa(level):
        found = []
        for count in (1, 2, 3):
            with machine.threads(count):
                found.append(stepped(every_size()))
    assert checks.same_bits(found[0], found[1]) and checks.same_bits(found[0], found[2])


@pytest.mark.parametrize("level", _core.isa_levels())
def test_every_level_is_within_the_bounds(level: str) -> None:
    with machine.isa(level):
        for m, n in SMALL:
            for dtype in DTYPES:
                f = kalman_cases.make(m, n).to(dtype)
                assert_close(lc.kalman_diag_step(*f, lr=LR), widened(f), dtype)


def test_numpy_and_torch_agree_to_the_bit() -> None:
    for dtype in (torch.float32, torch.float64):
        for m, n in SHAPES:
            f = kalman_cases.make(m, n).to(dtype)
            arrays = [a.numpy().copy() for a in f]
            found = lc.kalman_diag_step(*arrays, lr=LR)
            assert isinstance(found, lc.KalmanStep) and all(type(x) is type(arrays[0]) for x in found)
            assert checks.same_bits(found, lc.kalman_diag_step(*f, lr=LR))
            gain = lc.kalman_diag_gain(arrays[1], arrays[2], 0.5)
            assert checks.same_bits(gain, lc.kalman_diag_gain(f.p, f.jac, 0.5))
            assert lc.kalman_diag_step_(*arrays, lr=LR) is True
            assert checks.same_bits(arrays[:2], found)


# ---- lists ---------------------------------------------------------------------------------------------------------


def cut(f: Filter, *sizes: int) -> list[list[Tensor]]:
    """The filter's arrays, cut along the parameters."""
    return [[part.clone() for part in a.split(list(sizes), dim=-1)] for a in f]


def test_a_list_is_one_filter() -> None:
    """Cut at chunks, the list has the bits of the whole; elsewhere sums are rounded otherwise."""
    f = kalman_cases.make(10, 3 * kalman_cases.CHUNK + 40)
    whole = lc.kalman_diag_step(*f, lr=LR)
    aligned = cut(f, kalman_cases.CHUNK, 2 * kalman_cases.CHUNK, 40)
    assert lc.kalman_diag_step_(*aligned, lr=LR) is True
    for parts, want, bound in zip(aligned[:2], whole, kalman_cases.bounds(f, torch.float64, LR), strict=True):
        assert bool(((torch.cat(parts) - want).abs() <= bound).all())
    uneven = cut(f, 1, 0, 13, 3 * kalman_cases.CHUNK + 26)
    assert lc.kalman_diag_step_(*uneven, lr=LR) is True
    for parts, want, bound in zip(uneven[:2], whole, kalman_cases.bounds(f, torch.float64, LR), strict=True):
        assert bool(((torch.cat(parts) - want).abs() <= 2 * bound).all())


def test_a_list_of_matrices_and_dtypes() -> None:
    f = kalman_cases.make(3, 60)
    whole = lc.kalman_diag_step(*f)
    theta = [f.theta[:24].view(4, 6).float(), f.theta[24:].view(36).clone()]
    p = [f.p[:24].view(4, 6).float(), f.p[24:].clone()]
    jac, score = [f.jac[:, :24].view(3, 4, 6), f.jac[:, 24:]], [f.score[:24].view(4, 6), f.score[24:]]
    assert lc.kalman_diag_step_(theta, p, jac, score)
    bounds = kalman_cases.bounds(f, torch.float32)
    for x, want, bound in zip((theta, p), whole, bounds, strict=True):
        found = torch.cat([a.double().flatten() for a in x])
        # p came in rounded, which changes S and with it everything by its condition.
        allowed = bound + 4 * kalman_cases.condition(f) * tolerance.UNIT[torch.float32] * (want.abs() + f.p * 60)
        assert bool(((found - want).abs() <= allowed).all())


def test_an_empty_list_and_empty_tensors() -> None:
    assert lc.kalman_diag_step_([], [], [], []) is True
    f = kalman_cases.make(4, 0)
    assert lc.kalman_diag_step_(*f) is True


def test_a_zero_variance_holds_its_parameter() -> None:
    f = kalman_cases.make(4, 30)
    f.p[7] = 0.0
    found = lc.kalman_diag_step(*f)
    assert found.p[7] == 0.0 and found.theta[7] == f.theta[7]
    rest = torch.arange(30) != 7
    without = lc.kalman_diag_step(f.theta[rest], f.p[rest], f.jac[:, rest], f.score[rest])
    for x, want, bound in zip(found, without, kalman_cases.bounds(f, torch.float64), strict=True):
        assert bool(((x[rest] - want).abs() <= bound[rest]).all())


# ---- the limit -----------------------------------------------------------------------------------------------------


def test_the_limit_caps_the_predicted_change() -> None:
    """½ ‖M Δtheta‖² stays at the limit where it would exceed it; p does not see it."""
    f = kalman_cases.make(6, 50, p=1.0)
    free = lc.kalman_diag_step(*f)
    change = float((f.jac @ (free.theta - f.theta)).square().sum()) / 2
    for share in (0.1, 1e-6, 2.0):
        limit = share * change
        capped = lc.kalman_diag_step(*f, kl_limit=limit)
        assert checks.same_bits(capped.p, free.p)
        assert_limit = 1.0 if share >= 1 else share**0.5
        bound = kalman_cases.bounds(f, torch.float64)[0] * 2
        assert bool(((capped.theta - f.theta - assert_limit * (free.theta - f.theta)).abs() <= bound).all())
    assert_close(lc.kalman_diag_step(*f, lr=LR, kl_limit=0.01), f, torch.float64, kl_limit=0.01)
