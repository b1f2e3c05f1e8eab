"""Weights along gradients with balanced lines: against the formulas in float64, at every level, in any memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowrank_core import _core
from lowrank_core.ops.subspace_step.lines import LINES, lines_list
from testing import cases, checks, layouts, machine, tolerance
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 64  # rows whose sums of columns are taken in float32
ALONE = (515, 513)  # a matrix of more than 2^18 elements, which all threads share
SHAPES = (
    *((1, 1), (1, cases.PRIME), (cases.PRIME, 1), (3, 5), (4, cases.VECTOR)),
    *((BLOCK + d, cases.VECTOR - d) for d in (-1, 0, 1)),
    *((cases.TILE_COLS + d, 2 * cases.VECTOR + d) for d in (-1, 0, 1)),
    (2 * BLOCK + 5, 300),
    ALONE,
)
SCALE = 0.75
KEYS: dict[str, Any] = {"lr": 0.25, "weight_decay": 0.2, "maximize": False, "stochastic": False}

every_kind = pytest.mark.parametrize("lines", LINES)
every_level = pytest.mark.parametrize("level", _core.isa_levels())


def uneven(shape: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """A gradient of lines of unlike lengths; of the larger ones a row and a column are zeros."""
    m, n = shape
    grad = cases.gaussian(m, n, seed=seed) * torch.exp(torch.sin(torch.arange(m, dtype=torch.float64)))[:, None]
    grad *= torch.exp(torch.cos(torch.arange(n, dtype=torch.float64)))
    if min(shape) > 3:
        grad[m // 2], grad[:, n // 3] = 0, 0
    return grad.to(dtype)


def exact(grad: Tensor, lines: str, iterations: int) -> Tensor:
    """The formula, float64."""
    found = grad.double()
    dims = {"none": (), "rows": (1,), "columns": (0,), "both": (1, 0) * iterations}[lines]
    for dim in dims:
        lengths = found.square().mean(dim=dim, keepdim=True).sqrt()
        found = found / torch.where(lengths == 0, 1.0, lengths)
    return found


def relative(shape: tuple[int, int], lines: str, iterations: int) -> float:
    """Of an entry of N. A factor is off by the rounding of its sum and by as much as the factors in it: each turn adds
    both sums, and half of that is left in the roots. Then five factors, and each factor's own rounding."""
    sums = sum(tolerance.gamma(length + 4, torch.float32) for length in shape)
    return (iterations if lines == "both" else 1) * sums + 8 * tolerance.UNIT[torch.float32]


def stepped(weight: Tensor, grad: Tensor, lines: str, iterations: int = 1, scale: float = SCALE, **keys: Any) -> Tensor:
    options = {**KEYS, **keys}
    assert lines_list([weight], [grad], [scale], [3], [7], lines=lines, iterations=iterations, **options)
    return weight


def check(weight: Tensor, grad: Tensor, lines: str, iterations: int, **keys: Any) -> None:
    """One step is the formula's, within its rounding."""
    options, work = {"scale": SCALE, **KEYS, **keys}, tolerance.UNIT[torch.float32]
    kept = (1 - options["lr"] * options["weight_decay"]) * weight.double()
    moved = options["lr"] * options["scale"] * exact(grad, lines, iterations) * (-1 if options["maximize"] else 1)
    expected = kept - moved
    bound = (relative(tuple(grad.shape), lines, iterations) + 2 * work) * moved.abs() + 2 * work * kept.abs()
    bound += tolerance.UNIT[weight.dtype] * (expected.abs() + bound) + 2.0**-25 * (weight.dtype == torch.float16)
    assert bool(((stepped(weight, grad, lines, iterations, **keys).double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("iterations", [1, 5])
@every_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_formula(shape: tuple[int, int], lines: str, iterations: int) -> None:
    for dtype in DTYPES:
        check(cases.gaussian(*shape, seed=1).to(dtype), uneven(shape, dtype), lines, iterations)


@every_level
@every_kind
def test_at_every_level_and_for_any_threads(lines: str, level: str) -> None:
    ends = []
    with machine.isa(level):
        for shape in SHAPES:
            check(cases.gaussian(*shape).float(), uneven(shape), lines, 3, maximize=True)
        for count in (1, 2, 3):
            weights = [cases.gaussian(*shape, seed=i).bfloat16() for i, shape in enumerate(SHAPES)]
            grads = [uneven(shape, DTYPES[i % 3]) for i, shape in enumerate(SHAPES)]
            numbers = list(range(1, len(SHAPES) + 1))
            with machine.threads(count):
                options = {**KEYS, "stochastic": True}
                assert lines_list(
                    weights, grads, [SCALE] * len(grads), numbers, numbers, lines=lines, iterations=2, **options
                )
            ends.append(weights)
    assert checks.same_bits(ends[0], ends[1]) and checks.same_bits(ends[0], ends[2])


@every_kind
@pytest.mark.parametrize("layout", sorted(set(layouts.LAYOUTS) - {"batch_last"}))
def test_memory_of_every_kind(layout: str, lines: str) -> None:
    """Weights of any strides, gradients whose rows run along memory; what lies between stays."""
    for dtype in DTYPES:
        start, grad = cases.gaussian(70, 37).to(dtype), uneven((70, 37), dtype)
        plain = stepped(start.clone(), grad, lines, stochastic=True)
        weight = layouts.LAYOUTS[layout](start)
        assert torch.equal(stepped(weight, layouts.embedded(grad), lines, stochastic=True), plain)
        assert layout in ("contiguous", "transposed") or layouts.outside_is_nan(weight)


@every_kind
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-30, 1.0, 1e30, 3e38])
def test_any_size_of_a_gradient(size: float, lines: str) -> None:
    grad = (uneven((24, 40)).double().clamp(-1, 1) * size).float()
    options: dict[str, Any] = {"lr": 1.0, "weight_decay": 0.0, "scale": 1.0}
    check(torch.zeros(24, 40), grad, lines, 4, **options)


def test_each_weight_has_its_scale() -> None:
    weights, grads = [torch.zeros(3, 5) for _ in range(2)], [torch.ones(3, 5)] * 2
    assert lines_list(weights, grads, [0.5, 2.0], [1, 1], [0, 0], lines="rows", iterations=1, **KEYS)
    assert [weight.unique().tolist() for weight in weights] == [[-0.125], [-0.5]]


@every_kind
def test_lines_that_are_far_apart(lines: str) -> None:
    """Rows and columns of all sizes, each of which has to come out at length one."""
    sizes = 10.0 ** torch.linspace(-18, 18, 33, dtype=torch.float64)
    grad = cases.gaussian(33, 29) * (sizes[:, None] if lines != "columns" else sizes[:29])
    check(torch.zeros(33, 29), grad.float(), lines, 3, lr=1.0, weight_decay=0.0, scale=1.0)


@every_kind
def test_draws_are_those_of_a_fused_step(lines: str) -> None:
    """By seed, step and row-major number of the element: what is exact before its rounding shows them."""
    grad = torch.ones(37, 45)
    start = cases.gaussian(37, 45).bfloat16()
    found = stepped(start.clone(), grad, lines, lr=2.0**-8, weight_decay=0.0, scale=1.0, stochastic=True)
    drawn = torch.empty_like(start)
    _core.round_stochastic(drawn, start.float() - 2.0**-8, seed=7, step=3)
    assert torch.equal(found, drawn) and not torch.equal(found, (start.float() - 2.0**-8).bfloat16())


def test_weights_that_share_memory_are_left_alone() -> None:
    whole = cases.gaussian(9, 8).float()
    before, grads = whole.clone(), [uneven((5, 8)), uneven((5, 8))]
    options = {**KEYS, "lines": "both", "iterations": 1}
    assert not lines_list([whole[:5], whole[4:]], grads, [1.0, 1.0], [1, 1], [0, 0], **options)
    assert not lines_list([whole[:5]], [whole[2:7]], [1.0], [1], [0], **options)
    assert torch.equal(whole, before)


@pytest.mark.parametrize(
    ("changed", "argument"),
    [
        ({"grad": torch.ones(5, 7)}, "grads"),
        ({"grad": torch.ones(8, 5).T}, "grads"),
        ({"grad": torch.ones(5, 8, dtype=torch.float64)}, "params"),
        ({"weight": torch.ones(5, 8, dtype=torch.float64)}, "params"),
        ({"weight": torch.ones(40)}, "params"),
        ({"lines": "diagonals"}, "lines"),
        ({"iterations": 0}, "iterations"),
        ({"steps": []}, "params"),
    ],
    ids=str,
)
def test_refusals(changed: dict[str, Any], argument: str) -> None:
    given = {"weight": torch.ones(5, 8), "grad": torch.ones(5, 8), "steps": [1], "lines": "both", "iterations": 2}
    given |= changed
    weight, grad, steps = given.pop("weight"), given.pop("grad"), given.pop("steps")
    with pytest.raises(ValueError, match=f"`{argument}` has the wrong shape"):
        lines_list([weight], [grad], [SCALE], steps, [0], **KEYS, **given)
