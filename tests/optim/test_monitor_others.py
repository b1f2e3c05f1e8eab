"""A `Monitor` of torch's optimizers and of LISA: the size of each update, and the number of its step."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lowrank_core.optim import LISA, GaLoreAdamW, Monitor
from optim_cases import Zoo, backward, train
from testing import tolerance

# Differences and sums of at most 240 squares in float64 of float32 weights; the difference is rounded in float32.
ROUNDING = 4 * tolerance.gamma(2, torch.float32)

MATRICES = ["embed.weight", "conv.weight", "up.weight", "down.weight", "square.weight"]


def stepped(model: Zoo) -> list[str]:
    """The matrices that the next step is to move."""
    return [name for name, param in model.named_parameters() if name in MATRICES and param.grad is not None]


def moved(model: Zoo, before: Zoo, name: str) -> float:
    """|dW|_F / |W|_F of one matrix."""
    old, new = (one.get_parameter(name).detach().double() for one in (before, model))
    return float((new - old).norm() / old.norm())


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_of_torch(kind: Any) -> None:
    model = Zoo()
    optimizer = kind(model.named_parameters(), lr=0.02)
    with Monitor(optimizer) as watching:
        for number in range(3):
            backward(model, number)
            if number == 1:
                model.up.weight.grad = None
            before = copy.deepcopy(model)
            optimizer.step()
            found = {row["name"]: row["update_ratio"] for row in watching.rows if row["step"] == number + 1}
            assert list(found) == [name for name in MATRICES if number != 1 or name != "up.weight"]
            assert found == pytest.approx({name: moved(model, before, name) for name in found}, rel=ROUNDING)
            assert all(value > 0 for value in found.values())
    for row in watching.rows:
        assert row["rank"] is row["captured"] is row["overlap"] is None
        assert row["refreshes"] == row["refresh_seconds"] == 0
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_an_optimizer_of_torch_goes_on_with_its_file(tmp_path: Path) -> None:
    model = Zoo()
    optimizer = torch.optim.AdamW(model.named_parameters())
    with Monitor(optimizer, path=tmp_path / "rows.jsonl"):
        train(model, optimizer, range(2))
        saved = copy.deepcopy(optimizer.state_dict())
        train(model, optimizer, range(2, 4))
    optimizer.load_state_dict(saved)
    with Monitor(optimizer, path=tmp_path / "rows.jsonl") as watching:
        assert watching.steps == 2
        train(model, optimizer, range(2, 3))
        assert watching.steps == 3
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [number for number in (1, 2, 3) for _ in MATRICES]


@pytest.mark.parametrize("inside", ["adamw", "galore"])
def test_lisa_is_watched_as_one_optimizer(inside: str) -> None:
    """Of the layers that are at work there is a row for each of its steps, though their states start anew."""
    model = Zoo()
    optimizer: Any = torch.optim.AdamW(model.named_parameters())
    if inside == "galore":
        optimizer = GaLoreAdamW(model.named_parameters(), rank=4, update_proj_gap=3, lr=0.02)
    lisa = LISA(optimizer, model, layers=[model.up, model.down], active=1, period=2)
    seen: set[str] = set()
    with Monitor(lisa) as watching:
        for number in range(8):
            backward(model, number)
            before, asked = copy.deepcopy(model), stepped(model)
            assert ("up.weight" in asked) != ("down.weight" in asked)
            lisa.step()
            came = {row["name"]: row for row in watching.rows if row["step"] == number + 1}
            assert list(came) == asked and watching.steps == number + 1
            found = {name: row["update_ratio"] for name, row in came.items()}
            assert found == pytest.approx({name: moved(model, before, name) for name in asked}, rel=ROUNDING)
            assert all((row["rank"] is None) == (inside == "adamw") for row in came.values())
            seen.update(asked)
    assert seen == set(MATRICES) and not optimizer._optimizer_step_post_hooks


def test_a_step_of_lisa_that_is_skipped_has_no_row() -> None:
    model = Zoo()
    inner = GaLoreAdamW(model.named_parameters(), rank=4, lr=0.02)
    lisa = LISA(inner, model, layers=[model.up, model.down], active=1)
    with Monitor(lisa) as watching:
        backward(model, 0)
        model.square.weight.grad[0, 0] = float("nan")
        lisa.step()
        assert inner.skipped_steps == 1 and watching.rows == []
        backward(model, 1)
        lisa.step()
    assert {row["step"] for row in watching.rows} == {2}
