"""Splitting a model into what is projected and what is not, and which group a rank is meant for."""

from __future__ import annotations

import logging

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, estimate_state_bytes, param_groups
from optim_cases import plain_on_purpose
from torch import nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(16, 16), nn.Linear(16, 4, bias=False)
        self.norm = nn.LayerNorm(16)


class Model(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(32, 16)
        self.layers = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv2d(8, 12, 3)
        self.lm_head = nn.Linear(16, 32, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight


Q = ["layers.0.q_proj.weight", "layers.1.q_proj.weight"]
K = ["layers.0.k_proj.weight", "layers.1.k_proj.weight"]


def projected(groups: list[dict]) -> list[str]:
    return [row.name for row in GaLoreAdamW(groups).plan() if row.projected]


def test_all_linear_without_embedding_and_head() -> None:
    groups = param_groups(Model(), rank=3, verbose=False, scale=0.5)
    assert projected(groups) == [Q[0], K[0], Q[1], K[1]]
    plain, low = groups
    assert plain["rank"] is None and (low["rank"], low["scale"]) == (3, 0.5)
    everything = [name for group in groups for name, _ in group["params"]]
    assert sorted(everything) == sorted(name for name, _ in Model().named_parameters())


@pytest.mark.parametrize(
    ("targets", "exclude", "names"),
    [
        (["q_proj"], (), Q),
        (["q_proj", "conv"], (), [Q[0], Q[1], "conv.weight"]),
        (r"layers\.1\..*", (), [Q[1], K[1]]),
        ("all-linear", "proj", ["lm_head.weight"]),
        ("all-linear", ("lm_head", "layers.0"), [Q[1], K[1]]),
        (["embed"], (), ["embed_tokens.weight"]),
    ],
)
def test_targets_and_exclusions(targets: str | list[str], exclude: str | tuple[str, ...], names: list[str]) -> None:
    assert projected(param_groups(Model(), targets, exclude, rank=3, verbose=False)) == names


def test_tied_weights_come_once_and_are_excluded_by_either_name() -> None:
    model = Model(tied=True)
    groups = param_groups(model, exclude="embed", rank=3, verbose=False)
    everything = [id(p) for group in groups for _, p in group["params"]]
    assert len(everything) == len(set(everything)) == len(list(model.parameters()))
    assert "embed_tokens.weight" not in projected(groups)
    assert "embed_tokens.weight" in projected(param_groups(model, exclude=(), rank=3, verbose=False))
    assert "embed_tokens.weight" not in projected(param_groups(model, exclude="lm_head", rank=3, verbose=False))


def test_transformers_conv1d_counts_as_linear() -> None:
    class Conv1D(nn.Module):  # keeps its weight as [in, out]
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8, 24))

    assert projected(param_groups(nn.Sequential(Conv1D()), rank=2, verbose=False)) == ["0.weight"]
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(Conv1D()))  # of a class made from Conv1D
    names = projected(param_groups(normed, rank=2, verbose=False))
    assert names == ["0.parametrizations.weight.original1"]


def test_frozen_parameters_are_left_out() -> None:
    model = Model()
    model.layers[0].requires_grad_(False)
    groups = param_groups(model, rank=3, verbose=False)
    assert projected(groups) == [Q[1], K[1]]
    assert not any(name.startswith("layers.0") for group in groups for name, _ in group["params"])


def test_the_plan_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    param_groups(Model(), rank=5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["parameter", "count", "shape", "path", "side", "rank", "reason"]
    table = {(fields := line.split(maxsplit=6))[0]: fields[1:] for line in lines[1:-1]}
    assert table["layers.*.q_proj.weight"] == ["2", "16x16", "projected", "right", "5"]
    too_much = "rank 5 >= min(m, n) = 4: lower `rank`, or force_projection=True"
    assert table["layers.*.k_proj.weight"] == ["2", "4x16", "AdamW", "-", "-", too_much]
    assert table["layers.*.norm.weight"][-1] == table["layers.*.q_proj.bias"][-1] == "1-D"
    assert table["conv.weight"][-1] == "not a target: name it in `target_modules`"
    assert table["embed_tokens.weight"][-1] == "not a target: name it in `target_modules` and pass exclude=()"
    assert table["lm_head.weight"][-1] == 'excluded by "lm_head": pass exclude=()'
    assert lines[-1] == "projected: 2 of 14 tensors, 512 of 2,636 parameters"
    param_groups(Model(), rank=5, verbose=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"target_modules": ["q_proj", "v_proj"]},
            r"`target_modules` must match a matrix by .*layers\.\*\.k_proj\.weight, .*got 'v_proj'",
        ),
        ({"target_modules": ["norm"]}, "must match a matrix by .*got 'norm'"),
        ({"target_modules": []}, "`target_modules` must name something"),
        ({"target_modules": [""]}, "`target_modules` must be a word or several, none of them empty"),
        ({"target_modules": 3}, "`target_modules` must be a word or several, none of them empty, got 3"),
        ({"target_modules": "q_proj"}, "got 'q_proj'; pass a list to look for parts of names"),
        ({"target_modules": "("}, "`target_modules` must be a regular expression"),
        ({"rank": 16}, r"`rank` must be below min\(m, n\) .*, got 16 for 4 targets; .* is 16"),
        ({"rank": 0}, "`rank` must be an int >= 1"),
        ({"exclude": ("",)}, "`exclude` must be a word or several, none of them empty"),
        ({"exclude": None}, "`exclude` must be a word or several, none of them empty, got None"),
        ({"exclude": "l"}, r"`exclude` must leave a target .*got \('l',\) that excludes all 5; pass exclude=\(\)"),
        ({"others": {"rank": 4}}, "`others` must have no `rank`: .*; pass `rank` beside it"),
        ({"others": [("lr", 1.0)]}, "`others` must be a dict"),
        ({"others": {"params": []}}, "`params` must be left to the model"),
        ({"params": []}, "`params` must be left to the model"),
        ({"proj_type": "top"}, "`proj_type` must be one of std, reverse_std, left, right, full"),
    ],
)
def test_refusals(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^param_groups: .*{message.lstrip('^')}"):
        param_groups(Model(), **{"rank": 3, "verbose": False, **keys})


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^param_groups: `model` must be a torch\.nn\.Module, got list"):
        param_groups(list(Model().parameters()))  # type: ignore[arg-type]


def test_a_lazy_model_is_refused_until_it_has_shapes() -> None:
    model = nn.Sequential(nn.LazyLinear(6))
    with pytest.raises(ValueError, match=r"^param_groups: `model` must have no lazy parameter .*`0\.weight`.*; run a"):
        param_groups(model, rank=2, verbose=False)
    model(torch.zeros(1, 8))
    assert projected(param_groups(model, rank=2, verbose=False)) == ["0.weight"]


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^param_groups: `target_modules` must name a matrix that is trained"):
        param_groups(Model().requires_grad_(False), rank=3, verbose=False)


def test_others_are_the_keys_of_what_is_not_projected() -> None:
    model, others = Model(), {"lr": 0.1, "weight_decay": 0.5}
    optimizer = GaLoreAdamW(param_groups(model, rank=5, verbose=False, lr=0.3, others=others), lr=0.2)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert {row.name for row in optimizer.plan() if row.projected} == {n for n, rate in rates.items() if rate == 0.3}
    assert {rates[name] for name in (*K, "embed_tokens.weight", "layers.0.q_proj.bias")} == {0.1}  # K: rank too high
    assert others == {"lr": 0.1, "weight_decay": 0.5}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    with pytest.raises(TypeError, match=r"^GaLoreAdamW: `learning_rate` must be one of its keys"):
        GaLoreAdamW(param_groups(model, rank=3, verbose=False, others={"learning_rate": 0.1}))


@plain_on_purpose
def test_without_a_rank_the_optimizers_own_holds(capsys: pytest.CaptureFixture[str]) -> None:
    groups = param_groups(Model(), rank=None)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("layers.*.k_proj"))
    assert line.split(maxsplit=6)[3:] == ["projected", "left", "default", "where the optimizer's `rank` is below 4"]
    assert "rank" not in groups[-1]
    assert [row.rank for row in GaLoreAdamW(groups, rank=3).plan() if row.projected] == [3, 3, 3, 3]
    assert projected_at_default(groups) == []  # every side is shorter than GaLore's 128
    wide = param_groups(nn.Sequential(nn.Linear(200, 300)), rank=None, verbose=False)
    assert projected_at_default(wide) == [128]


def projected_at_default(groups: list[dict]) -> list[int | None]:
    return [row.rank for row in GaLoreAdamW(groups).plan() if row.projected]


def weights() -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.zeros(8, 9)), nn.Parameter(torch.zeros(8, 9))


def test_a_rank_in_any_group_leaves_the_others_plain() -> None:  # as a GaLore user expects
    one, other = weights()
    optimizer = GaLoreAdamW([{"params": [one]}, {"params": [other], "rank": 3}], rank=4)
    assert [row.rank for row in optimizer.plan()] == [None, 3]
    assert optimizer.plan()[0].reason == "its group has no rank: give it one"
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(8, 9))]})
    assert optimizer.plan()[2].rank is None


@plain_on_purpose
def test_the_constructors_rank_holds_where_no_group_names_one() -> None:
    one, other = weights()
    groups = [{"params": [one]}, {"params": [other], "lr": 0.1}]
    assert [row.rank for row in GaLoreAdamW(groups, rank=4).plan()] == [4, 4]
    assert "rank" not in groups[0]  # the caller's dicts are not written to
    assert [row.rank for row in GaLoreAdamW(weights(), rank=None).plan()] == [None, None]
    assert [row.reason for row in GaLoreAdamW(weights()).plan()] == [
        "rank 128 >= min(m, n) = 8: lower `rank`, or force_projection=True"
    ] * 2


def test_an_explicit_none_is_plain() -> None:
    one, other = weights()
    optimizer = GaLoreAdamW([{"params": [one], "rank": None}, {"params": [other], "rank": 2}])
    assert [row.rank for row in optimizer.plan()] == [None, 2]


def test_the_plan_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lowrank_core.optim"):
        optimizer = GaLoreAdamW([("a.weight", weights()[0])], rank=2)
        optimizer.param_groups[0]["params"][0].grad = torch.ones(8, 9)
        optimizer.step()
    assert len(caplog.records) == 1
    assert "a.weight" in caplog.text and "projected" in caplog.text


def test_groups_match_the_estimate() -> None:
    model = Model()
    optimizer = GaLoreAdamW(param_groups(model, rank=3, verbose=False))
    assert optimizer.planned_state_bytes() == estimate_state_bytes(model, rank=3)
