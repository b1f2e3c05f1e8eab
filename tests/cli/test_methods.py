"""Fira and APOLLO on the command line: which options they take, what becomes of those of old runs, whole runs."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from cli_cases import TINY, at_step, flags
from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.defaults import BY_RATE, IDLE, OPTIMIZERS, OWN, PAIRED, TUNED, takers
from lowrank_core.cli.memory import held_bytes
from lowrank_core.cli.metrics import read
from lowrank_core.cli.model import Decoder, ModelShape
from lowrank_core.cli.optimizers import build_optimizer, state_bytes
from lowrank_core.cli.resolve import resolve
from lowrank_core.optim import METHODS
from test_resume import assert_same, final_state

SMALL = TrainConfig(dim=16, layers=1, heads=2, ffn=24, seq_len=16)
RANK_AND_GAP = {"rank": 4, "update_proj_gap": 5}
RANKED = [*TINY, *flags(**RANK_AND_GAP)]
# Of several optimizers in one run, with what the second has for itself.
RUNS = {
    "qgalore": ["--optimizer", "qgalore", *flags(queue_size=1, cos_threshold=0, gamma=1.5, group_size=32)],
    "qgalore beside galore": ["--optimizer", "qgalore", "--compare", "galore", "--compare-moment-dtype", "float32"],
    "fira": ["--optimizer", "fira"],
    "fira of the code": ["--optimizer", "fira", "--residual", "code", "--limiter", 1.5, "--projector", "svd"],
    "apollo": ["--optimizer", "apollo"],
    "apollo-mini": ["--optimizer", "apollo", *flags(rank=1, scale_type="tensor", scale=128, scale_cap=4)],
    "apollo beside galore": ["--optimizer", "apollo", "--compare", "galore", "--compare-scale", 0.25],
    "adarankgrad": ["--optimizer", "adarankgrad", "--energy", 0.5, "--min-rank", 2, "--convergence", 0.9],
    "flora": ["--optimizer", "flora", "--kappa", 9],
    "ldadam": ["--optimizer", "ldadam", "--rho", 0.5],
    "coap": ["--optimizer", "coap", "--eq5", "normalized", "--reproject-factor", 2],
    "galore by lion": ["--optimizer", "galore", "--rule", "lion", "--lr", 0.001],
    "frugal": ["--optimizer", "frugal", "--sign-scale", 0.1],
    "frugal by blocks": ["--optimizer", "frugal", *flags(subspace="block", density=0.2, sign_scale=0.1)],
    "lisa": ["--optimizer", "lisa", *flags(active=1, period=5, layers=3)],
    "sinkgd beside scale": ["--optimizer", "sinkgd", "--iterations", 2, "--compare", "scale"],
    "dct": ["--optimizer", "dct", *flags(error_feedback="no", update_proj_gap=3, basis="dct3")],
    "dct auto": ["--optimizer", "dct", *flags(basis="auto")],
    "dct beside galore": ["--optimizer", "dct", *flags(compare="galore", update_proj_gap=1, compare_update_proj_gap=6)],
    "muon beside trion": ["--optimizer", "muon", *flags(nesterov="no", ns_steps=4, compare="trion", rank=5)],
    "dion2": ["--optimizer", "dion2", *flags(fraction=0.5, momentum=0.9, adjust_lr_fn="match_rms_adamw", lr=0.003)],
    "adamw beside fira": ["--optimizer", "adamw", "--compare", "fira", "--scale", 0.5],
}


# ---- which options a method takes ----------------------------------------------------------------------------------


def test_the_registry_decides_what_there_is():
    assert OPTIMIZERS == (*METHODS, "lisa", "adamw") == tuple(TUNED)
    assert set(OWN) == set(OPTIMIZERS) and OWN["adamw"] == {}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_the_options_that_its_constructor_has(name):
    """Those of every optimizer (rates, betas, ...) and the rank have a place of their own."""
    everywhere = {"lr", "betas", "eps", "weight_decay", "rank", "seed"}
    options = {item.name for item in fields(TrainConfig)} - everywhere
    assert OWN[name].keys() == (options - set(IDLE.get(name, ()))) & inspect.signature(METHODS[name]).parameters.keys()


def test_defaults_that_differ_have_a_twin():
    """Of any two methods: an option that both would share must mean the same where it is not given."""
    names = {name for own in OWN.values() for name in own}
    differing = {name for name in names if len({str(own[name]) for own in OWN.values() if name in own}) > 1}
    assert differing == set(PAIRED) and {f"compare_{name}" for name in PAIRED} <= {x.name for x in fields(TrainConfig)}


def test_defaults_of_what_was_tuned_by_its_rate_alone():
    """Written a second time: a default that changes is a decision."""
    dtypes = {"moment_dtype": "auto", "plain_moment_dtype": None, "rounding": "nearest"}
    shared = {"update_proj_gap": 100, "proj_type": "std", "limiter": 1.01, **dtypes}
    assert all(TUNED[name] == {**TUNED["galore"], "lr": TUNED[name]["lr"]} for name in METHODS if name != "ldadam")
    assert TUNED["ldadam"] == {**TUNED["galore"], "lr": 0.002, "betas": (0.908, 0.99)}
    assert set(BY_RATE) == {*METHODS, "lisa"} - {"galore"} and TUNED["lisa"] == TUNED["adamw"]
    assert resolve(TrainConfig(optimizer="qgalore")).own("qgalore") == {
        **{key: value for key, value in OWN["galore"].items() if key != "rule"}, "scale": 0.25,
        "moment_dtype": "int8", "cos_threshold": 0.4, "queue_size": 5, "gamma": 2, "group_size": 128,
    }  # fmt: skip
    fira, apollo = (resolve(TrainConfig(optimizer=name)) for name in ("fira", "apollo"))
    assert fira.own("fira") == {**shared, "scale": 0.25, "projector": "rsvd", "moments": "keep", "residual": "paper"}
    assert apollo.own("apollo") == {
        **shared, "scale": 1.0, "projector": "random", "scale_type": "channel", "scale_cap": None,
    }  # fmt: skip
    assert fira.rank == apollo.rank == 64
    assert fira.peak_lrs("fira") == (0.01, 0.01) and apollo.peak_lrs("apollo") == (0.008, 0.01)
    assert apollo.moments is fira.scale_type is None  # what no optimizer of the run has


def test_rates_are_those_of_the_comparison():
    """The table of docs/results/optimizers.md: optimizer, trials, ..., lr at the large size, best at the edge."""
    page = (Path(__file__).resolve().parents[2] / "docs/results/optimizers.md").read_text()
    table = page.partition("## What was found by tuning")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    found = {row[0]: row[cells[0].index("lr at the large size")] for row in cells[2:]}
    assert {name: f"{TUNED[name]['lr']:g}" for name in BY_RATE} == {name: found[name] for name in BY_RATE}


@pytest.mark.parametrize(
    ("given", "galore", "apollo"),
    [
        ({}, 0.125, 1.0),
        ({"scale": 0.5}, 0.5, 1.0),
        ({"compare_scale": 2.0}, 0.125, 2.0),
        ({"scale": 0.5, "compare_scale": 2.0}, 0.5, 2.0),
    ],
)
def test_scale_belongs_to_one_of_two_methods(given, galore, apollo):
    config = replace(SMALL, optimizer="galore", compare=("apollo",), **given)
    for found in (config, resolve(config), TrainConfig.from_json(resolve(config).to_json())):
        assert found.own("galore")["scale"] == galore and found.own("apollo")["scale"] == apollo
    assert resolve(config).compare_update_proj_gap == 100
    assert resolve(config).scale == galore and resolve(config).compare_scale == apollo
    assert (resolve(config).projector, resolve(config).compare_projector) == ("rsvd", "random")


def test_scale_is_that_of_the_only_method():
    for optimizer, compare in (("apollo", "adamw"), ("adamw", "apollo")):
        config = resolve(replace(SMALL, optimizer=optimizer, compare=(compare,), scale=0.5))
        assert config.own("apollo")["scale"] == 0.5 and config.compare_scale is None and config.own("adamw") == {}


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ("fira --scale-type tensor", "`--scale-type` must come with the optimizer apollo, got fira; leave it out"),
        ("fira --scale-cap 2", "`--scale-cap` must come with the optimizer apollo, got fira"),
        ("galore --energy 0.9", "`--energy` must come with the optimizer adarankgrad, got galore"),
        ("ldadam --update-proj-gap 9", "`--update-proj-gap` must come with the optimizer galore, .* got ldadam"),
        ("adarankgrad --energy 0", "--energy: must be a number > 0 and <= 1, got '0'"),
        ("ldadam --rho 2", "--rho: must be a number >= 0 and <= 1, got '2'"),
        ("galore --eq5 normalized", "`--eq5` must come with the optimizer coap, got galore"),
        ("coap --projector svd", "`--projector` must come with the optimizer galore, .* got coap"),
        ("galore --limiter 2", "`--limiter` must come with the optimizer fira or apollo, got galore"),
        ("galore --limiter 2 --compare adamw", "the optimizer fira or apollo, got galore and adamw"),
        ("apollo --residual code", "`--residual` must come with the optimizer fira, got apollo"),
        ("apollo --moments rotate", "`--moments` must come with the optimizer galore, .* got apollo"),
        ("galore --gamma 3", "`--gamma` must come with the optimizer qgalore, got galore"),
        ("qgalore --gamma 0.5", "--gamma: must be a number >= 1, got '0.5'"),
        ("qgalore --group-size 100", "--group-size: invalid choice: 100"),
        ("qgalore --queue-size 0", "--queue-size: must be a whole number >= 1, got '0'"),
        ("fira --projector random", "`--projector` must be rsvd or svd with the optimizer fira, got random"),
        ("apollo --projector rsvd", "`--projector` must be random or svd with the optimizer apollo, got rsvd"),
        (
            "apollo --compare fira --compare-projector random",
            "`--compare-projector` must be rsvd or svd with the optimizer fira, got random",
        ),
        ("fira --proj-type full", "`--proj-type` must be std, .* or right with the optimizer fira, got full"),
        ("galore --compare apollo --proj-type full", "`--proj-type` must be .* with the optimizer apollo, got full"),
        ("apollo --compare-scale 2", "`--compare-scale` must come with `--compare`"),
        (
            "apollo --compare adamw --compare-scale 2",
            "`--compare-scale` must come with two optimizers that have `--scale`, got apollo and adamw; .* `--scale`",
        ),
        ("adamw --compare fira --compare-scale 2", "must come with two optimizers that have `--scale`"),
        ("fira --limiter 0.5", "--limiter: must be a number >= 1, got '0.5'"),
        ("scale --rank 4", "`--rank` must come with the optimizer galore, .*, got scale; leave it out"),
        ("scale --scale 4", "`--scale` must come with the optimizer .*, got scale; leave it out"),
        ("lisa --active 5", "`--active` must be at most `--layers`, 1, got 5; lower it"),
        ("galore --active 1", "`--active` must come with the optimizer lisa, got galore"),
        ("sinkgd --iterations 0", "--iterations: must be a whole number >= 1, got '0'"),
        ("muon --rank 4", "`--rank` must come with the optimizer .*, got muon; leave it out"),
        ("muon --proj-type left", "`--proj-type` must come with the optimizer .*, got muon; leave it out"),
        ("muon --eps 1e-6", "`--eps` must come with an optimizer that has it, got muon, which leave it at 1e-08"),
        ("dion2 --fraction 0", "--fraction: must be a number > 0 and <= 1, got '0'"),
        ("dct --error-feedback maybe", "--error-feedback: must be yes or no, got 'maybe'"),
        ("galore --basis dct2", "`--basis` must come with the optimizer dct or trion, got galore"),
    ],
)
def test_an_option_that_the_method_does_not_have(text, cli, tmp_path, options, pattern):
    outcome = cli("train", "--text", text, *TINY, "--out", tmp_path / "run", "--optimizer", *options.split())
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert re.search(pattern, outcome.err), outcome.err


def test_the_help_says_what_is_whose(cli):
    said = " ".join(cli("train", "--help").out.split())
    names = ",".join((*OPTIMIZERS, "all"))
    assert f"{{{names}}} optimizer to train with; all: the comparison of all" in said
    assert (
        "(default: 0.125, for qgalore 0.25, for fira 0.25, for apollo 1.0" in said
        and "(default: rsvd, for apollo random" in said
    )
    assert "a channel or the whole matrix, of apollo (default: channel)" in said


# ---- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [{}, {"projector": "svd"}, {"moment_dtype": "int8"}], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_a_run_is_said_to_hold(name, own):
    """Weights, gradients, and the state of one step."""
    own = own if own.keys() <= OWN[name].keys() else {}
    config = resolve(replace(SMALL, optimizer=name, **own))
    model = Decoder(ModelShape(16, 1, 2, 24, 16), seed=0)
    optimizer = build_optimizer(name, model, config)
    model(torch.arange(32).reshape(2, 16)).square().mean().backward()
    optimizer.step()
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert held_bytes(config, name) == 2 * weights + state_bytes(optimizer)


# ---- whole runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_is_stopped_and_resumed(text, cli, tmp_path, run):
    """Equals one that nothing stops, to the bit; either has everything that a run leaves."""
    names = [word for word in RUNS[run] if word in OPTIMIZERS]
    usual = {key: value for key, value in RANK_AND_GAP.items() if set(names) & set(takers(key))}
    options = ["train", "--text", text, *TINY, *flags(**usual), *RUNS[run]]
    assert cli(*options, "--out", tmp_path / "whole").code == 0
    with at_step(8, lambda: os.kill(os.getpid(), signal.SIGINT)):
        outcome = cli(*options, "--out", tmp_path / "parts")
    assert outcome.code == 130 and " stopped at step 9 of 24; go on with: " in outcome.out
    assert cli("train", "--resume", "--out", tmp_path / "parts").code == 0
    whole = final_state(tmp_path / "whole")
    assert_same(final_state(tmp_path / "parts"), whole)
    watched = [f"{name}.layers.jsonl" for name in names if name in METHODS]
    assert set(whole) == {"metrics", *(f"{name}.checkpoint.safetensors" for name in names), *watched}
    assert all({row["step"] for row in whole[name]} == set(range(1, 25)) for name in watched)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert [row["optimizer"] for row in summary["runs"]] == names
    # What is fed back is a whole matrix, so that little is saved of so small a model.
    most = {name: 1.0 if OWN[name].keys() & {"error_feedback", "momentum", "rho"} else 0.9 for name in names}
    assert all(row["ratio"] < most[row["optimizer"]] for row in summary["runs"] if row["optimizer"] != "adamw")
    searched = {line["run"] for line in whole["metrics"] if line["event"] == "refresh"}
    blocks = "block" in RUNS[run]  # which measure no energy, as random projections
    silent = {"apollo", "adamw", "scale", "sinkgd", "ldadam", "flora", "lisa", "muon", *["frugal"] * blocks}
    assert searched == set(names) - silent
    page = (tmp_path / "whole" / "report.html").read_text()
    assert ('aria-label="Captured energy, median layer"' in page) == bool(searched)
    assert re.findall("<h3>(.*?)</h3>", page) == [*[name for name in names if name in METHODS], *names]


def test_methods_learn(text, cli, tmp_path):
    """And differ: no name stands for another's class."""
    losses: dict[str, list[float]] = {}
    for name in METHODS:
        own = {key: value for key, value in RANK_AND_GAP.items() if name in takers(key)}
        options = flags(lr=0.01, optimizer=name, **own)
        assert cli("train", "--text", text, *TINY, *options, "--out", tmp_path / name).code == 0
        losses[name] = [line["val_loss"] for line in read(tmp_path / name / "metrics.jsonl") if line["event"] == "eval"]
        assert losses[name][-1] < losses[name][0] - 0.1, name
    assert len({values[-1] for values in losses.values()}) == len(METHODS)


def test_two_methods_in_one_report(text, cli, tmp_path):
    options = flags(optimizer="galore", compare="fira")
    outcome = cli("train", "--text", text, *RANKED, *options, "--out", tmp_path)
    said = " ".join(outcome.out.split())
    assert outcome.code == 0 and "GaLore holds 0.00 MB less optimizer state than Fira, which is room" in said
