"""SCALE and SinkGD: 50 steps against the formulas in NumPy, and what takes matrices whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.memory.plan import format_plan
from lowrank_core.optim import SCALE, GaLoreAdamW, LowRankOptimizer, SinkGD, param_groups
from lowrank_core.optim.parts.projectors.orthonormal import ExactSVD
from lowrank_core.optim.parts.projectors.selected import Whole
from lowrank_core.optim.parts.rules.lines import Lines, MomentumLines, Sinkhorn
from lowrank_core.optim.parts.subspaces.dense import Dense
from lowrank_core.optim.parts.subspaces.selection import All
from numpy import ndarray
from optim_cases import draw, same
from plain_steps import UNIT, Adam, of, path
from testing import tolerance
from torch import Tensor, nn

__all__ = ["path"]  # a fixture
STEPS, LR, DECAY = 50, 0.05, 0.02
SHAPES = {"embed.weight": (30, 8), "up.weight": (20, 8), "conv.weight": (6, 4, 3), "norm.weight": (8,)}
SHAPES |= {"wide.weight": (8, 20), "lm_head.weight": (30, 8), "thin.weight": (9, 1)}
VECTORS = ("norm.weight", "thin.weight")


def rms(matrix: ndarray, axis: int) -> ndarray:
    found: ndarray = np.sqrt(np.mean(matrix**2, axis=axis, keepdims=True))
    return found


def named(dtype: torch.dtype = torch.float64) -> list[tuple[str, nn.Parameter]]:
    return [(name, nn.Parameter(draw(*shape, seed=i).to(dtype))) for i, (name, shape) in enumerate(SHAPES.items())]


def gradient(name: str, step: int) -> ndarray:
    """Of uneven lines, with one of zeros in each direction."""
    shape = SHAPES[name]
    grad = draw(*shape, seed=1000 * step + len(name)).double().numpy()
    if name not in VECTORS:
        grad = grad * np.exp(3 * np.sin(np.arange(shape[0]) + step)).reshape(-1, *[1] * (len(shape) - 1))
        grad[1], grad[:, 2] = 0, 0
    return grad


def follow(optimizer: torch.optim.Optimizer, weights: list[tuple[str, nn.Parameter]], direction: Any) -> None:
    """Takes 50 steps; `direction(name, gradient)` says what each matrix is to be moved by, vectors are AdamW's."""
    plain = {name: Adam((0.8, 0.95), 1e-4) for name in VECTORS}
    expected = {name: weight.detach().numpy().copy() for name, weight in weights}
    for step in range(STEPS):
        for name, weight in weights:
            grad = gradient(name, step)
            weight.grad = torch.from_numpy(grad.copy())
            if name in plain:
                moved = plain[name].direction(grad)
            else:
                moved = direction(name, grad.reshape(len(grad), -1)).reshape(grad.shape)
            expected[name] = (1 - LR * DECAY) * expected[name] - LR * moved
        optimizer.step()
        for name, weight in weights:
            apart = np.abs(weight.detach().numpy() - expected[name]).max()
            # Sums of at most 30 squares, their root, a quotient: 60 units of an entry of at most sqrt(240), each step.
            assert apart <= (step + 1) * 60 * UNIT * (LR * np.sqrt(240) + np.abs(expected[name]).max()), (name, step)


@pytest.mark.parametrize("last", ["by name", "by its group", "by its place"])
def test_scale_is_its_formula(last: str) -> None:
    weights = named()
    names = {name: name for name, _ in weights}
    groups: Any = weights
    if last == "by its group":
        groups = [{"params": [pair], "last": pair[0] == "up.weight"} for pair in weights]
    if last == "by its place":  # the head has another name, and thin.weight behind it is no matrix
        names["lm_head.weight"] = "out.weight"
        groups = [(names[name], weight) for name, weight in weights]
    chosen = "up.weight" if last == "by its group" else "lm_head.weight"
    means: dict[str, Any] = {}

    def direction(name: str, grad: ndarray) -> ndarray:
        if name == chosen:
            grad = means[name] = 0.7 * means.get(name, 0.0) + 0.3 * grad
        lengths = rms(grad, 0 if "embed" in name else 1)
        return grad / np.where(lengths == 0, 1, lengths)

    optimizer = SCALE(groups, LR, (0.8, 0.95), 1e-4, DECAY, momentum=0.7)
    follow(optimizer, weights, direction)
    assert [name for name, w in weights if "exp_avg" in optimizer.state[w]] == [
        name for name in SHAPES if name == chosen or name in VECTORS
    ]
    rows = {row.name: row for row in optimizer.plan()}
    assert [name for name, row in rows.items() if "last: with momentum" in row.reason] == [names[chosen]]


@pytest.mark.parametrize("iterations", [1, 5])
def test_sinkgd_is_its_formula(iterations: int) -> None:
    weights = named()

    def direction(name: str, grad: ndarray) -> ndarray:
        for _ in range(iterations):
            for axis in (1, 0):
                lengths = rms(grad, axis)
                grad = grad / np.where(lengths == 0, 1, lengths)
        return 0.25 * grad

    optimizer = SinkGD(weights, LR, (0.8, 0.95), 1e-4, DECAY, iterations=iterations, scale=0.25)
    follow(optimizer, weights, direction)
    assert all(("exp_avg" in optimizer.state[weight]) == (name in VECTORS) for name, weight in weights)


def test_momentum_of_nothing_is_the_gradient() -> None:
    ends = []
    for keys in ({"last": True, "momentum": 0.0}, {"last": False}):
        weights = named(torch.float32)
        optimizer = SCALE(weights, 0.1, **keys)
        for step in range(3):
            for name, weight in weights:
                weight.grad = torch.from_numpy(gradient(name, step)).float()
            optimizer.step()
        ends.append([weight.detach() for _, weight in weights])
    assert same(*ends)


@pytest.mark.parametrize("size", [1e-37, 1e-20, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [SCALE, SinkGD])
def test_lines_come_out_at_length_one_at_any_scale(kind: Any, dtype: torch.dtype, size: float) -> None:
    grad = (draw(12, 20).double() * 1000.0 ** torch.linspace(-1, 1, 12).double()[:, None]).to(dtype)
    keys = {"scale": 1.0, "iterations": 40} if kind is SinkGD else {}
    (update,) = of(kind([nn.Parameter(torch.zeros(12, 20, dtype=dtype))], lr=1.0, **keys), [size * grad])
    rows, columns = (update.double().square().mean(dim=dim).sqrt() for dim in (1, 0))
    bound = tolerance.gamma(20, dtype)
    assert bool(((rows - 1).abs() <= bound).all())
    assert kind is SCALE or bool(((columns - 1).abs() <= bound).all())
    assert bool((update.sign() == grad.sign()).all())


@pytest.mark.parametrize("kind", [SCALE, SinkGD])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zeros_move_nothing(kind: Any, dtype: torch.dtype) -> None:
    weight = nn.Parameter(draw(6, 8).to(dtype))
    before = weight.detach().clone()
    optimizer = kind([weight], lr=0.5)
    for grad in (torch.zeros(6, 8), torch.eye(6, 8)):
        weight.grad = grad.to(dtype)
        optimizer.step()
    moved = weight.detach() != before
    assert bool(moved.diagonal().all()) and int(moved.sum()) == 6  # and from there on what has a gradient


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [SCALE, SinkGD])
def test_half_precision_is_rounded_once(kind: Any, dtype: torch.dtype) -> None:
    exact, half = (nn.Parameter(draw(9, 7).to(dtype).to(to)) for to in (torch.float32, dtype))
    for weight in (exact, half):
        weight.grad = draw(9, 7, seed=1).to(dtype).to(weight.dtype)
        kind([weight], lr=0.5, last=False).step() if kind is SCALE else kind([weight], lr=0.5).step()
    assert same(exact.detach().to(dtype), half.detach())


@pytest.mark.parametrize("rank", [1, 3, 1000, 0.5, "full"])
@pytest.mark.parametrize("kind", [SCALE, SinkGD])
def test_any_rank_only_marks(kind: Any, rank: Any) -> None:
    ends = []
    for asked in ("full", rank):
        weight = nn.Parameter(draw(6, 8))
        optimizer = kind([weight], lr=0.5, rank=asked)
        weight.grad = draw(6, 8, seed=1)
        optimizer.step()
        ends.append((weight.detach(), optimizer.state[weight]))
    assert same(*ends)
    (row,) = optimizer.plan()
    assert (row.projected, row.side, row.rank) == (True, "whole", 6) and "`rank` only marks it" in row.reason
    assert " whole " in format_plan([row])


@pytest.mark.parametrize("kind", [SCALE, SinkGD])
def test_groups_of_a_model_serve(kind: Any) -> None:
    """The same groups as for a method that projects; a group without a rank is AdamW to the bit."""
    model = nn.ModuleDict({"embed": nn.Embedding(30, 8), "up": nn.Linear(8, 20), "lm_head": nn.Linear(20, 30, False)})
    optimizer = kind(param_groups(model, rank=4, verbose=False), lr=0.1)
    assert [row.name for row in optimizer.plan() if row.projected] == ["up.weight"]
    twin = {name: nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    adamw = torch.optim.AdamW(twin.values(), lr=0.1, weight_decay=0.0)
    for step in range(3):
        for name, p in model.named_parameters():
            p.grad = twin[name].grad = draw(*p.shape, seed=step)
        optimizer.step()
        adamw.step()
    alike = {name for name, p in model.named_parameters() if torch.equal(p, twin[name])}
    assert alike == {"embed.weight", "lm_head.weight", "up.bias"}
    assert "exp_avg" not in optimizer.state[model["up"].weight]  # the last layer has its moments with AdamW


def test_the_last_layer_is_settled_by_the_first_step() -> None:
    first, second, third = (nn.Parameter(draw(6, 8, seed=i)) for i in range(3))
    optimizer = SCALE([first], lr=0.1)
    optimizer.add_param_group({"params": [second]})
    for weight in (first, second, third):
        weight.grad = torch.ones(6, 8)
    optimizer.step()
    optimizer.add_param_group({"params": [third]})
    optimizer.step()
    assert ["exp_avg" in optimizer.state[weight] for weight in (first, second, third)] == [False, True, False]
    optimizer.param_groups[0]["last"] = True
    with pytest.raises(ValueError, match="step: the state of `parameter 0` must hold"):
        optimizer.step()


def test_a_whole_matrix_is_a_subspace_of_itself() -> None:
    grad, where = draw(6, 8), Geometry(6, 8, Side.WHOLE, 6)
    whole, nothing = All(where), All(where.at(0))
    assert whole.down(grad) is grad and whole.up(grad) is grad
    assert nothing.down(grad).shape == where.at(0).low_shape == (0, 0) and same(
        nothing.up(grad[:0, :0]), torch.zeros(6, 8)
    )
    for new, old, overlap in ((whole, whole, 1), (nothing, nothing, 1), (whole, nothing, 0), (nothing, whole, 0)):
        turn, moment = new.turn_from(old), old.down(grad)
        assert float(turn.overlap()) == overlap
        assert same(turn.linear(moment), grad if new is old is whole else new.down(torch.zeros(6, 8)))
        assert same(turn.squared(moment), turn.linear(moment))
    with pytest.raises(TypeError, match="`old` must be a selection of the same kind, got Dense"):
        whole.turn_from(Dense({"left": torch.eye(6, 2)}))
    with pytest.raises(TypeError, match="`old` must be a dense subspace, got All"):
        Dense({"left": torch.eye(6, 2)}).turn_from(whole)
    assert (where.low_shape, where.basis_shapes, Whole().layout(where, "float32")) == ((6, 8), {}, {})
    assert ExactSVD().layout(where, "float32").keys() == {"proj.captured"}


@pytest.mark.parametrize(
    ("kind", "key", "value", "rule"),
    [
        (SCALE, "momentum", 1.0, r"be a number in \[0, 1\), got 1.0"),
        (SCALE, "momentum", -0.1, r"be a number in \[0, 1\), got -0.1"),
        (SCALE, "last", "lm_head", "be True, False or None, got 'lm_head'"),
        (SinkGD, "iterations", 0, "be an int >= 1, got 0"),
        (SinkGD, "scale", "big", "be a finite number, got 'big'"),
        (SinkGD, "rank", 0, "be an int >= 1, a share of .*, got 0"),
    ],
)
def test_refusals(kind: Any, key: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^{kind.__name__}: `{key}` must {rule}$"):
        kind([nn.Parameter(torch.zeros(6, 8))], **{key: value})


@pytest.mark.parametrize("key", ["proj_type", "update_proj_gap", "projector", "force_projection", "stagger"])
def test_keys_of_subspaces_are_unknown(key: str) -> None:
    for kind in (SCALE, SinkGD):
        with pytest.raises(TypeError, match=f"`{key}` must be one of its keys"):
            kind([nn.Parameter(torch.zeros(6, 8))], **{key: 1})


def test_lines_of_one_length_have_no_bias() -> None:
    """What divides a moment out of its first zeros is 1, also for the limiter of a residual."""
    assert [rule.unbias(1) for rule in (Lines(), MomentumLines(), Sinkhorn())] == [1.0] * 3


def test_a_state_of_another_kind_is_refused() -> None:
    weight = nn.Parameter(draw(6, 8))
    weight.grad = torch.ones(6, 8)
    scale, galore = SCALE([weight], last=True), GaLoreAdamW([weight], rank=3)
    scale.step(), galore.step()
    for one, other in ((scale, galore), (galore, scale)):
        with pytest.raises(ValueError, match="must come from"):
            one.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="must hold format"):
        saved = scale.state_dict()
        saved["param_groups"][0]["last"] = False
        SCALE([weight]).load_state_dict(saved)


def test_memory_is_that_of_the_last_layer() -> None:
    held: list[Tensor] = []
    for keys in ({"last": False}, {"last": True}):
        weight = nn.Parameter(draw(6, 8))
        weight.grad = torch.ones(6, 8)
        optimizer = SCALE([weight], **keys)
        optimizer.step()
        held.append(optimizer.state_bytes())
    assert held == [4, 4 + 4 * 48]


@pytest.mark.parametrize("kind", [SCALE, SinkGD])
def test_no_search_is_ever_due(kind: type[LowRankOptimizer]) -> None:
    optimizer = kind([nn.Parameter(draw(6, 8))])
    ((_, group, slot),) = optimizer._slots()
    assert not optimizer._due(slot, optimizer._parts_of(group, slot))
