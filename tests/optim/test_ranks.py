"""The values of `rank`: a number, a share of min(m, n), "full" and none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowrank_core import memory, optim
from lowrank_core.memory.geometry import FULL, is_rank, rank_of
from lowrank_core.optim import GaLoreAdamW, estimate_state_bytes, param_groups
from optim_cases import draw
from torch import nn


@pytest.mark.parametrize(
    ("rank", "shorter", "asked"),
    [
        (7, 64, 7),
        (100, 64, 100),
        (0.25, 64, 16),
        (0.25, 67, 16),
        (0.01, 64, 1),
        (1.0, 64, 64),
        (FULL, 64, 64),
        (None, 64, None),
    ],
)
def test_the_rank_that_is_asked_for(rank: Any, shorter: int, asked: int | None) -> None:
    assert (rank is None or is_rank(rank)) and rank_of({"rank": rank}, shorter) == asked


@pytest.mark.parametrize("rank", [0, -1, 0.0, 1.5, -0.5, float("nan"), True, "all", [4]])
def test_what_is_no_rank(rank: Any) -> None:
    assert not is_rank(rank)
    for refused in (
        lambda: GaLoreAdamW([nn.Parameter(draw(8, 9))], rank=rank),
        lambda: param_groups(nn.Linear(8, 9), rank=rank, verbose=False),
        lambda: estimate_state_bytes([(8, 9)], rank=rank),
        lambda: memory.estimate_state_bytes([(8, 9)], rank=rank),
    ):
        with pytest.raises(
            ValueError, match=r"`rank` must be an int >= 1, a share of min\(m, n\) in \(0, 1\], \"full\" or None"
        ):
            refused()


@pytest.mark.parametrize("shape", [(40, 33), (24, 50), (17, 3, 5)])
def test_a_share_is_the_rank_that_it_gives(shape: tuple[int, ...]) -> None:
    """State and estimate are those of the number; the key itself is saved as it was given."""
    number = int(0.25 * min(shape[0], torch.Size(shape[1:]).numel()))
    steppers = []
    for rank in (0.25, number):
        weight = nn.Parameter(draw(*shape))
        optimizer = GaLoreAdamW([weight], rank=rank, update_proj_gap=2)
        for step in range(3):
            weight.grad = draw(*shape, seed=step)
            optimizer.step()
        assert optimizer.state[weight]["proj.rank"] == number
        assert optimizer.state_bytes() == optimizer.planned_state_bytes() == estimate_state_bytes([shape], rank=rank)
        steppers.append((weight, optimizer))
    assert torch.equal(steppers[0][0], steppers[1][0])
    with pytest.raises(ValueError, match=f"`rank` of group 0 must be {number} as saved, got 0.25"):
        steppers[0][1].load_state_dict(steppers[1][1].state_dict())


def test_a_group_may_change_a_rank_for_the_share_that_gives_it() -> None:
    weight = nn.Parameter(draw(40, 32))
    optimizer = GaLoreAdamW([weight], rank=8)
    for rank in (8, 0.25, 0.26):
        optimizer.param_groups[0]["rank"] = rank
        weight.grad = draw(40, 32)
        optimizer.step()
    optimizer.param_groups[0]["rank"] = 0.5
    with pytest.raises(ValueError, match="rank 16"):
        optimizer.step()


def test_full_is_plain_adamw_where_matrices_are_projected(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 12))
    groups = param_groups(model, rank=FULL)
    assert [group["rank"] for group in groups] == [None, FULL]
    assert capsys.readouterr().out.count("whole, by an optimizer that takes matrices whole") == 2
    with pytest.warns(UserWarning, match="nothing is projected at rank"):
        optimizer = GaLoreAdamW(groups)
    assert not any(row.projected for row in optimizer.plan())
    projecting = GaLoreAdamW(param_groups(model, rank=FULL, verbose=False, force_projection=True))
    assert [row.rank for row in projecting.plan() if row.projected] == [12, 12]


def test_an_estimate_refuses_keys_of_other_methods() -> None:
    assert optim.METHODS.keys() == memory.methods.METHODS.keys()
    with pytest.raises(TypeError, match="`fraction` must be a key that decides bytes of galore: force_projection, "):
        memory.estimate_state_bytes([(8, 9)], fraction=0.5)
