"""Several optimizers in one run: what `--set` says of each, what is filled in, what is refused, what a resume keeps."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace

import pytest
import torch
from cli_cases import TINY, at_step, flags
from lowrank_core.cli import checkpoint
from lowrank_core.cli.config import TrainConfig, read_settings
from lowrank_core.cli.defaults import OPTIMIZERS, OWN, TUNED
from lowrank_core.cli.memory import held_bytes
from lowrank_core.cli.model import Decoder, ModelShape
from lowrank_core.cli.optimizers import build_optimizer, state_bytes
from lowrank_core.cli.options import check_values
from lowrank_core.cli.resolve import resolve
from lowrank_core.cli.settings import write
from test_resume import assert_same, final_state

SMALL = TrainConfig(dim=16, layers=1, heads=2, ffn=24, seq_len=16)
RANKED = [*TINY, *flags(rank=4, update_proj_gap=5)]


def test_each_has_its_own_defaults():
    """Of every optimizer there is, compared in one run, before and after what is not given is filled in."""
    config = replace(SMALL, compare=tuple(name for name in OPTIMIZERS if name != "galore"))
    filled = resolve(config)
    for found in (config, filled, TrainConfig.from_json(json.loads(json.dumps(filled.to_json())))):
        for name in OPTIMIZERS:
            assert found.tuned(name) == TUNED[name], name
            assert found.own(name) == OWN[name] | ({"active": found.own(name)["active"]} if name == "lisa" else {}), (
                name
            )
    assert filled.own("lisa")["active"] == 1  # as many as there are
    check_values(filled)


def test_an_option_is_of_the_first_that_has_it_or_of_all():
    config = resolve(
        replace(SMALL, optimizer="adamw", compare=("fira", "galore"), scale=0.5, lr=0.25, betas=(0.5, 0.75))
    )
    assert [config.own(name)["scale"] for name in ("fira", "galore")] == [0.5, OWN["galore"]["scale"]]
    assert [config.tuned(name)["lr"] for name in config.runs] == [0.25, TUNED["fira"]["lr"], TUNED["galore"]["lr"]]
    assert {config.tuned(name)["betas"] for name in config.runs} == {(0.5, 0.75)}


def test_a_setting_is_of_its_optimizer_alone():
    texts = (
        "muon.lr=0.02", "muon.nesterov=no", "muon.ns-coefficients=3.0,-3.25,1.25", "adamw.betas=0.5,0.75",
        "fira.rank=3", "fira.moments=rotate", "galore.lr-others=0.5",
    )  # fmt: skip
    config = replace(SMALL, compare=("adamw", "muon", "fira"), rank=5, set=texts)
    for found in (config, resolve(config)):
        assert found.tuned("muon") == {**TUNED["muon"], "lr": 0.02, "lr_others": 0.02}
        assert found.tuned("adamw")["betas"] == (0.5, 0.75) != found.tuned("galore")["betas"]
        assert found.peak_lrs("galore") == (TUNED["galore"]["lr"], 0.5)
        own = found.own("muon")
        assert own["nesterov"] is False and own["ns_coefficients"] == (3.0, -3.25, 1.25)
        assert (found.rank_of("fira"), found.rank_of("galore")) == (3, 5)
        assert (found.own("fira")["moments"], found.own("galore")["moments"]) == ("rotate", "keep")
    assert held_bytes(resolve(config), "fira") < held_bytes(replace(resolve(config), set=()), "fira")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_each_of_several_is_said_to_hold(name):
    """Weights, gradients, and the state of one step, in a run that has an option of every other one too."""
    config = resolve(replace(SMALL, compare=tuple(one for one in OPTIMIZERS if one != "galore")))
    model = Decoder(ModelShape(16, 1, 2, 24, 16), seed=0)
    optimizer = build_optimizer(name, model, config)
    model(torch.arange(32).reshape(2, 16)).square().mean().backward()
    optimizer.step()
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert held_bytes(config, name) == 2 * weights + state_bytes(optimizer)


def test_settings_are_written_as_they_are_read():
    config = resolve(
        replace(SMALL, compare=("adamw", "muon", "dct", "qgalore"), set=("dct.error-feedback-dtype=int8",))
    )
    settings = read_settings(config.set)
    assert write(settings) == config.set and read_settings(write(settings)) == settings
    assert settings["dct", "error_feedback_dtype"] == "int8" and settings["qgalore", "moment_dtype"] == "int8"


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ("--compare adamw adamw", "`--compare` must be another optimizer than `--optimizer` and .* got adamw twice"),
        ("--compare adamw galore", "got galore twice"),
        ("--compare adamw sgd", "--compare: invalid choice: 'sgd'"),
        (
            "--compare adamw muon --compare-lr 1",
            "`--compare-lr` must come with one optimizer in `--compare`, got adamw and muon; say whose, as in "
            "`--set adamw.lr=...`",
        ),
        ("--compare fira muon --compare-scale 1", "`--compare-scale` must come with one optimizer"),
        ("--set lr=1", "--set: must be METHOD.OPTION=VALUE, as in muon.lr=0.02, got 'lr=1'"),
        ("--set muon.lr", "--set: must be METHOD.OPTION=VALUE"),
        ("--set sgd.lr=1", "`--set` must name an optimizer, .* got 'sgd'"),
        ("--set muon.lr=0.1", "`--set muon.lr` must be of an optimizer of the run, galore; .* add muon to `--compare`"),
        ("--set galore.gamma=3", "`--set galore.` must name one of lr, .*rank.*, got 'gamma'"),
        ("--set galore.seed=3", "`--set galore.` must name one of"),
        ("--compare muon --set muon.rank=4", "`--set muon.` must name one of"),
        ("--set galore.lr=fast", "`--set galore.lr` must be a number > 0, got 'fast'; correct it"),
        ("--set galore.update-proj-gap=0", "`--set galore.update-proj-gap` must be a whole number >= 1, got '0'"),
        ("--set galore.betas=0.9", "`--set galore.betas` must have 2 values with commas between them, got '0.9'"),
        ("--set galore.proj-type=up", "`--set galore.proj-type` must be std, .*, got 'up'; choose one"),
        ("--compare dct --set dct.norm-ord=x", "`--set dct.norm-ord` must be 1 or 2, got 'x'"),
        ("--compare dct --set dct.norm-ord=3", "`--set dct.norm-ord` must be 1 or 2, got '3'"),
        ("--compare dct --set dct.error-feedback=on", "`--set dct.error-feedback` must be yes or no, got 'on'"),
        ("--set galore.lr=1 galore.lr=2", "`--set galore.lr` must be given once, got it twice"),
        ("--set galore.lr=1 --lr 2", "`--lr` must not say what `--set galore.lr` says; leave one out"),
        ("--set galore.rank=3", "`--rank` must not say what `--set galore.rank` says"),
        ("--compare adamw --compare-lr 1 --set adamw.lr=1", "`--compare-lr` must not say what `--set adamw.lr` says"),
        ("--compare fira --set fira.rank=16", "`--set fira.rank` must be < 16, .*, got 16; the largest allowed is 15"),
        ("--compare fira --set fira.projector=random", "`--set fira.projector` must be rsvd or svd with the optimizer"),
        ("--set galore.rounding=nearest", "`--set galore.rounding` must come with `--precision bf16`, got fp32"),
        ("--compare lisa --set lisa.active=2", "`--set lisa.active` must be at most `--layers`, 1, got 2"),
    ],
)  # fmt: skip
def test_refusals(text, cli, tmp_path, options, pattern):
    outcome = cli("train", "--text", text, *RANKED, "--out", tmp_path / "run", *options.split())
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert re.search(pattern, outcome.err), outcome.err


def test_several_are_stopped_and_resumed(text, cli, tmp_path):
    """As an uninterrupted run to the bit, and each as it is alone: nothing of one reaches the next."""
    several = ["train", "--text", text, *RANKED, "--compare", "adamw", "muon", "fira"]
    options = [*several, "--set", "muon.lr=0.02", "fira.scale=0.5"]
    assert cli(*options, "--out", tmp_path / "whole").code == 0
    again = ("train", "--resume", "--out", tmp_path / "parts")
    with at_step(8, lambda: os.kill(os.getpid(), signal.SIGINT)):
        for command in ([*options, "--out", tmp_path / "parts"], again, again, again):  # once in each
            outcome = cli(*command)
            assert outcome.code == 130 and " stopped at step 9 of 24" in outcome.out
    assert cli(*again, "--set", "muon.lr=0.020", "adamw.weight-decay=0.1").code == 0  # the same in other words
    assert_same(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))
    refused = cli(*again, "--set", "muon.lr=0.03")
    assert refused.code == 2 and "`--set muon.lr` must stay 0.02 as in the run being resumed, got 0.03" in refused.err
    assert "`--set muon.momentum` must stay unset" in cli(*again, "--set", "muon.momentum=0.5").err
    assert "`--compare` must stay adamw muon fira" in cli(*again, "--compare", "adamw", "muon").err
    alone = ["train", "--text", text, *TINY, "--optimizer", "fira", "--rank", 4, "--scale", 0.5]
    assert cli(*alone, "--out", tmp_path / "alone").code == 0
    theirs, ours = (checkpoint.load(tmp_path / where / "fira.checkpoint.safetensors") for where in ("alone", "whole"))
    assert_same(ours["model"], theirs["model"])


def test_damaged_settings(cli, text, tmp_path):
    options = ["train", "--text", text, *RANKED, "--compare", "adamw", "fira", "--out", tmp_path]
    assert cli(*options).code == 0
    path = tmp_path / "run.json"
    whole = path.read_text()
    for old, new, sentence in (
        ('"adamw.lr=0.001"', '"adamw.lr=no"', "must be a number > 0, got 'no'"),
        ('"adamw.lr=0.001"', "3", "set is"),
        ('"adamw",', '"sgd",', "compare is"),
    ):
        assert whole.count(old) == 1
        path.write_text(whole.replace(old, new))
        outcome = cli("train", "--resume", "--out", tmp_path)
        assert outcome.code == 2 and "run.json' is damaged" in outcome.err and sentence in outcome.err, outcome.err
