"""Whatever torch.optim.AdamW takes when one line of a training script is changed."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.optim import GaLoreAdamW
from optim_cases import CASES, Case, Zoo, draw, same, snapshot, train
from torch import nn


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(draw(*(shape or (16, 24))).to(dtype))


FROZEN = [torch.uint8, torch.int8, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float32]


@pytest.mark.parametrize("dtype", FROZEN, ids=str)
def test_frozen_parameters_of_any_dtype_are_taken_and_left_alone(dtype: torch.dtype) -> None:
    frozen = nn.Parameter(torch.zeros(64, 32).to(dtype), requires_grad=False)
    trained = weight()
    optimizer = GaLoreAdamW([frozen, trained], lr=0.1, rank=4, weight_decay=0.5)
    assert [row.projected for row in optimizer.plan()] == [dtype == torch.float32, True]
    trained.grad = torch.ones_like(trained)
    optimizer.step()
    assert frozen not in optimizer.state
    assert same(frozen.detach(), torch.zeros(64, 32).to(dtype))


def test_a_parameter_that_trains_in_no_dtype_of_ours_is_refused_by_name() -> None:
    small = nn.Parameter(torch.zeros(64, 32).to(torch.float8_e4m3fn))
    with pytest.raises(
        TypeError, match=r"^GaLoreAdamW: `head` must be float32, .* to be trained, got torch.float8_e4m3fn"
    ):
        GaLoreAdamW([("head", small)], rank=4)
    small.requires_grad_(False)
    optimizer = GaLoreAdamW([("head", small), ("body", weight())], rank=4)
    small.requires_grad_(True)
    small.grad = torch.zeros_like(small)
    with pytest.raises(TypeError, match=r"^step: `head` must be float32, .*, got torch.float8_e4m3fn"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("keys", [{}, {"weight_decay": 0.1, "maximize": True}])
def test_complex_parameters_train_as_torchs_do_to_the_bit(dtype: torch.dtype, keys: dict[str, Any]) -> None:
    real = torch.float32 if dtype == torch.complex64 else torch.float64
    start = torch.complex(draw(5, 7).to(real), draw(5, 7, seed=1).to(real))
    ours, theirs, matrix = nn.Parameter(start.clone()), nn.Parameter(start.clone()), weight()
    optimizer = GaLoreAdamW([ours, matrix], lr=0.1, rank=3, **keys)
    reference = torch.optim.AdamW([theirs], lr=0.1, foreach=False, **{"weight_decay": 0.0, **keys})
    assert optimizer.plan()[0].reason == "complex"
    for seed in range(1, 6):
        grad = torch.complex(draw(5, 7, seed=seed).to(real), draw(5, 7, seed=-seed).to(real))
        ours.grad, theirs.grad = grad.conj(), grad.conj().resolve_conj()  # lazily conjugated, as autograd leaves them
        optimizer.step()
        reference.step()
    assert torch.equal(ours, theirs)
    assert optimizer.state_bytes() == optimizer.planned_state_bytes() - _planned(matrix)


def _planned(matrix: nn.Parameter) -> int:
    return GaLoreAdamW([matrix], rank=3).planned_state_bytes()


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_numpys_numbers_are_numbers_and_are_saved_as_pythons(kind: type) -> None:
    keys = {"lr": kind(0.125), "weight_decay": kind(0.5), "eps": kind(2**-20), "scale": kind(0.25)}
    keys |= {"betas": (kind(0.5), kind(0.75))}
    ours, plain = weight(), weight()
    optimizer = GaLoreAdamW([ours], rank=np.int64(4), update_proj_gap=np.int32(2), seed=np.uint8(3), **keys)
    twin = GaLoreAdamW([plain], rank=4, update_proj_gap=2, seed=3, lr=0.125, weight_decay=0.5, eps=2**-20, scale=0.25,
                       betas=(0.5, 0.75))  # fmt: skip
    for seed in range(1, 5):
        for group in optimizer.param_groups:
            group["lr"] = kind(0.125)  # as a schedule written with NumPy leaves it
        ours.grad, plain.grad = draw(16, 24, seed=seed), draw(16, 24, seed=seed)
        optimizer.step()
        twin.step()
    assert torch.equal(ours, plain)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert same(torch.load(file, weights_only=True), twin.state_dict())


def test_groups_of_another_optimizer_after_a_schedule() -> None:
    model = Zoo()
    old = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(old, max_lr=0.1, total_steps=10)
    train(model, old, [0])
    schedule.step()
    optimizer = GaLoreAdamW(old.param_groups, rank=4)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (
        old.param_groups[0]["lr"], 0.1, old.param_groups[0]["betas"],
    )  # fmt: skip
    assert group["max_lr"] == 0.1
    assert not {"amsgrad", "foreach", "fused", "capturable", "differentiable"} & group.keys()
    train(model, optimizer, range(2))
    again = GaLoreAdamW(optimizer.param_groups)  # and its own, copied
    assert again.param_groups[0]["rank"] == 4


@pytest.mark.parametrize(
    "name", ["OneCycleLR", "CyclicLR", "CosineAnnealingWarmRestarts", "ReduceLROnPlateau", "SWALR"]
)
def test_schedulers_and_what_they_leave_in_the_groups(name: str) -> None:
    model, twin = Zoo(), Zoo()
    made = [GaLoreAdamW(m.parameters(), lr=0.01, rank=4) for m in (model, twin)]

    def scheduler(optimizer: GaLoreAdamW) -> Any:
        schedulers = torch.optim.lr_scheduler
        return {
            "OneCycleLR": lambda: schedulers.OneCycleLR(optimizer, max_lr=0.05, total_steps=8),
            "CyclicLR": lambda: schedulers.CyclicLR(optimizer, 0.01, 0.05, step_size_up=2, cycle_momentum=True),
            "CosineAnnealingWarmRestarts": lambda: schedulers.CosineAnnealingWarmRestarts(optimizer, 3),
            "ReduceLROnPlateau": lambda: schedulers.ReduceLROnPlateau(optimizer, patience=0),
            "SWALR": lambda: torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05),
        }[name]()

    schedules = [scheduler(optimizer) for optimizer in made]
    for number in range(6):
        for m, optimizer, schedule in zip((model, twin), made, schedules, strict=True):
            train(m, optimizer, [number])
            schedule.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        if number == 2:  # the second one goes on from a checkpoint
            saved, kept = copy.deepcopy(made[1].state_dict()), copy.deepcopy(schedules[1].state_dict())
            made[1] = GaLoreAdamW(twin.parameters(), lr=0.5, rank=4)
            schedules[1] = scheduler(made[1])
            made[1].load_state_dict(saved)
            schedules[1].load_state_dict(kept)
    assert same(snapshot(model, made[0]), snapshot(twin, made[1]))


@pytest.mark.parametrize(
    "keys",
    [
        {"foreach": True}, {"foreach": None}, {"fused": True}, {"fused": False}, {"capturable": False},
        {"amsgrad": False}, {"differentiable": False}, {"no_deprecation_warning": True}, {"correct_bias": True},
        {"decoupled_weight_decay": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("where", ["constructor", "group"])
def test_torchs_keywords_that_change_nothing_are_taken(keys: dict[str, Any], where: str) -> None:
    w, plain = weight(), weight()
    group = {"params": [w], "rank": 4}
    optimizer = GaLoreAdamW([w], rank=4, **keys) if where == "constructor" else GaLoreAdamW([{**group, **keys}])
    reference = GaLoreAdamW([{**group, "params": [plain]}] if where == "group" else [plain], rank=4)
    w.grad = plain.grad = draw(16, 24, seed=1)
    optimizer.step()
    reference.step()
    assert torch.equal(w, plain)
    assert same(optimizer.state_dict(), reference.state_dict())


@pytest.mark.parametrize(
    "keys",
    [
        {"capturable": True}, {"amsgrad": True}, {"differentiable": True}, {"correct_bias": False},
        {"decoupled_weight_decay": False, "weight_decay": 0.1}, {"foreach": "yes"}, {"fused": 2},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("where", ["constructor", "group"])
def test_torchs_keywords_that_ask_for_something_else_say_leave_it_out(keys: dict[str, Any], where: str) -> None:
    name = next(iter(keys))
    with pytest.raises(ValueError, match=f"^GaLoreAdamW: `{name}` must not be .*; leave it out$"):
        if where == "constructor":
            GaLoreAdamW([weight()], rank=4, **keys)
        else:
            GaLoreAdamW([{"params": [weight()], "rank": 4, **keys}])


def test_a_warning_once_where_nothing_is_projected() -> None:
    with pytest.warns(UserWarning, match=r"^GaLoreAdamW: nothing is projected at rank 128 \(rank 128 >= ") as seen:
        optimizer = GaLoreAdamW([weight(), weight()])
        optimizer.plan()
    assert len(seen) == 1 and seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GaLoreAdamW([weight()], rank=None)
        GaLoreAdamW([weight(), weight(4)], rank=4)


def test_a_late_group_may_have_names_or_none() -> None:
    named = GaLoreAdamW([("a", weight())], rank=4)
    named.add_param_group({"params": [weight()]})
    named.add_param_group({"params": weight()})
    assert [row.name for row in named.plan()] == ["a", "parameter 1", "parameter 2"]
    unnamed = GaLoreAdamW([weight(), weight()], rank=4)
    unnamed.add_param_group({"params": [("b", weight())]})
    assert [row.name for row in unnamed.plan()] == ["parameter 0", "parameter 1", "b"]
    mixed = GaLoreAdamW([weight(), ("c", weight())], rank=4)
    assert [row.name for row in mixed.plan()] == ["parameter 0", "c"]
    copied = GaLoreAdamW(named.param_groups)
    assert [row.name for row in copied.plan()] == ["a", "parameter 1", "parameter 2"]
    train_state = named.state_dict()
    named.load_state_dict(train_state)


def test_a_refused_step_has_counted_nothing() -> None:
    good, bad = weight(), nn.Parameter(draw(1, 24).expand(16, 24))
    optimizer = GaLoreAdamW([("good", good), ("bad", bad)], lr=0.1, rank=4)
    good.grad = draw(16, 24, seed=1)
    optimizer.step()
    before, weights = copy.deepcopy(optimizer.state_dict()), good.detach().clone()
    bad.grad = draw(16, 24, seed=2)
    with pytest.raises(RuntimeError, match=r"^step: `bad` \(16, 24\) must not overlap itself in memory"):
        optimizer.step()
    assert same(before, optimizer.state_dict()) and torch.equal(weights, good)
    bad.grad = None
    optimizer.step()
    assert int(optimizer.state[good]["step"]) == 2


@pytest.mark.parametrize("case", [case for case in CASES if case.name == case.method], ids=lambda case: case.name)
def test_a_rate_as_a_tensor(case: Case) -> None:
    """One that is written in place acts as a number that is set."""
    model, plain, rate = Zoo(), Zoo(), torch.tensor(0.125)
    optimizer, reference = case.make(model.parameters(), lr=rate), case.make(plain.parameters(), lr=0.125)
    for number, value in ((0, 0.125), (1, 0.25), (2, 0.0625)):
        rate.fill_(value)
        reference.param_groups[0]["lr"] = value
        assert train(model, optimizer, [number]) == train(plain, reference, [number])
    assert optimizer.param_groups[0]["lr"] is rate
    assert same(dict(model.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), torch.tensor(float("nan"))])
@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_what_a_schedule_leaves_is_checked_before_anything_changes(key: str, value: object) -> None:
    w = weight()
    optimizer = GaLoreAdamW([w], lr=0.1, rank=4)
    w.grad = draw(16, 24, seed=1)
    optimizer.step()
    before, kept = copy.deepcopy(optimizer.state_dict()["state"]), w.detach().clone()
    optimizer.param_groups[0][key] = value
    with pytest.raises(ValueError, match=f"^GaLoreAdamW: `{key}` must be a number >= 0"):
        optimizer.step()
    assert torch.equal(w, kept) and same(before, optimizer.state_dict()["state"])
