"""The state of a stack: flat, exact to the byte, saved and loaded in every way, refused where it does not fit."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from lowrank_core.memory import estimate_state_bytes as estimate_shapes
from lowrank_core.optim import (
    LISA,
    METHODS,
    AdaRankGradAdamW,
    GaLoreAdamW,
    Monitor,
    estimate_state_bytes,
    load_state,
    param_groups,
    save_state,
)
from lowrank_core.optim.states import StackedState
from optim_cases import Case, draw, every_optimizer, same
from stacks import STACKS, apart, gradients, made, stacked, train, weights_of
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

GALORE = Case("galore", GaLoreAdamW)


class Experts(nn.Module):
    """Stacks and others, by the names of `stacks.SHAPES`."""

    def __init__(self) -> None:
        super().__init__()
        for name, param in stacked().items():
            self.register_parameter(name, param)


@every_optimizer
def test_it_is_flat_tensors_and_plain_numbers(case: Case) -> None:
    named = stacked()
    optimizer = made(case, named)
    train(named, optimizer, range(2), gradients)
    for param in named.values():
        state = optimizer.state[param]
        assert all(isinstance(value, (Tensor, int, float)) for value in state.values())
        assert len(state) == len(list(state)) == len(dict(state))
    up = optimizer.state[named["up"]]
    assert {key.partition(".")[0] for key in up} == {"0", "1", "2", "3"} and up["3.step"].item() == 2
    saved = optimizer.state_dict()["state"]
    assert all(type(state) is dict for state in saved.values())
    assert saved[1]["3.step"] is up["3.step"]  # as torch's optimizers: no copy


@every_optimizer
def test_in_a_file(case: Case, tmp_path: Path) -> None:
    named = stacked()
    optimizer = made(case, named)
    train(named, optimizer, range(5), gradients)
    save_state(optimizer, tmp_path / "state")
    twin = {name: nn.Parameter(param.detach().clone()) for name, param in named.items()}
    other = made(case, twin)
    load_state(other, tmp_path / "state")
    assert same(other.state_dict(), optimizer.state_dict())
    for one, at in ((named, optimizer), (twin, other)):
        train(one, at, range(5, 9), gradients)
    assert same(weights_of(named), weights_of(twin))


@every_optimizer
@pytest.mark.filterwarnings("ignore:torch.distributed is .*in a single process:UserWarning")  # one process is meant
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # old torches speak to themselves
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])
def test_in_a_distributed_checkpoint(case: Case, flat: bool, tmp_path: Path) -> None:
    """Into a fresh optimizer, whose template comes from a step with gradients of zeros."""
    options, models = StateDictOptions(flatten_optimizer_state_dict=flat), [Experts(), Experts()]
    optimizers = [made(case, dict(model.named_parameters())) for model in models]
    train(dict(models[0].named_parameters()), optimizers[0], range(5), gradients)
    optimizers[0].zero_grad()
    dcp.save({"o": get_optimizer_state_dict(models[0], optimizers[0], options=options)}, checkpoint_id=tmp_path)
    template = {"o": get_optimizer_state_dict(models[1], optimizers[1], options=options)}
    dcp.load(template, checkpoint_id=tmp_path)
    set_optimizer_state_dict(models[1], optimizers[1], template["o"], options=options)
    assert same(optimizers[0].state_dict()["state"], optimizers[1].state_dict()["state"])


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_a_copy_trains_on(copied: Any) -> None:
    named = stacked()
    optimizer = made(GALORE, named)
    train(named, optimizer, range(4), gradients)
    twin, other = copied((named, optimizer))
    train(named, optimizer, range(4, 8), gradients)
    train(twin, other, range(4, 8), gradients)
    assert same(weights_of(named), weights_of(twin))
    assert same(optimizer.state_dict(), other.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_bytes_are_known_before(name: str) -> None:
    kind: Any = METHODS[name]
    groups = param_groups(Experts(), ["first", "up", "down", "last"], rank=4, verbose=False)
    keys = {"moment_dtype": "int8"}
    for given in ({}, keys):
        optimizer = kind([{**group, "params": list(group["params"])} for group in groups], **given)
        planned = optimizer.planned_state_bytes()
        model = Experts()
        assert (
            estimate_state_bytes(model, name, rank=4, target_modules=["first", "up", "down", "last"], **given)
            == planned
        )
        shapes = {key: tuple(param.shape) for key, param in model.named_parameters()}
        for words in (True, STACKS):
            assert estimate_shapes(shapes, name, rank=4, exclude="gain", stacked=words, **given) == planned
        named = dict(pair for group in groups for pair in group["params"])
        for step in range(2):
            grads = gradients(step + 4)
            for key, param in named.items():
                param.grad = grads[key]
            optimizer.step()
        assert optimizer.state_bytes() == planned or name in ("adarankgrad", "frugal")
        assert optimizer.state_bytes() <= planned


def test_each_matrix_has_a_rank_of_its_own() -> None:
    weight = nn.Parameter(draw(3, 40, 32))
    optimizer = AdaRankGradAdamW([weight], rank=24, stacked=True, energy=0.9)
    thin = draw(40, 2, seed=1) @ draw(2, 32, seed=2)
    weight.grad = torch.stack([thin, draw(40, 32, seed=3), torch.zeros(40, 32)])
    optimizer.step()
    ranks = [row.rank for row in optimizer.projections()]
    assert ranks[0] < ranks[1] == ranks[2] == 24
    state = optimizer.state[weight]
    assert [state[f"{i}.exp_avg"].shape[1] for i in range(3)] == ranks
    saved = optimizer.state_dict()["state"][0]
    assert {saved[f"{i}.exp_avg"].shape for i in range(3)} == {(40, 24)}
    twin = nn.Parameter(weight.detach().clone())
    other = AdaRankGradAdamW([twin], rank=24, stacked=True, energy=0.9)
    other.load_state_dict(optimizer.state_dict())
    assert same(dict(other.state[twin]), dict(state)) and other.state_bytes() == optimizer.state_bytes()


def test_rows_of_each_matrix() -> None:
    named = stacked()
    optimizer = made(GALORE, named)
    with Monitor(optimizer) as monitor:
        train(named, optimizer, range(4), gradients)
    names = list(apart({key: param for key, param in named.items() if key != "gain"}))
    assert [row["name"] for row in monitor.rows[: len(names)]] == names
    idle = [row for row in monitor.rows if row["name"] == "up[2]"]
    busy = [row for row in monitor.rows if row["name"] == "up[3]"]
    assert [row["refreshes"] for row in idle] == [0] * 4 and [row["refreshes"] for row in busy] == [1, 1, 1, 2]
    assert [row["update_ratio"] for row in idle] == [0.0] * 4 and all(row["update_ratio"] > 0 for row in busy)
    assert busy[3]["overlap"] is not None and busy[0]["overlap"] is None
    rows = optimizer.projections()
    assert [(row.name, row.shape) for row in rows] == [(name, tuple(weights_of(named)[name].shape)) for name in names]


def test_lisa_drops_the_state_of_a_stack() -> None:
    model = nn.Sequential(*(Experts() for _ in range(4)))
    optimizer = GaLoreAdamW([{"params": [p for p in model.parameters() if p.ndim == 3], "stacked": True}], rank=4)
    lisa = LISA(
        optimizer, nn.Sequential(*(nn.ParameterList([layer.up, layer.down]) for layer in model)), active=1, period=1
    )
    for step in range(4):
        (number,) = lisa.trained
        grads = gradients(step)
        model[number].up.grad, model[number].down.grad = grads["up"], grads["down"]
        before = model[number].up.detach().clone()
        lisa.step()
        assert not torch.equal(model[number].up.detach(), before)
        assert set(optimizer.state) <= {model[number].up, model[number].down}


@pytest.mark.parametrize("way", ["itself", "by names", "by position"])
def test_from_torchs_adamw(way: str) -> None:
    """Moments and steps of plain matrices are carried, each with its own part."""
    named = {name: param for name, param in stacked().items() if name in STACKS}
    adamw = torch.optim.AdamW(named.items() if way == "by names" else named.values())
    for name, param in named.items():
        param.grad = gradients(5)[name]
    adamw.step()
    params = named.items() if way == "by names" else named.values()
    optimizer = GaLoreAdamW([{"params": list(params), "stacked": True}], rank=None)
    rows = optimizer.from_state(adamw if way == "itself" else adamw.state_dict())
    assert [row.carried for row in rows] == [True] * 8
    for param in named.values():
        state = optimizer.state[param]
        for i, part in enumerate(adamw.state[param]["exp_avg"]):
            assert torch.equal(state[f"{i}.exp_avg"], part) and state[f"{i}.step"].item() == 1


def test_projected_matrices_start_anew_after_adamw() -> None:
    weight = nn.Parameter(draw(3, 8, 6))
    adamw = torch.optim.AdamW([weight])
    weight.grad = draw(3, 8, 6, seed=1)
    adamw.step()
    rows = GaLoreAdamW([weight], rank=2, stacked=True).from_state(adamw)
    assert [(row.name, row.carried) for row in rows] == [(f"parameter 0[{i}]", False) for i in range(3)]


def changed(edit: Any) -> dict[str, Any]:
    named = stacked()
    optimizer = made(GALORE, named)
    train(named, optimizer, range(2), gradients)
    saved = optimizer.state_dict()
    state = dict(saved["state"][1])
    edit(state)
    return {**saved, "state": {**saved["state"], 1: state}}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda state: state.update({"4.step": torch.ones(())}),
            "the state of `up` must be of 4 matrices, got the key '4.step'",
        ),
        (lambda state: state.update({"step": torch.ones(())}), "must be of 4 matrices, got the key 'step'"),
        (lambda state: state.update({"03.step": torch.ones(())}), "must be of 4 matrices, got the key '03.step'"),
        (lambda state: state.pop("3.step"), r"the state of `up\[3\]` must hold exp_avg, .*step, got"),
        (lambda state: state.update({"3.x": 1}), r"the state of `up\[3\]` must hold"),
        (lambda state: state.update({"1.exp_avg": torch.ones(2)}), r"`exp_avg` of `up\[1\]` must be .*, got \(2,\)"),
        (
            lambda state: [state.pop(key) for key in list(state) if key[0] == "0"],
            r"`format` of the state of `up\[0\]` must",
        ),
    ],
)
def test_a_damaged_state_changes_nothing(edit: Any, message: str) -> None:
    named = stacked()
    optimizer = made(GALORE, named)
    train(named, optimizer, range(1), gradients)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(changed(edit))
    assert same(optimizer.state_dict(), before)


def test_a_stack_and_one_matrix_are_not_taken_for_each_other() -> None:
    weight = nn.Parameter(draw(3, 8, 6))
    optimizers = [GaLoreAdamW([weight], rank=2, stacked=value) for value in (True, False)]
    for one, other in (optimizers, optimizers[::-1]):
        weight.grad = draw(3, 8, 6, seed=1)
        one.step()
        asked = other.param_groups[0]["stacked"]
        with pytest.raises(ValueError, match=f"`stacked` of group 0 must be {not asked} as saved, got {asked}"):
            other.load_state_dict(one.state_dict())


@pytest.mark.parametrize("value", [True, False])
def test_an_edit_after_the_first_step_is_refused(value: bool) -> None:
    weight = nn.Parameter(draw(3, 8, 6))
    optimizer = GaLoreAdamW([weight], rank=2, stacked=not value)
    weight.grad = draw(3, 8, 6, seed=1)
    optimizer.step()
    before = weight.detach().clone()
    optimizer.param_groups[0]["stacked"] = value
    with pytest.raises(ValueError, match=r"`parameter 0(\[0\])?`"):
        optimizer.step()
    assert torch.equal(weight.detach(), before)


def test_an_older_state_was_of_no_stack() -> None:
    weight = nn.Parameter(draw(8, 6))
    optimizer = GaLoreAdamW([weight], rank=2)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["stacked"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["stacked"] is False


def test_the_mapping() -> None:
    state = StackedState([{"a": 1}, {"a": 2, "b.c": 3}])
    assert dict(state) == {"0.a": 1, "1.a": 2, "1.b.c": 3} and len(state) == 3
    assert repr(state) == repr(dict(state)) and "1.b.c" in state and "0.b.c" not in state
    state["0.d"] = 4
    del state["1.a"]
    assert state.parts == [{"a": 1, "d": 4}, {"b.c": 3}]
    for key in ("a", "2.a", "-1.a", "01.a", "x.a", "²."):
        assert key not in state
        with pytest.raises(KeyError, match=re.escape(repr(key))):
            state[key] = 1
    assert 0 not in state
