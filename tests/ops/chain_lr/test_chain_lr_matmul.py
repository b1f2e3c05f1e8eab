"""Chains of matrices: against the reference, the cheapest order, batches, derivatives."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import chain_cases
import lowrank_core
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowrank_core import _core
from lowrank_core.reference import chain_lr as reference
from testing import cases, chain_bounds, checks, layouts, machine
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DIMS = ((4,) * 3, (1, 1, 1), (0, 3, 2), (3, 0, 2), (17, 1, 33, 1), (7, 300, 2, 300, 5), (97, 5, 64, 3, 41, 8))
TRAFFIC = 16.0  # kTraffic of chain_lr.h


def chain(dims: tuple[int, ...], *lead: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [chain_cases.normal(*lead, m, n, seed=i).to(dtype) for i, (m, n) in enumerate(itertools.pairwise(dims))]


def assert_right(matrices: list[Tensor]) -> None:
    out = lowrank_core.chain_matmul(matrices)
    assert out.dtype == matrices[0].dtype
    assert chain_bounds.within(out, reference.chain_matmul(matrices), chain_bounds.chain(matrices))


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_the_reference(dims: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_right(chain(dims, dtype=dtype))
    assert_right(chain(dims, 2, 3, dtype=dtype))


def test_one_matrix_is_its_own_product() -> None:
    a = cases.gaussian(5, 3)
    out = lowrank_core.chain_matmul([a])
    assert torch.equal(out, a) and out.data_ptr() != a.data_ptr()


def test_leading_dimensions_broadcast() -> None:
    plain, batch, row = cases.gaussian(4, 5), cases.gaussian(5, 6, 2, 3), cases.gaussian(6, 7, 2, 1)
    assert_right([plain, batch, row])
    assert_right([batch, row, cases.gaussian(7, 2), cases.gaussian(2, 9)])
    assert_right([cases.gaussian(4, 5), cases.gaussian(5, 1), cases.gaussian(1, 5, 3)])


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_any_strides(layout: str) -> None:
    matrices = [layouts.LAYOUTS[layout](m) for m in chain((7, 5, 19, 3), 2)]
    assert_right(matrices)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=7))
def test_the_order_is_the_cheapest_of_all(dims: list[int]) -> None:
    plan = _core.plan_chain(dims)

    def cost(i: int, j: int) -> float:
        if i == j:
            return 0.0
        s = plan[i][j]
        m, k, n = dims[i], dims[s + 1], dims[j + 1]
        return cost(i, s) + cost(s + 1, j) + m * k * n + TRAFFIC * (m * k + k * n + m * n)

    assert cost(0, len(dims) - 2) == reference.chain_cost(dims, TRAFFIC)


def test_thin_factors_are_multiplied_first() -> None:
    """b (a x) for a vector x, (dyᵀ x) never, whatever comes first."""
    assert _core.plan_chain([1000, 4, 1000, 1])[0][2] == 0
    assert _core.plan_chain([4, 1000, 64, 1000])[0][2] == 1


@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.integers(0, 3))
def test_any_chain(dims: list[int], batch: int) -> None:
    assert_right(chain(tuple(dims), batch))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_threads_and_batches_do_not_change_a_bit(dtype: torch.dtype) -> None:
    small, large = chain((33, 5, 64, 7), 9, dtype=dtype), chain((300, 20, 400, 30), dtype=dtype)
    results = []
    for count in (1, 2, 3):
        with machine.threads(count):
            results.append((lowrank_core.chain_matmul(small), lowrank_core.chain_matmul(large)))
    assert checks.same_bits(results[0], results[1]) and checks.same_bits(results[0], results[2])
    assert checks.same_bits(results[0][0][4].contiguous(), lowrank_core.chain_matmul([m[4] for m in small]))


def test_numpy_equals_torch() -> None:
    matrices = chain((9, 4, 12, 3), 2, dtype=torch.float32)
    found = lowrank_core.chain_matmul([m.numpy() for m in matrices])
    assert isinstance(found, np.ndarray) and checks.same_bits(found, lowrank_core.chain_matmul(matrices))


@pytest.mark.parametrize("level", _core.isa_levels())
def test_every_level(level: str) -> None:
    with machine.isa(level):
        for dtype in DTYPES:
            assert_right(chain((65, 4, 130, 9), dtype=dtype))


def test_derivatives() -> None:
    plain = [m.requires_grad_() for m in (cases.gaussian(3, 4), cases.gaussian(4, 2, 2), cases.gaussian(2, 5))]
    assert torch.autograd.gradcheck(lambda *m: lowrank_core.chain_matmul(m), plain)
    assert torch.autograd.gradgradcheck(lambda *m: lowrank_core.chain_matmul(m), plain)
    frozen = [plain[0], plain[1].detach(), plain[2]]
    lowrank_core.chain_matmul(frozen).sum().backward()
    assert plain[1].grad is None


def test_refusals() -> None:
    a, b = cases.gaussian(3, 4), cases.gaussian(4, 5)
    for arrays, error, message in (
        ([], ValueError, "`matrices` must hold at least one matrix, got none"),
        ([a, a], ValueError, r"`matrices\[1\]` must have 4 rows, .* got shape \[3, 4\]"),
        ([a, b.float()], TypeError, r"`matrices\[1\]` must be float64 as the first, got float32"),
        ([a, b.numpy()], TypeError, r"`matrices\[1\]` must be of the same library"),
        ([a, b[0]], ValueError, r"`matrices\[1\]` must have at least 2 dimensions"),
        ([a.expand(2, 3, 4), b.expand(3, 4, 5)], ValueError, "`matrices` must have leading dimensions that broadcast"),
        ([a.numpy().astype(int)], TypeError, r"`matrices\[0\]` must be float32 or float64, got int64"),
    ):
        with pytest.raises(error, match=f"chain_matmul: {message}"):
            lowrank_core.chain_matmul(arrays)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_the_dispatcher_is_left_out_only_where_it_has_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ordinary matrices go straight to the kernel; graphs, modes, transforms and batches through the operator."""
    from lowrank_core.ops.chain_lr import matmul

    seen: list[str] = []
    call = matmul.call
    monkeypatch.setattr(matmul, "call", lambda op, *args: seen.append(op.name) or call(op, *args))

    def dispatched(run: Callable[[], object]) -> bool:
        seen.clear()
        run()
        return bool(seen)

    x, y = torch.ones(3, 4), torch.ones(4, 5)
    recorded = x.clone().requires_grad_()
    assert not dispatched(lambda: lowrank_core.chain_matmul([x, y]))
    assert not dispatched(lambda: lowrank_core.chain_matmul([x.numpy(), y.numpy()]))
    with torch.no_grad():
        assert not dispatched(lambda: lowrank_core.chain_matmul([recorded, y]))
    assert dispatched(lambda: lowrank_core.chain_matmul([recorded, y]))
    assert dispatched(lambda: lowrank_core.chain_matmul([x[None], y]))
    assert dispatched(lambda: lowrank_core.chain_matmul([x.to("meta"), y.to("meta")]))
    assert dispatched(lambda: torch.func.jvp(lambda x: lowrank_core.chain_matmul([x, y]), (x,), (x,)))
    assert dispatched(lambda: torch.vmap(lambda x: lowrank_core.chain_matmul([x[None], y]))(x))

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            return func(*args, **(kwargs or {}))

    with Watching():
        assert dispatched(lambda: lowrank_core.chain_matmul([x, y]))


@pytest.mark.parametrize("level", _core.isa_levels())
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_thin_products_at_every_level(level: str, dtype: torch.dtype) -> None:
    """Rows and columns around a register tile and its last vector, in a buffer that is NaN beside the matrices."""
    with machine.isa(level):
        for m, k, n in itertools.product((1, 3, 8, 17, 130), (0, 1, 5, 300), (1, 7, 16, 31, 33, 100)):
            room = torch.full((m + k + 2, k + n + 40), torch.nan, dtype=dtype)
            left, right = room[1 : m + 1, 1 : k + 1], room[m + 1 : m + 1 + k, 3 : n + 3]
            left.copy_(chain_cases.normal(m, k, seed=m))
            right.copy_(chain_cases.normal(k, n, seed=n))
            found = lowrank_core.chain_matmul([left, right])
            assert chain_bounds.within(found, left.double() @ right.double(), chain_bounds.chain([left, right]))
