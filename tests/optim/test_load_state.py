"""What loading a state refuses, what it takes over, and that a refusal changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW
from optim_cases import CASES, Zoo, plain_on_purpose, same, snapshot, train
from torch import Tensor, nn

State = dict[str, Any]


def trained(dtype: torch.dtype = torch.float32, **keys: Any) -> tuple[Zoo, GaLoreAdamW]:
    model = Zoo(dtype)
    optimizer = CASES[0].make(model.named_parameters(), **keys)
    train(model, optimizer, range(4))
    return model, optimizer


def index_of(model: nn.Module, name: str) -> int:
    return [known for known, _ in model.named_parameters()].index(name)


def edit(key: str, change: Callable[[Any], Any], name: str = "up.weight") -> Callable[[State, Zoo], None]:
    def apply(saved: State, model: Zoo) -> None:
        state = saved["state"][index_of(model, name)]
        state[key] = change(state.get(key))

    return apply


def drop(key: str) -> Callable[[State, Zoo], None]:
    return lambda saved, model: saved["state"][index_of(model, "up.weight")].pop(key)


def first_group(key: str, value: Any) -> Callable[[State, Zoo], None]:
    return lambda saved, model: saved["param_groups"][0].__setitem__(key, value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            edit("format", lambda _: 3),
            "`format` of the state of `up.weight` must be 1 to 2, got 3; load it with the version",
        ),
        (edit("format", lambda _: 0), "`format` of the state of `up.weight` must be 1 to 2, got 0"),
        (drop("format"), "`format` of the state of `up.weight` must be 1 to 2, got None"),
        (edit("proj.refreshes", float), "`proj.refreshes` of `up.weight` must be int, got float; it is damaged"),
        (
            drop("exp_avg"),
            "the state of `up.weight` must hold exp_avg, exp_avg_sq, .*; it is of another optimizer",
        ),
        (edit("surprise", lambda _: 1), "the state of `up.weight` must hold .* got .*surprise"),
        (
            edit("exp_avg", Tensor.bfloat16),
            r"`exp_avg` of `up.weight` must be \(20, 4\) float32, got \(20, 4\) bfloat16",
        ),
        (
            edit("proj.basis", lambda b: b[:, :3]),
            r"`proj.basis` of `up.weight` must be \(12, 4\) float32, got",
        ),
        (edit("step", lambda _: 4), "`step` of `up.weight` must be .*, got int"),
        (
            edit("proj.side", lambda _: 0),
            "must stay what its state was made with, got side right, .* of side left",
        ),
        (edit("proj.rank", lambda _: 3), "got side right, rank 4 for a state of side right, rank 3"),
        (
            first_group("rank", 5),
            "`rank` of group 0 must be 5 as saved, got 4; build the optimizer with rank=5, or start",
        ),
        (first_group("proj_type", "left"), "`proj_type` of group 0 must be 'left' as saved, got 'std'"),
        (first_group("lr", -1.0), "`lr` must be a number >= 0"),
        (
            lambda saved, _: saved["param_groups"][0].pop("scale"),
            "must come from GaLoreAdamW, got groups without scale",
        ),
        (
            lambda saved, _: saved["param_groups"][0]["params"].pop(),
            r"must hold groups of \[\d+\] parameters, got",
        ),
        (
            lambda saved, _: saved["state"].update({77: {}}),
            "`state` must belong to the groups' parameters, got also 77",
        ),
        (lambda saved, _: saved.pop("state"), "`state_dict` must be what GaLoreAdamW.state_dict"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(damage: Callable[[State, Zoo], None], message: str) -> None:
    model, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    damage(saved, model)
    twin, other = trained()
    train(twin, other, range(4, 6))
    before = snapshot(twin, other)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved)
    assert same(before, snapshot(twin, other))
    train(twin, other, range(6, 8))


def test_a_state_of_torch_adamw_is_refused() -> None:
    model, optimizer = trained()
    reference = torch.optim.AdamW(model.parameters())
    train(model, reference, [0])
    with pytest.raises(ValueError, match="must come from GaLoreAdamW, got groups without force_projection"):
        optimizer.load_state_dict(reference.state_dict())


@plain_on_purpose
@pytest.mark.parametrize("keys", [{"rank": 5}, {"rank": None}, {"rank": 50}, {"proj_type": "left"}])
def test_another_rank_or_side_is_refused(keys: dict[str, Any]) -> None:
    _, optimizer = trained()
    other = CASES[0].make(Zoo().named_parameters(), **keys)
    key = next(iter(keys))
    with pytest.raises(ValueError, match=f"load_state_dict: `{key}` of group 0 must be .* as saved, got"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state


def test_other_hyperparameters_are_taken_over() -> None:  # as every torch optimizer does
    model, optimizer = trained()
    optimizer.param_groups[0]["lr"] = 0.125
    other = CASES[0].make(copy.deepcopy(model).parameters(), lr=3.0, update_proj_gap=77, scale=9.0, seed=5)
    other.load_state_dict(optimizer.state_dict())
    assert same(other.state_dict(), optimizer.state_dict())


def test_a_rank_edited_on_the_way_is_refused() -> None:
    model, optimizer = trained()
    optimizer.param_groups[0]["rank"] = 3
    before = snapshot(model, optimizer)
    with pytest.raises(
        ValueError, match=r"step: `rank` and `proj_type` of `embed.weight` must stay .*rank 3 .* rank 4"
    ):
        train(model, optimizer, [4])
    assert same(before, snapshot(model, optimizer))
    optimizer.param_groups[0]["rank"] = None
    with pytest.raises(ValueError, match="got no projection for a state of side"):
        train(model, optimizer, [4])
    optimizer.param_groups[0]["rank"] = 4
    train(model, optimizer, [4])


def test_a_weight_that_waits_for_its_first_basis_cannot_become_plain() -> None:
    w = nn.Parameter(torch.ones(6, 8))
    optimizer = GaLoreAdamW([w], rank=2)
    w.grad = torch.zeros(6, 8)
    optimizer.step()
    optimizer.param_groups[0]["rank"] = None
    with pytest.raises(ValueError, match="step: `rank` and `proj_type` of `parameter 0` must stay"):
        optimizer.step()
    optimizer.param_groups[0]["rank"] = 3  # no basis yet: still free to choose
    w.grad = torch.ones(6, 8)
    optimizer.step()
    assert optimizer.projections()[0].rank == 3


def test_other_edits_act_at_once() -> None:
    model, optimizer = trained()
    optimizer.param_groups[0]["update_proj_gap"] = 2
    train(model, optimizer, [4])
    assert optimizer.projections()[-1].last_refresh_step == 4


def test_the_users_hooks_see_the_state_and_run_last() -> None:
    _, optimizer = trained()
    saved = optimizer.state_dict()
    renamed = {**saved, "state": {f"p{i}": state for i, state in saved["state"].items()}}
    other = CASES[0].make(Zoo().parameters())
    seen: list[int] = []

    def rename(_: torch.optim.Optimizer, state_dict: State) -> State:
        return {**state_dict, "state": {int(key[1:]): state for key, state in state_dict["state"].items()}}

    other.register_load_state_dict_pre_hook(rename)
    other.register_load_state_dict_post_hook(lambda loaded: seen.append(len(loaded.state)))
    other.load_state_dict(renamed)
    assert seen == [len(saved["state"])] == [len(other.state)]
    assert same(saved["state"], other.state_dict()["state"])


def test_a_key_that_came_later_is_what_older_code_did() -> None:
    model, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    assert GaLoreAdamW.ADDED == {"stagger": False, "stacked": False, "rule": "adam"}
    for group in saved["param_groups"]:
        assert (group.pop("stagger"), group.pop("stacked"), group.pop("rule")) == ("auto", False, "adam")
    twin = copy.deepcopy(model)
    other = CASES[0].make(twin.named_parameters(), stagger=True)
    other.load_state_dict(saved)
    assert [group["stagger"] for group in other.param_groups] == [False]
    optimizer.param_groups[0]["stagger"] = False  # which is what "auto" means for so few
    train(model, optimizer, range(4, 8))
    train(twin, other, range(4, 8))
    assert same(snapshot(model, optimizer), snapshot(twin, other))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("moment_dtype", "int8", "step: the state of `gain` must hold exp_avg.codes, .* of other keys"),
        ("moment_dtype", "bfloat16", r"step: `exp_avg` of `gain` must be \(\) bfloat16, got"),
        ("proj_type", "left", "got side left, rank 4 for a state of side right, rank 4"),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_an_edit_that_its_states_do_not_fit_is_refused(key: str, value: str, message: str, resumed: bool) -> None:
    model, optimizer = trained()
    if resumed:
        model, optimizer = copy.deepcopy((model, optimizer))
    optimizer.param_groups[0][key], kept = value, optimizer.param_groups[0][key]
    before = snapshot(model, optimizer)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            train(model, optimizer, [4])
    assert same(before, snapshot(model, optimizer))
    optimizer.param_groups[0][key] = kept
    train(model, optimizer, [4])


def test_an_untouched_optimizer_saves_and_loads() -> None:
    optimizer, other = CASES[0].make(Zoo().parameters()), CASES[0].make(Zoo().parameters())
    other.load_state_dict(optimizer.state_dict())
    assert not other.state


def test_loading_moves_to_the_parameters_device() -> None:
    model, optimizer = trained(torch.bfloat16)
    elsewhere = [nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()]
    other = CASES[0].make(elsewhere)
    other.load_state_dict(optimizer.state_dict())
    for there, here in zip(elsewhere, model.parameters(), strict=True):
        for key, value in optimizer.state.get(here, {}).items():
            if isinstance(value, Tensor):
                state = other.state[there]
                assert state[key].device.type == "meta" and state[key].dtype == value.dtype
