"""When Q-GaLore looks for its basis again."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lowrank_core.memory.storage import FORMAT
from lowrank_core.optim import QGaLoreAdamW
from lowrank_core.optim.parts.schedules.lazy import LazyGap
from optim_cases import draw, same
from test_qgalore import made, stepped
from torch import Tensor, nn


class Staying:
    """A change of subspace that keeps the given share."""

    def __init__(self, cosine: float) -> None:
        self.value = cosine

    def cosine(self) -> Tensor:
        return torch.tensor(self.value)


def looks(schedule: LazyGap, until: int, *cosines: float) -> list[int]:
    """The steps at which a weight is refreshed whose new subspaces have these cosines with the old one; the last one
    holds for all that follow."""
    slot: Any = type("", (), {"turn": (0, 1)})
    state: dict[str, Any] = {"proj.refreshes": 0, "proj.last_look": 0, "schedule.count": 0, "schedule.grown": 0}
    state["schedule.cosines"] = torch.zeros(schedule.queue_size)
    found = []
    for step in range(until):
        if schedule.due(slot, step, state):
            turn: Any = Staying(cosines[min(len(found), len(cosines)) - 1]) if found else None
            schedule.looked(state, step, turn)
            state["proj.refreshes"] += 1
            found.append(step)
    return found


def test_g15_the_gap_doubles_after_five_refreshes_that_kept_the_subspace() -> None:
    """And counts anew: six looks 200 apart, five 400 apart, five 800 apart."""
    first, second = list(range(0, 1001, 200)), list(range(1400, 3001, 400))
    assert looks(LazyGap(200), 5000, 1.0) == [*first, *second, 3800, 4600]
    assert looks(LazyGap(200, cos_threshold=0.5), 5000, 0.5) == looks(LazyGap(200), 5000, 1.0)  # at the threshold, too
    assert looks(LazyGap(200), 5000, 0.39) == list(range(0, 5000, 200))


def test_a_gap_grows_by_gamma_and_up_to_ten_thousand() -> None:
    assert looks(LazyGap(2, queue_size=1, gamma=1.5), 40, 1.0) == [0, 2, 5, 9, 15, 25]
    assert looks(LazyGap(7, queue_size=1, gamma=1), 30, 1.0) == [0, 7, 14, 21, 28]
    wide = looks(LazyGap(4000, queue_size=1), 50_000, 1.0)
    assert wide == [0, 4000, 12_000, 22_000, 32_000, 42_000]
    assert looks(LazyGap(12_000, queue_size=1), 50_000, 1.0) == [0, 12_000, 24_000, 36_000, 48_000]
    assert looks(LazyGap(4000, queue_size=1, gamma=1e308), 50_000, 1.0) == [0, 4000, 14_000, 24_000, 34_000, 44_000]


def test_the_last_cosines_count() -> None:
    """The gap grows as soon as the mean of the last two is at the threshold, whatever came before."""
    schedule = LazyGap(1, queue_size=2, cos_threshold=0.5)
    assert looks(schedule, 14, 0.0, 0.0, 0.0, 0.25, 0.5, 0.5, 0.0) == [0, 1, 2, 3, 4, 5, 6, 8, 10, 12]


def test_both_sides_count() -> None:
    """The mean over the angles on the left, which turns, and on the right, which stays."""
    weight, optimizer = made(40, 40, rank=2, proj_type="full", projector="svd", group_size=32, update_proj_gap=1)
    frame, sizes = torch.linalg.qr(draw(40, 6)).Q, torch.diag(torch.tensor([2.0, 1.0]))
    stepped(optimizer, weight, [frame[:, at : at + 2] @ sizes @ frame[:, 4:].mT for at in (0, 2)])
    # Each basis is off by about a tenth in 4 bits.
    assert 0.45 < float(optimizer.state[weight]["schedule.cosines"][0]) < 0.55


def test_what_counts_is_the_subspace_and_not_its_basis() -> None:
    """Signs and turns within it do not show; a subspace at a right angle is at 0."""
    frame = torch.linalg.qr(draw(40, 12).double()).Q
    turned = frame[:, :4] @ torch.linalg.qr(draw(4, 4, seed=2).double()).Q
    for other, cosine in ((-frame[:, :4], 1.0), (turned, 1.0), (frame[:, 4:8], 0.0), (frame[:, 2:6], 0.5)):
        weight, optimizer = made(40, 60, rank=4, cos_threshold=2, projector="svd", queue_size=1, group_size=32)
        found = [2.0 * basis @ torch.diag(torch.tensor([4.0, 3, 2, 1]).double()) for basis in (frame[:, :4], other)]
        right = torch.linalg.qr(draw(60, 4, seed=3).double()).Q
        stepped(optimizer, weight, [(left @ right.mT).float() for left in (found[0], found[0], found[1])])
        # Each basis is off by about a tenth in 4 bits.
        assert abs(float(optimizer.state[weight]["schedule.cosines"][0]) - cosine) < 0.05


def test_a_subspace_that_stays_is_looked_for_less_often() -> None:
    """And one that jumps is not."""
    grads = [draw(24, 3, seed=1) @ draw(3, 32, seed=number) for number in range(40)]
    weight, optimizer = made(24, 32, queue_size=2)
    assert stepped(optimizer, weight, grads) == [0, 2, 4, 8, 12, 20, 28]
    jumps = [draw(24, 3, seed=7 * number) @ draw(3, 32, seed=number) for number in range(40)]
    weight, optimizer = made(24, 32, queue_size=2, cos_threshold=0.7)
    assert stepped(optimizer, weight, jumps) == list(range(0, 40, 2))


def test_an_edit_of_the_gap_acts_at_once_and_keeps_what_has_grown() -> None:
    grads = [draw(24, 3, seed=1) @ draw(3, 32, seed=number) for number in range(40)]
    weight, optimizer = made(24, 32, queue_size=1, gamma=3)
    assert stepped(optimizer, weight, grads[:3]) == [0, 2]  # the next gap is 6
    optimizer.param_groups[0]["update_proj_gap"] = 1
    assert stepped(optimizer, weight, grads[3:15]) == [2, 11]  # 3 steps after the last one, then 9


def test_a_resume_goes_on_with_the_gap_that_has_grown() -> None:
    grads = [draw(24, 3, seed=1) @ draw(3, 32, seed=number) for number in range(60)]
    weight, optimizer = made(24, 32, queue_size=2)
    stepped(optimizer, weight, grads[:11])
    twin, other = made(24, 32, queue_size=2)
    twin.data.copy_(weight.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.state[twin]["schedule.grown"] == 1 and other.state[twin]["format"] == FORMAT
    assert stepped(other, twin, grads[11:]) == stepped(optimizer, weight, grads[11:]) == [1, 9, 17, 33]
    assert same([weight.detach(), optimizer.state_dict()], [twin.detach(), other.state_dict()])


def test_a_gradient_of_zeros_says_nothing_about_the_subspace() -> None:
    zero, some = torch.zeros(24, 32), [draw(24, 3, seed=1) @ draw(3, 32, seed=number) for number in range(9)]
    weight, optimizer = made(24, 32, queue_size=2)
    assert stepped(optimizer, weight, [zero] * 3) == [] and not weight.any()
    assert stepped(optimizer, weight, [*some[:4], zero, *some[4:7]]) == [0, 2, 6]  # it would have looked after 4, too
    state = optimizer.state[weight]
    assert (state["schedule.grown"], state["proj.refreshes"]) == (1, 3)


def test_weights_take_turns_after_their_first_refresh() -> None:
    weights = [nn.Parameter(torch.zeros(12, 10)) for _ in range(3)]
    optimizer = QGaLoreAdamW(weights, rank=2, update_proj_gap=6, stagger=True, cos_threshold=2)
    found: list[list[int]] = [[], [], []]
    for step in range(16):
        before = [p.refreshes for p in optimizer.projections()]
        for number, weight in enumerate(weights):
            weight.grad = draw(12, 10, seed=10 * step + number)
        optimizer.step()
        for number, projection in enumerate(optimizer.projections()):
            if projection.refreshes != before[number]:
                found[number].append(step)
    assert found == [[0, 2, 8, 14], [0, 4, 10], [0, 6, 12]]
