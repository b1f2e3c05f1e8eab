"""What the command line's options become in an optimizer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lowrank_core.cli.config import PEAK_LRS, TrainConfig, resolve
from lowrank_core.cli.loop import lr_at
from lowrank_core.cli.metrics import read
from lowrank_core.cli.model import Decoder, ModelShape
from lowrank_core.cli.optimizers import build_optimizer

OTHERS = {"embed.weight", "lm_head.weight", "norm.weight", "blocks.0.attention_norm.weight", "blocks.0.ffn_norm.weight"}
SMALL = TrainConfig(dim=16, layers=1, heads=2, ffn=24, seq_len=16, compare="adamw")


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


@pytest.mark.parametrize("run", ["galore", "adamw"])
def test_schedule_scales_both_rates(tiny, cli, tmp_path, run):
    """In the log and in the groups, at every step."""
    from lowrank_core.cli import checkpoint

    rates = ["--lr-others", 0.02, "--compare", "adamw", "--compare-lr", 0.01, "--compare-lr-others", 0.02]
    assert cli(*tiny, *rates, "--out", tmp_path).code == 0
    shape = {"warmup": 3, "steps": 24, "min_ratio": 0.1}
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
    config = resolve(replace(SMALL, lr=0.25, optimizer="adamw", compare=None))
    parted, optimizer = built("adamw", config)
    whole, _ = built("adamw", config)
    plain = torch.optim.AdamW(whole.parameters(), lr=0.25, fused=True, weight_decay=0.0)
    for step in range(3):
        for model, stepped in ((parted, optimizer), (whole, plain)):
            model(torch.arange(32).reshape(2, 16) + step).square().mean().backward()
            stepped.step()
            stepped.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(parted.parameters(), whole.parameters(), strict=True))
