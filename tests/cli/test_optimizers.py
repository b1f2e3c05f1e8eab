"""What the command line's options become in an optimizer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.defaults import OPTIMIZERS, OWN, TUNED, WITHOUT_BETAS, takers
from lowrank_core.cli.loop import lr_at
from lowrank_core.cli.metrics import read
from lowrank_core.cli.model import Decoder, ModelShape
from lowrank_core.cli.optimizers import build_optimizer
from lowrank_core.cli.resolve import resolve

ROOT = Path(__file__).resolve().parents[2]
PEAK_LRS = {name: (best["lr"], best["lr_others"]) for name, best in TUNED.items()}
OTHERS = {"embed.weight", "lm_head.weight", "norm.weight", "blocks.0.attention_norm.weight", "blocks.0.ffn_norm.weight"}
SMALL = TrainConfig(dim=16, layers=1, heads=2, ffn=24, seq_len=16, compare=("adamw",))


def built(name: str, config: TrainConfig) -> tuple[Decoder, torch.optim.Optimizer]:
    model = Decoder(ModelShape(config.dim, config.layers, config.heads, config.ffn or 0, config.seq_len), seed=0)
    return model, build_optimizer(name, model, config)


def by_name(model: Decoder, optimizer: torch.optim.Optimizer, key: str) -> dict[str, object]:
    """The value of a group's key for each parameter."""
    groups = [(group, {id(p) for p in group["params"]}) for group in optimizer.param_groups]
    return {
        name: next(group[key] for group, members in groups if id(p) in members) for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("name", ["galore", "adamw"])
def test_matrices_and_the_rest_have_rates_of_their_own(name):
    config = resolve(replace(SMALL, lr=0.25, lr_others=0.5, compare_lr=0.25, compare_lr_others=0.5))
    rates = by_name(*built(name, config), "lr")
    assert rates == {key: 0.5 if key in OTHERS else 0.25 for key in rates} and rates.keys() > OTHERS


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        ({}, PEAK_LRS["galore"]),
        ({"lr": 0.25}, (0.25, 0.25)),
        ({"lr_others": 0.5}, (PEAK_LRS["galore"][0], 0.5)),
        ({"lr": 0.25, "lr_others": 0.5}, (0.25, 0.5)),
    ],
)
def test_the_rest_has_the_rate_of_the_matrices_unless_told(given, rates):
    for config in (replace(SMALL, **given), resolve(replace(SMALL, **given))):
        assert config.peak_lrs("galore") == rates
        assert config.peak_lrs("adamw") == PEAK_LRS["adamw"]
    compared = resolve(replace(SMALL, **{f"compare_{key}": value for key, value in given.items()}))
    assert compared.peak_lrs("adamw")[0] == given.get("lr", PEAK_LRS["adamw"][0])
    assert compared.peak_lrs("galore") == PEAK_LRS["galore"]


@pytest.mark.parametrize(
    ("given", "first", "second"),
    [
        ({}, TUNED["galore"]["betas"], TUNED["adamw"]["betas"]),
        ({"betas": (0.5, 0.75)}, (0.5, 0.75), (0.5, 0.75)),
        ({"compare_betas": (0.5, 0.75)}, TUNED["galore"]["betas"], (0.5, 0.75)),
        ({"betas": (0.5, 0.75), "compare_betas": (0.25, 0.5)}, (0.5, 0.75), (0.25, 0.5)),
    ],
)
def test_betas_hold_for_both_unless_told(given, first, second):
    for config in (replace(SMALL, **given), resolve(replace(SMALL, **given))):
        assert config.tuned("galore")["betas"] == first and config.tuned("adamw")["betas"] == second


@pytest.mark.parametrize(
    ("given", "first", "second"),
    [
        ({}, TUNED["galore"]["weight_decay"], TUNED["adamw"]["weight_decay"]),
        ({"weight_decay": 0.0}, 0.0, 0.0),
        ({"weight_decay": 0.5}, 0.5, 0.5),
        ({"weight_decay": 0.5, "compare_weight_decay": 0.0}, 0.5, 0.0),
        ({"compare_weight_decay": 0.25}, TUNED["galore"]["weight_decay"], 0.25),
    ],
)
def test_decay_holds_for_both_unless_told(given, first, second):
    for config in (replace(SMALL, **given), resolve(replace(SMALL, **given))):
        assert config.tuned("galore")["weight_decay"] == first and config.tuned("adamw")["weight_decay"] == second


@pytest.mark.parametrize("run", ["galore", "adamw"])
def test_schedule_scales_both_rates(tiny, cli, tmp_path, run):
    """In the log and in the groups, at every step."""
    from lowrank_core.cli import checkpoint

    rates = ["--lr-others", 0.02, "--compare", "adamw", "--compare-lr", 0.01, "--compare-lr-others", 0.02]
    assert cli(*tiny, *rates, "--min-lr-ratio", 0.25, "--out", tmp_path).code == 0
    shape = {"warmup": 3, "steps": 24, "min_ratio": 0.25}
    for line in read(tmp_path / "metrics.jsonl"):
        if line["event"] == "train" and line["run"] == run:
            assert line["lr"] == lr_at(line["step"], peak=0.01, **shape)
            assert line["lr_others"] == lr_at(line["step"], peak=0.02, **shape)
    groups = checkpoint.load(tmp_path / f"{run}.checkpoint.safetensors")["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [
        lr_at(24, peak=0.02, **shape),
        lr_at(24, peak=0.02, **shape),
        lr_at(24, peak=0.01, **shape),
    ]


def test_equal_rates_are_one_rate():
    """Parting the model in groups changes no bit of AdamW."""
    plainly = {"lr": 0.25, "betas": (0.9, 0.999), "weight_decay": 0.0}
    config = resolve(replace(SMALL, **plainly, optimizer="adamw", compare=()))
    parted, optimizer = built("adamw", config)
    whole, _ = built("adamw", config)
    plain = torch.optim.AdamW(whole.parameters(), lr=0.25, fused=True, weight_decay=0.0)
    for step in range(3):
        for model, stepped in ((parted, optimizer), (whole, plain)):
            model(torch.arange(32).reshape(2, 16) + step).square().mean().backward()
            stepped.step()
            stepped.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(parted.parameters(), whole.parameters(), strict=True))


def test_schedule_rises_in_a_line_and_falls_to_its_floor():
    """Powers of two: products and sums are exact, and so is the cosine at its ends and in its middle."""
    shape = {"peak": 8.0, "warmup": 4, "steps": 20, "min_ratio": 0.25}
    assert [lr_at(step, **shape) for step in (1, 2, 4, 12, 20)] == [2.0, 4.0, 8.0, 5.0, 2.0]
    falling = [lr_at(step, **shape) for step in range(4, 21)]
    assert falling == sorted(falling, reverse=True) and len(set(falling)) == 17


OTHER = {
    "update_proj_gap": 7, "scale": 0.5, "proj_type": "reverse_std", "projector": "svd", "moments": "rotate",
    "moment_dtype": "float32", "plain_moment_dtype": "bfloat16", "rounding": "stochastic", "limiter": 2.0,
    "residual": "code", "scale_type": "tensor", "scale_cap": 3.0, "cos_threshold": 0.75, "queue_size": 3,
    "gamma": 1.5, "kappa": 9, "rule": "lion", "iterations": 3, "group_size": 64,
    "reproject_factor": 2, "eq5": "normalized", "energy": 0.5, "min_rank": 2, "convergence": 0.5, "rho": 0.5,
    "basis": "dct3", "error_feedback": False, "error_feedback_dtype": "int8", "momentum": 0.5, "nesterov": False,
    "ns_steps": 3, "ns_coefficients": (3.0, -3.25, 1.25), "adjust_lr_fn": "match_rms_adamw", "fraction": 0.5,
    "subspace": "svd", "active": 1, "period": 7, "density": 0.5, "sign_scale": 0.125,
}  # fmt: skip
SHARED = {"betas": (0.5, 0.75), "eps": 0.125}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_reaches_its_optimizer(name):
    own = {key: 3 - usual if key == "norm_ord" else OTHER[key] for key, usual in OWN[name].items()}
    assert all(value != OWN[name][key] for key, value in own.items())
    rank = {"rank": 3} if name in takers("rank") else {}
    shared = {"betas": SHARED["betas"]} if name in WITHOUT_BETAS else SHARED
    options = {**shared, **own, **rank, "seed": 5, "weight_decay": 0.0625, "precision": "bf16"}
    config = resolve(replace(SMALL, optimizer=name, compare=(), **options))
    model, optimizer = built(name, config)
    if name == "lisa":
        assert (optimizer.active, optimizer.period, optimizer.seed) == (own["active"], own["period"], 5)
        own = {}
    seen = {"plain_betas": SHARED["betas"]} if name in WITHOUT_BETAS else SHARED
    for key, value in {**seen, **({**own, "seed": 5} if own else {})}.items():
        assert set(by_name(model, optimizer, key).values()) == {value}, key
    decays = by_name(model, optimizer, "weight_decay")
    assert decays == {key: 0.0625 if p.ndim == 2 else 0.0 for key, p in model.named_parameters()}
    if rank:
        assert by_name(model, optimizer, "rank") == {key: None if key in OTHERS else 3 for key in decays}
    elif name == "adamw":
        assert type(optimizer) is torch.optim.AdamW and set(by_name(model, optimizer, "fused").values()) == {True}


def test_defaults():
    """What a run without options does, written a second time: a default that changes is a decision."""
    config = resolve(TrainConfig(compare=("adamw",))).to_json()
    assert config == {
        "text": [], "val_fraction": 0.1, "dim": 256, "layers": 4, "heads": 4, "ffn": 688, "seq_len": 128,
        "optimizer": "galore", "compare": ["adamw"], "set": [], "lr": 0.01, "lr_others": 0.01, "compare_lr": 0.001,
        "compare_lr_others": 0.03, "betas": [0.9, 0.999], "compare_betas": [0.9, 0.99], "eps": 1e-8,
        "weight_decay": 0.0, "compare_weight_decay": 0.1, "rank": 64,
        "update_proj_gap": 100, "scale": 0.125, "proj_type": "std", "projector": "rsvd", "moments": "keep",
        "compare_scale": None, "compare_projector": None,
        "limiter": None, "residual": None, "scale_type": None, "scale_cap": None, "rule": "adam", "iterations": None,
        "reproject_factor": None, "energy": None, "min_rank": None, "convergence": None, "rho": None, "eq5": None,
        "compare_update_proj_gap": None, "basis": None, "norm_ord": None, "compare_norm_ord": None,
        "error_feedback": None, "error_feedback_dtype": None, "momentum": None, "nesterov": None, "ns_steps": None,
        "ns_coefficients": None, "adjust_lr_fn": None, "fraction": None,
        "subspace": None, "active": None, "period": None, "density": None, "sign_scale": None,
        "kappa": None,
        "cos_threshold": None, "queue_size": None, "gamma": None, "group_size": None, "compare_moment_dtype": None,
        "moment_dtype": "auto", "plain_moment_dtype": None, "rounding": "nearest",
        "steps": 500, "batch_size": 8, "accumulation": 1, "warmup": 50,
        "min_lr_ratio": 0.1, "clip": 1.0, "precision": "fp32", "seed": 0, "eval_every": 50, "eval_batches": 16,
        "monitor_every": 10,
    }  # fmt: skip
    assert TrainConfig().optimizer == "galore" and TrainConfig().compare == ()


def test_defaults_are_the_best_that_was_found():
    best = json.loads((ROOT / "docs/results/train_sweep.json").read_text())["best"]
    config = resolve(TrainConfig(compare=("adamw",)))
    for name in ("galore", "adamw"):
        point, tuned = best[name]["point"], config.tuned(name)
        assert tuned["lr"] == point["lr"] and tuned["betas"] == (0.9, point["beta2"])
        assert tuned["lr_others"] == float(f"{point['lr'] * point.get('others', 1.0):.6g}")
        assert tuned["weight_decay"] == point["weight_decay"]
    own = {key: best["galore"]["point"][key] for key in ("scale", "update_proj_gap", "moments")}
    assert own == {key: getattr(config, key) for key in own}


def test_seed_decides_weights_batches_and_sketches(tiny, cli, tmp_path, monkeypatch):
    from lowrank_core.cli import loop

    runs, seeds = [], set()
    start, draw = loop.Run.__init__, loop.training_batch
    monkeypatch.setattr(loop.Run, "__init__", lambda run, *a: (runs.append(run), start(run, *a))[1])
    monkeypatch.setattr(loop, "training_batch", lambda *a, **k: (seeds.add(k["seed"]), draw(*a, **k))[1])
    first: list[dict[str, torch.Tensor]] = []
    build = loop.build_optimizer
    monkeypatch.setattr(
        loop,
        "build_optimizer",
        lambda name, model, config: (
            first.append({key: p.detach().clone() for key, p in model.named_parameters()}),
            build(name, model, config),
        )[1],
    )
    assert cli(*tiny, "--seed", 5, "--out", tmp_path).code == 0
    assert seeds == {5} and {group["seed"] for group in runs[0].optimizer.param_groups} == {5}
    model = Decoder(ModelShape(16, 1, 2, 24, 16), seed=5)
    assert all(torch.equal(p, first[0][key]) for key, p in model.named_parameters())


def test_gradients_are_clipped_after_the_loss_scale_is_taken_off(tiny, cli, tmp_path):
    """The norm that clipping sees is that of float32 but for float16's rounding, not 2^16 times as large."""
    norms = {}
    for precision in ("fp32", "amp-fp16"):
        assert cli(*tiny, "--precision", precision, "--clip", 0.5, "--out", tmp_path / precision).code == 0
        lines = read(tmp_path / precision / "metrics.jsonl")
        norms[precision] = next(line["grad_norm"] for line in lines if line["event"] == "train")
    assert norms["fp32"] / 2 < norms["amp-fp16"] < 2 * norms["fp32"]
