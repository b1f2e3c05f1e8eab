"""DCT-AdamW: 50 steps against the formulas in NumPy, with feedback in the weight's space, and its identities."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core import memory
from lowrank_core.optim import DCTAdamW, param_groups
from lowrank_core.optim.parts.codecs import Blocks8
from optim_cases import draw
from plain_bases import atoms
from plain_dct import BETAS, DECAY, EPS, LR, RANK, Plain
from plain_steps import SIDES, UNIT, gradients, of, path
from torch import nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
STEPS = 50


@with_both_paths
@pytest.mark.parametrize("fed_back", [True, False])
@pytest.mark.parametrize(("gap", "basis", "norm_ord"), [(1, "dct2", 2), (1, "identity", 1), (4, "dct3", 2)])
@pytest.mark.parametrize(("shape", "proj_type"), SIDES)
def test_the_formulas(
    shape: tuple[int, int], proj_type: str, gap: int, basis: str, norm_ord: int, fed_back: bool
) -> None:
    turn: Callable[[Any], Any] = (lambda x: x) if SIDES[shape, proj_type] == "R" else (lambda x: x.T)
    start = np.random.default_rng(1).standard_normal(shape)
    plain = Plain(turn(start).copy(), {basis: atoms(basis, turn(start).shape[1])}, gap, norm_ord, fed_back)
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    keys: dict[str, Any] = {"basis": basis, "norm_ord": norm_ord, "error_feedback": fed_back, "update_proj_gap": gap}
    optimizer = DCTAdamW([weight], LR, BETAS, EPS, DECAY, rank=RANK, proj_type=proj_type, **keys)
    for number, grad in enumerate(gradients(shape, STEPS)):
        weight.grad = torch.from_numpy(grad)
        before = plain.weight
        plain.step(turn(grad))
        optimizer.step()
        state = optimizer.state[weight]
        assert state[f"proj.{basis}"].tolist() == plain.chosen, f"step {number}"
        assert state["counts"].flatten().tolist() == [plain.moments[j][2] for j in plain.chosen]
        apart = np.linalg.norm(turn(weight.detach().numpy()) - plain.weight)
        assert apart <= plain.error, f"step {number}"
        assert plain.error < 2.0**-24 * np.linalg.norm(plain.weight - before)  # far below what any one step does
    assert plain.entered > 3
    if fed_back:
        waiting = state["residual.feedback"].numpy()
        back = turn(waiting) @ plain.bases[basis].T
        assert np.abs(back - plain.left).max() <= plain.off and np.abs(plain.left).max() > 0.1


@with_both_paths
@pytest.mark.parametrize("basis", ["dct2", "dct3", "hadamard"])
@pytest.mark.parametrize("shape", [(20, 16), (16, 20), (16, 16)])
def test_at_full_rank_it_is_adamw_of_the_spectrum(shape: tuple[int, int], basis: str) -> None:
    """In the rotated basis: v depends on it."""
    grads = [draw(*shape, seed=number).double() for number in range(1, 13)]
    weight = nn.Parameter(draw(*shape).double())
    optimizer = DCTAdamW([weight], LR, BETAS, EPS, DECAY, rank="full", force_projection=True, basis=basis)
    q, right = torch.from_numpy(atoms(basis, 16)), shape[0] >= shape[1]
    rotated = nn.Parameter((weight @ q if right else q.mT @ weight).detach().clone())
    reference = torch.optim.AdamW([rotated], LR, BETAS, EPS, DECAY)
    for grad in grads:
        weight.grad, rotated.grad = grad, grad @ q if right else q.mT @ grad
        optimizer.step()
        reference.step()
    ours = (weight @ q if right else q.mT @ weight).detach()
    # A coordinate is off by the rounding of its sum, a direction by that over the root of v, which is eps or more.
    off = 2 * 16 * UNIT * max(float(grad.abs().max()) for grad in grads)
    assert (ours - rotated).abs().max() <= 12 * LR * 3 * off / EPS
    state = optimizer.state[weight]
    assert state["proj.captured"] == 1 and not state["residual.feedback"].any()


@with_both_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_of_a_gradient_is_lost(dtype: torch.dtype) -> None:
    """What was stepped and what waits is the sum of all gradients, in coordinates: exactly so for whole numbers."""
    shape, total = (12, 9), torch.zeros(12, 9)
    weight = nn.Parameter(torch.zeros(shape, dtype=dtype))
    keys: dict[str, Any] = {"basis": "identity", "error_feedback_dtype": "float32"}
    optimizer = DCTAdamW([weight], lr=1e-3, rank=3, betas=(0.0, 0.0), **keys)
    for step in range(6):
        weight.grad = (8 * draw(*shape, seed=step)).round().to(dtype)
        optimizer.step()
        state = optimizer.state[weight]
        total += weight.grad.float()
        stepped = torch.zeros(shape)
        stepped[:, state["proj.identity"]] = state["exp_avg"].float()
        total -= stepped
        assert torch.equal(total, state["residual.feedback"])
        assert not state["residual.feedback"][:, state["proj.identity"]].any()


@with_both_paths
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_an_atom_that_enters_makes_no_jump(shape: tuple[int, int]) -> None:
    """Its first step is as long as that of a first step, whatever the count of the run."""
    grads = [torch.zeros(shape).double() for _ in range(41)]
    axis = 1 if shape[0] > shape[1] else 0
    for step, grad in enumerate(grads):
        grad.select(axis, 3 if step < 40 else 7).fill_(1.0 if step < 40 else 5.0)
    weight = nn.Parameter(torch.zeros(shape).double())
    optimizer = DCTAdamW([weight], lr=1.0, rank=1, eps=0.0, basis="identity", error_feedback=False)
    updates = of(optimizer, grads)
    assert all((updates[step].abs().max() - 1).abs() <= 41 * 4 * UNIT for step in (0, 39, 40))
    assert optimizer.state[weight]["counts"].item() == 1 and optimizer.state[weight]["proj.identity"].item() == 7


@with_both_paths
def test_a_gradient_of_zeros() -> None:
    weight = nn.Parameter(draw(12, 9))
    before = weight.detach().clone()
    optimizer = DCTAdamW([weight], lr=0.1, rank=3)
    of_zeros = torch.zeros(12, 9)
    for _ in range(2):
        weight.grad = of_zeros
        optimizer.step()
    state = optimizer.state[weight]
    assert torch.equal(weight, before) and state["proj.dct2"].tolist() == [0, 1, 2] and state["proj.captured"] == 1
    weight.grad = draw(12, 9)
    optimizer.step()
    assert not torch.equal(weight, before) and torch.isfinite(weight).all()


def test_the_gap_may_change() -> None:
    weight = nn.Parameter(draw(12, 9))
    optimizer = DCTAdamW([weight], lr=0.1, rank=3)
    chosen = []
    for step, gap in enumerate([1, 1, 3, 3, 3, 3, 1, 1]):
        optimizer.param_groups[0]["update_proj_gap"] = gap
        weight.grad = draw(12, 9, seed=step)
        optimizer.step()
        chosen.append(optimizer.state[weight]["proj.dct2"].tolist())
    changes = [a != b for a, b in itertools.pairwise(chosen)]
    assert changes[0] and changes[5] and changes[6] and sum(changes[1:5]) == 1
    assert optimizer.projections()[0].refreshes == 8


def test_a_basis_cannot_be_changed_under_a_state() -> None:
    weight = nn.Parameter(draw(12, 9))
    optimizer = DCTAdamW([weight], rank=3)
    weight.grad = draw(12, 9, seed=1)
    optimizer.step()
    for key, value in (("basis", "dct3"), ("error_feedback", False), ("error_feedback_dtype", "int8")):
        optimizer.param_groups[0][key], kept = value, optimizer.param_groups[0][key]
        with pytest.raises(ValueError, match="it is of another optimizer, of other keys of its group, or damaged"):
            optimizer.step()
        optimizer.param_groups[0][key] = kept
    optimizer.step()


@pytest.mark.parametrize("fed_back", [True, False])
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 2)])
def test_its_state(dtype: torch.dtype, width: int, fed_back: bool) -> None:
    weight = nn.Parameter(torch.zeros(64, 40, dtype=dtype))
    optimizer = DCTAdamW([weight], error_feedback=fed_back)
    of(optimizer, [draw(64, 40)])
    numbers = 10 * (8 + 4) + 4 + 4  # indices and counts of ten atoms, the share captured, the count of steps
    assert optimizer.state_bytes() == width * (2 * 64 * 10 + 64 * 40 * fed_back) + numbers


def test_feedback_in_eight_bits() -> None:
    weight = nn.Parameter(torch.zeros(64, 40))
    optimizer = DCTAdamW([weight], error_feedback_dtype="int8")
    of(optimizer, [draw(64, 40)])
    held = 2 * 4 * 64 * 10 + 64 * 40 + 4 * 10 + 10 * 12 + 8
    assert optimizer.state_bytes() == held
    assert memory.estimate_state_bytes([(64, 40)], "dct", rank=None, error_feedback_dtype="int8") == held


def test_feedback_has_random_words_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the moments, whose roundings would lean the same way."""
    seeds: dict[str, int] = {}
    encode = Blocks8.encode

    def recorded(self: Blocks8, state: Any, name: str, value: Any, role: Any, draw: Any) -> None:
        seeds[name] = draw.seed
        encode(self, state, name, value, role, draw)

    monkeypatch.setattr(Blocks8, "encode", recorded)
    weight = nn.Parameter(torch.zeros(12, 9))
    of(DCTAdamW([weight], rank=3, moment_dtype="int8", error_feedback_dtype="int8"), [draw(12, 9)])
    assert seeds.keys() == {"exp_avg", "exp_avg_sq", "residual.feedback"}
    assert seeds["residual.feedback"] != seeds["exp_avg"] == seeds["exp_avg_sq"]


def test_hadamard_is_refused_where_it_does_not_exist() -> None:
    bad, good = nn.Parameter(torch.zeros(12, 9)), nn.Parameter(torch.zeros(12, 8))
    with pytest.raises(ValueError, match=r"`basis` must not be 'hadamard' for a weight \(12, 9\), whose .* side 9 is"):
        DCTAdamW([good, bad], rank=3, basis="hadamard")
    optimizer = DCTAdamW([("good", good)], rank=3, basis="hadamard")
    with pytest.raises(ValueError, match="`basis` must not be 'hadamard'"):
        optimizer.add_param_group({"params": [("bad", bad)]})
    optimizer.add_param_group({"params": [("bad", bad)], "rank": None})
    assert len(optimizer.param_groups) == 2
    DCTAdamW(param_groups(nn.Linear(8, 12), rank=3, verbose=False, basis="hadamard"))


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("basis", "dct1", "be one of dct2, dct3, identity, hadamard, auto, got 'dct1'"),
        ("norm_ord", 3, "be 1 or 2, got 3"),
        ("norm_ord", True, "be 1 or 2, got True"),
        ("error_feedback", 1, "be True or False, got 1"),
        ("error_feedback_dtype", "int4", "be one of auto, float32, bfloat16, int8, got 'int4'"),
        ("proj_type", "full", "be one of std, reverse_std, left, right, got 'full'"),
        ("update_proj_gap", 0, "be an int >= 1, got 0"),
    ],
)
def test_refusals(key: str, value: Any, rule: str) -> None:
    for make in (
        lambda: DCTAdamW([nn.Parameter(torch.zeros(6, 8))], **{key: value}),
        lambda: DCTAdamW([{"params": [nn.Parameter(torch.zeros(6, 8))], key: value}]),
    ):
        with pytest.raises(ValueError, match=f"^DCTAdamW: `{key}` must {rule}$"):
            make()


def test_scale_is_no_key_of_it() -> None:
    with pytest.raises(TypeError, match=r"^DCTAdamW: `scale` must be one of its keys, got scale"):
        DCTAdamW([nn.Parameter(torch.zeros(6, 8))], scale=1.0)


def test_the_default_rank_is_a_quarter() -> None:
    optimizer = DCTAdamW([nn.Parameter(torch.zeros(40, 64)), nn.Parameter(torch.zeros(3, 3))])
    assert [row.rank for row in optimizer.plan()] == [10, 1]
