"""The monitor: every figure recomputed by other means, files that survive a kill, nothing that changes a step."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lowrank_core.optim import ApolloAdamW, GaLoreAdamW, Monitor, monitor
from lowrank_core.optim.parts.subspaces.dense import Dense
from optim_cases import Case, Zoo, backward, every_optimizer, same, snapshot, train
from test_deferred import no_reading
from test_deferred_state import defer
from testing import tolerance
from torch import nn

# Sums of at most 36 products in float32, of which the figures are quotients.
ROUNDING = 4 * tolerance.gamma(36, torch.float32)

MATRICES = ["embed.weight", "conv.weight", "up.weight", "down.weight", "square.weight"]


def galore(model: nn.Module, **keys: Any) -> GaLoreAdamW:
    return GaLoreAdamW(model.named_parameters(), **{"rank": 4, "update_proj_gap": 3, "lr": 0.02, **keys})


@every_optimizer
def test_it_changes_nothing(case: Case) -> None:
    model, twin = Zoo(), Zoo()
    one, other = case.make(model.named_parameters()), case.make(twin.named_parameters())
    with Monitor(one) as watching:
        train(model, one, range(7))
    train(twin, other, range(7))
    assert same(snapshot(model, one), snapshot(twin, other))
    rows = watching.rows
    assert [row["name"] for row in rows if row["step"] == 7] == MATRICES
    assert len(rows) == 7 * len(MATRICES) and all(tuple(row) == monitor.KEYS for row in rows)
    ranks = {name: one.state[p].get("proj.rank") for name, p in model.named_parameters() if name in MATRICES}
    assert {row["name"]: row["rank"] for row in rows if row["step"] == 7} == ranks
    assert all(0 < row["update_ratio"] < 10 for row in rows)
    assert all(row["overlap"] is None or 0 <= row["overlap"] <= 1 + 1e-6 for row in rows)
    if case.optimizer is GaLoreAdamW:
        for row in rows:
            assert row["refreshes"] == 1 + (row["step"] - 1) // 3
            assert (row["refresh_seconds"] > 0) == (row["step"] % 3 == 1)
            assert (row["overlap"] is None) == (row["step"] <= 3)


def test_every_figure_is_what_its_name_says() -> None:
    model = Zoo()
    optimizer = galore(model, weight_decay=0.1)
    with Monitor(optimizer) as late, Monitor(optimizer) as watching:
        for number in range(5):
            backward(model, number)
            before = copy.deepcopy(model)
            held = {
                name: copy.deepcopy(optimizer.state.get(p, {}).get("proj.basis"))
                for name, p in model.named_parameters()
            }
            optimizer.step()
            rows = {row["name"]: row for row in watching.rows[-len(MATRICES) :]}
            old = dict(before.named_parameters())
            for name, p in model.named_parameters():
                if name not in MATRICES:
                    continue
                w, basis = old[name].detach().double(), optimizer.state[p]["proj.basis"].double()
                change = (p.detach().double() - w).norm() / w.norm()
                assert rows[name]["update_ratio"] == pytest.approx(float(change), rel=ROUNDING)
                if number == 3:
                    share = (basis.mT @ held[name].double()).square().sum() / basis.shape[1]
                    assert rows[name]["overlap"] == pytest.approx(float(share), rel=ROUNDING)
                if number in (0, 3):
                    grad = p.grad.double().reshape(p.shape[0], -1)
                    low = (
                        basis.mT @ grad
                        if basis.shape[0] == grad.shape[0] and grad.shape[0] < grad.shape[1]
                        else grad @ basis
                    )
                    assert rows[name]["captured"] == pytest.approx(float((low.norm() / grad.norm()) ** 2), rel=ROUNDING)
    assert late.rows == watching.rows  # read at the end alone


def test_overlap_of_bases_that_are_drawn() -> None:
    """Of their spans, as QR has them: the columns themselves are neither orthogonal nor of length one."""
    old, new = (torch.randn(36, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    share = torch.linalg.qr(new.double()).Q.mT @ torch.linalg.qr(old.double()).Q
    found = Dense({"left": new}).turn_from(Dense({"left": old})).overlap()
    assert float(found) == pytest.approx(float(share.square().sum() / 6), rel=ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_overlap_of_apollos_subspaces_is_that_of_chance(dtype: torch.dtype) -> None:
    """A share r / m of a direction lies in a random subspace of r of m dimensions."""
    weight = nn.Parameter(torch.zeros(64, 80, dtype=dtype))
    optimizer = ApolloAdamW([weight], rank=8, update_proj_gap=1)
    with Monitor(optimizer) as watching:
        for _ in range(9):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    shares = [row["overlap"] for row in watching.rows[1:]]
    assert len(shares) == 8 and all(1 / 32 < share < 1 / 4 for share in shares)  # 1 / 8 in the mean


def test_plain_matrices_have_a_row_and_vectors_have_none() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    groups = [
        {"params": [("a", model[0].weight)], "rank": 2},
        {"params": [("b", model[1].weight), ("v", model[1].bias)]},
    ]
    optimizer = GaLoreAdamW(groups)
    with Monitor(optimizer) as watching:
        model(torch.ones(2, 5)).square().sum().backward()
        optimizer.step()
    first, second = watching.rows
    assert (first["name"], first["rank"], second["name"], second["rank"]) == ("a", 2, "b", None)
    assert (second["captured"], second["overlap"], second["refreshes"], second["refresh_seconds"]) == (
        None,
        None,
        0,
        0.0,
    )


def test_every_so_many_steps(tmp_path: Path) -> None:
    model = Zoo()
    optimizer = galore(model)
    with Monitor(optimizer, every=4) as watching:
        train(model, optimizer, range(9))
    rows = watching.rows
    assert [row["step"] for row in rows if row["name"] == "up.weight"] == [4, 8]
    assert all(row["refresh_seconds"] > 0 for row in rows)  # that of the searches since the record before


def test_skipped_steps_and_weights_without_a_gradient_have_no_row() -> None:
    model = Zoo()
    optimizer = galore(model)
    with Monitor(optimizer) as watching:
        train(model, optimizer, [0])
        backward(model, 1)
        model.up.weight.grad[0, 0] = float("nan")
        optimizer.step()
        assert optimizer.skipped_steps == 1 and len(watching.rows) == len(MATRICES)
        backward(model, 1)
        model.up.weight.grad = None
        optimizer.step()
    assert [row["name"] for row in watching.rows[len(MATRICES) :]] == [name for name in MATRICES if name != "up.weight"]


def test_a_weight_of_zeros_has_no_ratio(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(8, 6))
    optimizer = GaLoreAdamW([weight], rank=2)
    with Monitor(optimizer, path=tmp_path / "rows.jsonl") as watching:
        weight.grad = torch.ones(8, 6)
        optimizer.step()
    assert watching.rows[0]["update_ratio"] is None
    assert json.loads((tmp_path / "rows.jsonl").read_text())["update_ratio"] is None


def test_nothing_waits_for_a_device_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Zoo()
    optimizer = galore(model)
    defer(monkeypatch)
    watching = Monitor(optimizer)
    train(model, optimizer, range(4))
    backward(model, 4)
    with no_reading():
        optimizer.step()
    watching.close()
    assert len(watching.rows) == 5 * len(MATRICES)


# ---- where it goes -------------------------------------------------------------------------------------------------


def test_lines_come_at_once_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    path, model = tmp_path / "rows.jsonl", Zoo()
    optimizer = galore(model)
    first = Monitor(optimizer, path=path)
    train(model, optimizer, range(3))
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model)
    train(model, optimizer, range(3, 5))
    assert [json.loads(line) for line in path.read_text().splitlines()] == first.rows
    path.write_text(path.read_text() + '{"step": 6, "na')  # killed while it wrote
    resumed = galore(weights)
    resumed.load_state_dict(saved)
    with Monitor(resumed, path=path):
        train(weights, resumed, range(3, 6))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines if line["name"] == "up.weight"] == [1, 2, 3, 4, 5, 6]
    assert [(row["step"], row["update_ratio"]) for row in lines[: len(first.rows)]] == [
        (row["step"], row["update_ratio"]) for row in first.rows
    ]
    first.close()


class Writer:
    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.seen.append((tag, value, step))


def test_a_writer_gets_every_number() -> None:
    model, writer = Zoo(), Writer()
    optimizer = galore(model)
    with Monitor(optimizer, writer=writer) as watching:
        train(model, optimizer, range(2))
    expected = [
        (f"{row['name']}/{key}", row[key], row["step"])
        for row in watching.rows
        for key in monitor.KEYS[2:]
        if row[key] is not None
    ]
    assert writer.seen == expected and len(expected) > 40


@pytest.mark.parametrize("text", ["hello\n", '{"step": 1}\n', "[1]\n", "3\n", '{"loss": 1.0, "step": 2}\n'])
def test_a_foreign_file_is_refused_and_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    optimizer = galore(Zoo())
    with pytest.raises(ValueError, match="Monitor: `path` must be a new file or one of a Monitor, got"):
        Monitor(optimizer, path=path)
    assert path.read_text() == text and optimizer.watches == ()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_refusals() -> None:
    with pytest.raises(ValueError, match="Monitor: `every` must be an int >= 1, got 0"):
        Monitor(galore(Zoo()), every=0)
    with pytest.raises(ValueError, match="Monitor: `keep` must be an int >= 1, got 0"):
        Monitor(galore(Zoo()), keep=0)
    with pytest.raises(
        TypeError, match="Monitor: `optimizer` must be an optimizer of torch or lowrank_core, got Zoo; "
    ):
        Monitor(Zoo())  # type: ignore[arg-type]


def test_it_detaches_and_others_stay() -> None:
    model = Zoo()
    optimizer = galore(model)
    one, other = Monitor(optimizer), Monitor(optimizer)
    train(model, optimizer, [0])
    one.close()
    one.close()
    train(model, optimizer, [1])
    assert (len(one.rows), len(other.rows)) == (len(MATRICES), 2 * len(MATRICES))
    other.close()
    assert optimizer.watches == () and not optimizer._optimizer_step_post_hooks


def test_a_watched_optimizer_is_copied_and_pickled_without_its_monitor(tmp_path: Path) -> None:
    model = Zoo()
    optimizer = galore(model)
    with Monitor(optimizer, path=tmp_path / "rows.jsonl"):
        train(model, optimizer, range(2))
        assert pickle.loads(pickle.dumps(optimizer)).watches == () == copy.deepcopy(optimizer).watches


def test_its_copy_of_weights_goes_with_the_step() -> None:
    model = Zoo()
    optimizer = galore(model)
    with Monitor(optimizer) as watching:
        train(model, optimizer, range(2))
        assert not watching._before
