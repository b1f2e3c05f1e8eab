"""Q-GaLore: 50 steps against the formulas in NumPy, how its basis is stored, and when it looks again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, QGaLoreAdamW, estimate_state_bytes
from lowrank_core.optim.devices import without_kernels
from lowrank_core.optim.parts.packing import pack, project_back_packed, project_packed, unpack
from lowrank_core.optim.parts.projectors.packed import PackedBasis
from numpy import ndarray
from optim_cases import draw
from plain_steps import SIDES, UNIT, Adam, gradients, leading, path
from torch import Tensor, nn

__all__ = ["path"]  # a fixture
with_both_paths = pytest.mark.usefixtures("path")
STEPS, GAP, RANK, QUEUE, THRESHOLD, GAMMA = 50, 2, 3, 3, 0.8, 2
LR, BETAS, EPS, DECAY, SCALE = 0.05, (0.8, 0.95), 1e-4, 0.02, 0.5
U32 = 2.0**-24


def bfloat16_below(x: ndarray) -> ndarray:
    """The largest number of 8 binary digits at or below `x`."""
    exponent = np.floor(np.log2(np.abs(x), where=x != 0, out=np.zeros_like(x))) - 7
    return np.floor(x / 2.0**exponent) * 2.0**exponent


def quantized(basis: ndarray, group: int) -> tuple[ndarray, ndarray]:
    """[m, r] as 16 even steps between the extremes of every `group` rows of a column, and the step of each entry."""
    found, steps = np.zeros_like(basis), np.zeros_like(basis)
    basis = basis.astype(np.float32).astype(np.float64)
    for start in range(0, len(basis), group):
        rows = slice(start, start + group)
        low, high = basis[rows].min(0), basis[rows].max(0)
        constant = torch.from_numpy(low).bfloat16().double().numpy()  # of a group without range, to the nearest
        offset = np.where(low == high, constant, bfloat16_below(low))
        step = np.where(low == high, 0.0, -bfloat16_below(-(high - offset) / 15))
        codes = np.clip(np.floor((basis[rows] - offset) / np.where(step == 0, 1.0, step) + 0.5), 0, 15)
        found[rows] = (codes * step + offset).astype(np.float32)
        steps[rows] = np.where(step == 0, np.abs(constant) * 2.0**-7, step)
    return found, steps


def mean_cosine(one: ndarray, other: ndarray) -> float:
    """Of the principal angles between the spans of the columns."""
    return float(np.linalg.svd(np.linalg.qr(one)[0].T @ np.linalg.qr(other)[0])[1].mean())


@dataclass
class Plain:
    """One weight [m, n] that is projected on the left, in float64."""

    weight: ndarray
    group: int
    adam: Adam
    basis: Any = None
    gap: int = GAP
    due: int = 0
    cosines: list[float] = field(default_factory=list)
    refreshes: list[int] = field(default_factory=list)
    error: float = 0.0

    def step(self, grad: ndarray) -> None:
        if self.adam.count == self.due:
            self.refresh(grad)
        low = self.basis.T @ grad
        inside = self.adam.direction(low)
        off = 4 * grad.size * UNIT * np.abs(grad).max() * np.linalg.norm(self.basis, 2)
        self.error += LR * SCALE * float(np.linalg.norm(self.basis, 2) * np.linalg.norm(self.adam.error(inside, off)))
        self.weight = (1 - LR * DECAY) * self.weight - LR * SCALE * self.basis @ inside
        self.error += 4 * UNIT * float(np.linalg.norm(self.weight))

    def refresh(self, grad: ndarray) -> None:
        found, _ = leading(grad, RANK, self.basis)
        if self.basis is None:  # the largest entry of a column is positive
            found = found * np.sign(found[np.abs(found).argmax(0), np.arange(RANK)])
        new, _ = quantized(found, self.group)
        if self.basis is not None:
            self.cosines.append(mean_cosine(new, self.basis))
        if len(self.cosines) >= QUEUE and np.mean(self.cosines[-QUEUE:]) >= THRESHOLD:
            self.gap, self.cosines = GAMMA * self.gap, []
        self.refreshes.append(self.adam.count)
        self.basis, self.due = new, self.adam.count + self.gap


@with_both_paths
@pytest.mark.parametrize(("shape", "proj_type"), SIDES)
@pytest.mark.parametrize("size", [1, 5])
def test_the_formulas(shape: tuple[int, int], proj_type: str, size: int) -> None:
    """With bases of one group of rows, and of several: 5 times as long."""
    turn: Callable[[Any], Any] = (lambda x: x.T) if SIDES[shape, proj_type] == "R" else (lambda x: x)
    shape = (size * shape[0], size * shape[1])
    start = np.random.default_rng(1).standard_normal(shape)
    plain = Plain(turn(start).copy(), 32, Adam(BETAS, EPS))
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    keys: dict[str, Any] = {"rank": RANK, "update_proj_gap": GAP, "scale": SCALE, "proj_type": proj_type}
    keys |= {"cos_threshold": THRESHOLD, "queue_size": QUEUE, "gamma": GAMMA, "group_size": 32, "projector": "svd"}
    optimizer = QGaLoreAdamW([weight], LR, BETAS, EPS, DECAY, moment_dtype="float32", **keys)
    found = []
    for number, grad in enumerate(gradients(shape, STEPS)):
        weight.grad = torch.from_numpy(grad)
        before, looked = plain.weight, len(plain.refreshes)
        plain.step(turn(grad))
        optimizer.step()
        state = optimizer.state[weight]
        if len(plain.refreshes) > looked:
            found.append(state["proj.last_refresh"])
            count = state["schedule.count"]
            expected = plain.cosines[: -QUEUE - 1 : -1]
            assert np.abs(np.array(expected) - state["schedule.cosines"][:count].numpy()).max(initial=0) < 2.0**-20
            decoded = optimizer.parts(optimizer.param_groups[0], weight).projector.stored_basis(
                next(iter(slot for _, _, slot in optimizer._slots())), state
            )
            assert np.array_equal(decoded.numpy(), plain.basis)
        apart = np.linalg.norm(turn(weight.detach().numpy()) - plain.weight)
        assert apart <= plain.error, f"step {number}"
        assert plain.error < 2.0**-14 * np.linalg.norm(plain.weight - before)
    assert found == plain.refreshes and state["schedule.grown"] >= 1 and len(found) > QUEUE + 1


def stepped(optimizer: Any, weight: Tensor, grads: list[Tensor]) -> list[int]:
    """The steps, counted from the next one, in which the basis was looked for."""
    found = []
    for number, grad in enumerate(grads):
        before = optimizer.projections()[0].refreshes
        weight.grad = grad
        optimizer.step()
        if optimizer.projections()[0].refreshes != before:
            found.append(number)
    return found


def made(*shape: int, **keys: Any) -> tuple[nn.Parameter, QGaLoreAdamW]:
    weight = nn.Parameter(torch.zeros(shape))
    return weight, QGaLoreAdamW([weight], **{"rank": 3, "update_proj_gap": 2, **keys})


# ---- the basis -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("rows", [1, 2, 31, 33, 64, 130, 300])
def test_g13_an_entry_is_off_by_at_most_half_a_step(rows: int, group_size: int) -> None:
    basis = torch.linalg.qr(draw(rows, min(rows, 5), seed=1).double()).Q
    q = pack(basis.float(), group_size)
    decoded, steps = quantized(basis.float().double().numpy(), min(group_size, -(-rows // 32) * 32))
    assert np.array_equal(unpack(q, torch.float64).numpy(), decoded)
    assert bool((np.abs(basis.numpy() - decoded) <= (0.5 + 2.0**-12) * steps + 2.0**-24).all())


def test_the_codes_are_two_a_byte_and_groups_are_no_longer_than_the_basis() -> None:
    weight, optimizer = made(40, 300, rank=7, group_size=64)
    weight.grad = draw(40, 300)
    optimizer.step()
    state = optimizer.state[weight]
    assert state["proj.basis.codes"].shape == (32, 7) and state["proj.basis.codes"].dtype == torch.uint8
    assert state["proj.basis.scales"].shape == state["proj.basis.offsets"].shape == (1, 7)
    # Codes, two bfloat16 a group, moments in 8 bits with a scale for 256, a share, the cosines, the count of steps.
    assert optimizer.state_bytes() == 32 * 7 + 4 * 7 + 2 * (300 * 7 + 4 * 9) + 4 + 4 * 5 + 4


def test_its_state_is_a_twentieth_of_adamws() -> None:
    """Of Llama-130M's projected weights."""
    shapes = ([(768, 768)] * 4 + [(2048, 768)] * 2 + [(768, 2048)]) * 12
    held = estimate_state_bytes(shapes, "qgalore", rank=128)
    assert 20 * held <= estimate_state_bytes(shapes, "adamw")
    assert 3 * held <= estimate_state_bytes(shapes, "galore", rank=128)


def test_a_group_of_one_sign_is_kept() -> None:
    """The published zero point, held between the codes, makes 1 of all entries from 1 to 2."""
    column = torch.linspace(1, 2, 32)[:, None]
    for values in (column, -column, torch.full((32, 1), 0.3)):
        back = unpack(pack(values, 32), torch.float32)
        assert (back - values).abs().max() <= 0.5 / 15 * (1 + 2.0**-7)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rows", [1, 33, 64, 130])
def test_without_kernels_it_has_the_same_codes(rows: int, side: str) -> None:
    """But for entries half-way between two, and the same products."""
    basis, grad = draw(rows, 5, seed=1), draw(rows, 7, seed=2)
    grad = grad if side == "left" else grad.mT
    ours = pack(basis, 64)
    with without_kernels():
        theirs = pack(basis, 64)
        plain = unpack(theirs, torch.float32)
        low = project_packed(grad, theirs, side)
        back = project_back_packed(low, theirs, side)
    assert torch.equal(unpack(ours, torch.float32), plain) and torch.equal(ours.packed, theirs.packed)
    assert torch.equal(ours.scales, theirs.scales) and torch.equal(ours.offsets, theirs.offsets)
    expected = plain.mT @ grad if side == "left" else grad @ plain
    assert (low - expected).norm() <= rows * U32 * plain.norm() * grad.norm()
    lifted = plain @ low if side == "left" else low @ plain.mT
    assert (back - lifted).norm() <= 5 * U32 * plain.norm() * low.norm() and back.shape == grad.shape


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_subspace_reads_its_codes(side: str) -> None:
    """Its products are those with the basis that the codes stand for."""
    weight, optimizer = made(70, 50, rank=4, proj_type=side, group_size=32)
    weight.grad = draw(70, 50)
    optimizer.step()
    ((_, _, slot),) = optimizer._slots()
    projector = optimizer.parts(optimizer.param_groups[0], weight).projector
    subspace, basis = (
        projector.held(slot, optimizer.state[weight]),
        projector.stored_basis(slot, optimizer.state[weight]),
    )
    grad, left = draw(70, 50, seed=3), side == "left"
    low = subspace.down(grad)
    assert (low - (basis.mT @ grad if left else grad @ basis)).abs().max() <= 100 * U32 * grad.norm()
    back = subspace.up(low)
    assert (back - (basis @ low if left else low @ basis.mT)).abs().max() <= 10 * U32 * low.norm()
    assert subspace.rank == 4


# ---- and what is the same as GaLore, or refused --------------------------------------------------------------------


@pytest.mark.parametrize("moment_dtype", ["float32", "int8"])
def test_on_codes_that_say_all_it_is_galore(moment_dtype: str) -> None:
    """A basis of unit vectors is one of the codes': 0 and 1 are the ends of a group."""
    grads = [torch.zeros(32, 48) for _ in range(7)]
    for number, grad in enumerate(grads):
        grad[:4] = torch.diag(torch.tensor([8.0, 4, 2, 1])) @ torch.linalg.qr(draw(48, 4, seed=number)).Q.mT
    keys: dict[str, Any] = {"rank": 4, "update_proj_gap": 3, "projector": "svd", "moment_dtype": moment_dtype}
    weights = [nn.Parameter(torch.zeros(32, 48)) for _ in range(2)]
    kinds: list[Any] = [GaLoreAdamW, QGaLoreAdamW]
    for weight, kind in zip(weights, kinds, strict=True):
        optimizer = kind([weight], **keys)
        for grad in grads:
            weight.grad = grad
            optimizer.step()
    assert (weights[0] - weights[1]).abs().max() <= 2.0**-7 * weights[0].abs().max() and weights[0].any()


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("cos_threshold", -0.1, "be a number >= 0, got -0.1"),
        ("queue_size", 0, "be an int >= 1, got 0"),
        ("gamma", 0.5, "be a number >= 1, got 0.5"),
        ("group_size", 100, "be a multiple of 32 from 32 to 256, got 100"),
        ("group_size", 512, "be a multiple of 32 from 32 to 256, got 512"),
        ("group_size", 64.0, "be a multiple of 32 from 32 to 256, got 64.0"),
        ("update_proj_gap", 0, "be an int >= 1, got 0"),
        ("stagger", 1, "be True, False or .auto., got 1"),
    ],
)
def test_refusals(key: str, value: Any, rule: str) -> None:
    for make in (
        lambda: QGaLoreAdamW([torch.zeros(6, 8)], rank=2, **{key: value}),
        lambda: QGaLoreAdamW([{"params": [torch.zeros(6, 8)], "rank": 2, key: value}]),
    ):
        with pytest.raises(ValueError, match=f"^QGaLoreAdamW: `{key}` must {rule}$"):
            make()


@pytest.mark.parametrize(("key", "value"), [("group_size", 64), ("queue_size", 4)])
def test_what_its_state_was_made_with_stays(key: str, value: int) -> None:
    weight, optimizer = made(70, 90, group_size=32)
    stepped(optimizer, weight, [draw(70, 90)])
    optimizer.param_groups[0][key] = value
    with pytest.raises(ValueError, match=r"^step: `.*` of `parameter 0` must be "):
        optimizer.step()


def test_a_packed_basis_takes_no_other_subspace() -> None:
    weight, optimizer = made(24, 32)
    stepped(optimizer, weight, [draw(24, 32)])
    ((_, _, slot),) = optimizer._slots()
    projector = optimizer.parts(optimizer.param_groups[0], weight).projector
    held = projector.held(slot, optimizer.state[weight])
    assert isinstance(projector, PackedBasis)
    with pytest.raises(TypeError, match="hold: `subspace` must be a packed one, got Dense"):
        projector.hold(slot, optimizer.state[weight], held.dense())
    with pytest.raises(TypeError, match="turn_from: `old` must be a packed subspace, got Dense"):
        held.turn_from(held.dense())
