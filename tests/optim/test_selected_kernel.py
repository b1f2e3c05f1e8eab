"""The kernel of FRUGAL's selections: the composition's bits, whatever the subspace, dtype, codec, level or layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from lowrank_core import _core
from lowrank_core.optim import FrugalAdamW, selected, torch_rounding
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.parts.schedules.fixed_gap import FixedGap
from lowrank_core.optim.slots import State
from lowrank_core.optim.torch_rounding import TorchRounding
from optim_cases import composed, draw, every_dtype, same
from testing import layouts, machine, tolerance
from torch import Tensor, nn

# Less than a block of codes, parts of a vector and of a run of 256 entries, one line, several tasks.
SHAPES = ((5, 7), (33, 70), (1, 300), (300, 1), (290, 131), (64, 600))
SUBSPACES = ("columns", "rows", "block")
LR, SIGN = 0.01, 0.3
every_subspace = pytest.mark.parametrize("subspace", SUBSPACES)


def ends(
    subspace: str, dtype: torch.dtype, lay: Callable[[Tensor], Tensor] = torch.clone, **keys: Any
) -> tuple[list[Tensor], list[State]]:
    """Weights and states after four steps, the last of which follows a new draw."""
    weights = [nn.Parameter(lay(draw(*shape, seed=i).to(dtype))) for i, shape in enumerate(SHAPES)]
    given = {"lr": LR, "density": 0.3, "sign_scale": SIGN, "weight_decay": 0.1, "update_proj_gap": 3, **keys}
    optimizer = FrugalAdamW(weights, subspace=subspace, **given)
    for step in range(4):
        for i, weight in enumerate(weights):
            grad = draw(*weight.shape, seed=10 * step + i)
            weight.grad = lay(torch.where(grad.abs() < 0.1, 0.0, grad).to(dtype))
        optimizer.step()
    return [weight.detach().contiguous() for weight in weights], [optimizer.state[weight] for weight in weights]


def stepped(ended: tuple[list[Tensor], list[State]]) -> tuple[list[Tensor], list[State]]:
    """Weights and moments alone: the share that a draw holds is summed otherwise by other vectors and layouts."""
    return ended[0], [{key: value for key, value in state.items() if key != "proj.captured"} for state in ended[1]]


@pytest.fixture(autouse=True)
def known() -> None:
    assert torch_rounding.torchs_rounding() is not None  # or the kernel rounds in a way of its own


@every_subspace
@every_dtype
@pytest.mark.parametrize("keys", [{}, {"maximize": True, "weight_decay": 0.0}, {"density": 0.0}], ids=str)
def test_it_has_the_bits_of_the_composition(subspace: str, dtype: torch.dtype, keys: dict[str, Any]) -> None:
    ours = ends(subspace, dtype, **keys)
    with composed():
        assert same(ours, ends(subspace, dtype, **keys))


@every_subspace
@pytest.mark.parametrize("moment_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_codes_and_draws(subspace: str, moment_dtype: str, rounding: str) -> None:
    keys = {"moment_dtype": moment_dtype, "rounding": rounding}
    ours = ends(subspace, torch.bfloat16, **keys)
    with composed():
        assert same(ours, ends(subspace, torch.bfloat16, **keys))


@every_subspace
def test_levels_and_threads(subspace: str) -> None:
    expected = ends(subspace, torch.float32)
    for level in _core.isa_levels():
        with machine.isa(level):
            assert same(stepped(expected), stepped(ends(subspace, torch.float32)))
    for count in (1, 3):
        with machine.threads(count):
            assert same(expected, ends(subspace, torch.float32))


@every_subspace
@pytest.mark.parametrize("layout", ["transposed", "embedded", "strided"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_strides(subspace: str, layout: str, rounding: str) -> None:
    """The draw of an entry follows from its place in the matrix, not from its place in memory."""
    plain, laid = (
        ends(subspace, torch.bfloat16, lay, rounding=rounding) for lay in (torch.clone, layouts.LAYOUTS[layout])
    )
    assert same(stepped(plain), stepped(laid))


@every_subspace
def test_one_call_takes_all_matrices(subspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, compiled = [], _core.selected_step

    def spy(params: list[Tensor], *lists: Any, **options: Any) -> None:
        counts.append(len(params))
        compiled(params, *lists, **options)

    monkeypatch.setattr(_core, "selected_step", spy)
    weights = [nn.Parameter(draw(8, 12)) for _ in range(5)]
    optimizer = FrugalAdamW(weights, subspace=subspace, density=0.4, update_proj_gap=3)
    for _ in range(4):
        for weight in weights:
            weight.grad = draw(8, 12)
        optimizer.step()
    assert counts == [5] * 4


class Watching(FixedGap):
    seen: ClassVar[list[Tensor]] = []

    def observe(self, states: Sequence[State], lows: Sequence[Tensor]) -> None:
        self.seen.extend(lows)


class WatchedFrugal(FrugalAdamW):
    @classmethod
    def parts(cls, group: dict[str, Any], weight: Tensor) -> Parts:
        return replace(super().parts(group, weight), schedule=Watching(2))


@every_subspace
def test_a_schedule_may_look(subspace: str) -> None:
    """At what the composition shows it."""
    shown = []
    for _ in range(2):
        with composed() if shown else nullcontext():
            weights, Watching.seen = [nn.Parameter(draw(8, 12)) for _ in range(3)], []
            optimizer = WatchedFrugal(weights, subspace=subspace, density=0.4, maximize=True)
            for step in range(4):
                for i, weight in enumerate(weights):
                    weight.grad = draw(8, 12, seed=10 * step + i)
                optimizer.step()
        shown.append(Watching.seen)
    assert len(shown[0]) == 12 and same(*shown)


@every_subspace
def test_a_torch_that_rounds_in_no_known_way(subspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel steps all the same, next to the composition."""
    monkeypatch.setattr(selected, "torchs_rounding", lambda: None)
    ours, _ = ends(subspace, torch.float32)
    with composed():
        theirs, _ = ends(subspace, torch.float32)
    unit = tolerance.UNIT[torch.float32]
    for one, other in zip(ours, theirs, strict=True):
        assert bool(((one - other).abs() <= 4 * (8 * unit * (LR + other.abs()))).all())


@pytest.mark.parametrize("rounding", [TorchRounding(fused, "rounded") for fused in (True, False)], ids=str)
def test_products_and_sums_are_rounded_as_asked(rounding: TorchRounding) -> None:
    weight, grad = torch.tensor([[1.0 + 2.0**-23, -1.0]]), torch.tensor([[1.0, -1.0]])
    lr, sign_scale = 1.0 + 2.0**-23, 1.0 + 2.0**-22
    none, empty = torch.empty(0, dtype=torch.int64), torch.empty(0, 2)
    expected = weight.double() - torch.sign(grad).double() * lr * sign_scale
    if not rounding.fused:
        expected = weight - torch.sign(grad) * torch.tensor(lr * sign_scale, dtype=torch.float32)
    _core.selected_step(
        [weight], [grad], [none], [True], [empty], [], [empty.clone()], [], [(1.0, 1.0)], [1], [0], betas=(0.9, 0.9),
        eps=0.0, lr=lr, weight_decay=0.0, scale=1.0, sign_scale=sign_scale, maximize=False, stochastic=False,
        **rounding._asdict(),
    )  # fmt: skip
    assert torch.equal(weight, expected.float())


@pytest.mark.parametrize(
    ("lines", "dtype"),
    [
        ([0, 0], torch.int64),
        ([1, 0], torch.int64),
        ([-1, 0], torch.int64),
        ([0, 3], torch.int64),
        ([0, 1], torch.int32),
    ],
)
def test_lines_that_are_none(lines: list[int], dtype: torch.dtype) -> None:
    weight = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="lines"):
        _core.selected_step(
            [weight], [torch.ones(4, 3)], [torch.tensor(lines, dtype=dtype)], [False], [torch.zeros(4, 2)], [],
            [torch.zeros(4, 2)], [], [(1.0, 1.0)], [1], [0], betas=(0.9, 0.9), eps=0.0, lr=1.0, weight_decay=0.0,
            scale=1.0, sign_scale=1.0, maximize=False, stochastic=False, fused=False, roots="rounded",
        )  # fmt: skip
    assert not bool(weight.any())
