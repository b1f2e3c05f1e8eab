"""Folders of runs that an older version began: they go on, to the same end."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_cases import at_step, flags
from lowrank_core.cli import checkpoint
from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.options import flag
from lowrank_core.cli.resolve import resolve
from test_resume import assert_same, final_state

NEW_FIELDS = (
    "compare_scale", "compare_projector", "limiter", "residual", "scale_type", "scale_cap", "rule", "iterations",
    "compare_update_proj_gap", "reproject_factor", "eq5", "energy", "min_rank", "convergence", "rho", "subspace",
    "density", "sign_scale", "cos_threshold", "queue_size", "gamma", "group_size", "compare_moment_dtype", "basis",
    "norm_ord", "compare_norm_ord", "error_feedback", "error_feedback_dtype", "momentum", "nesterov", "ns_steps",
    "ns_coefficients", "adjust_lr_fn", "fraction",
    "active", "period", "kappa",
)  # fmt: skip


def without_new_fields(folder: Path) -> None:
    """Makes of a run one of a version that had galore and adamw alone."""
    stored = json.loads((folder / "run.json").read_text())
    stored["config"] = older(stored["config"])
    (folder / "run.json").write_text(json.dumps(stored))
    for path in folder.glob("*.checkpoint.safetensors"):
        tree = checkpoint.load(path)
        checkpoint.save(path, {**tree, "config": older(tree["config"])})
    for path in folder.glob("*.layers.jsonl"):
        path.unlink()


def older(config: dict[str, Any]) -> dict[str, Any]:
    assert config.keys() >= set(NEW_FIELDS)
    old = {name: value for name, value in config.items() if name not in (*NEW_FIELDS, "set", "monitor_every")}
    return old | {"compare": next(iter(config["compare"]), None)}  # of which there was one, or none


@pytest.mark.parametrize("options", ["", "--compare adamw", "--optimizer adamw --compare galore"])
def test_an_old_run_goes_on(tiny, cli, tmp_path, options):
    assert cli(*tiny, *options.split(), "--out", tmp_path / "whole").code == 0
    with at_step(8, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert cli(*tiny, *options.split(), "--out", tmp_path / "old").code == 130
    without_new_fields(tmp_path / "old")
    assert cli("train", "--resume", "--out", tmp_path / "old", *flags(rank=4)).code == 0
    ended = [final_state(tmp_path / name) for name in ("old", "whole")]
    assert ended[1].pop("galore.layers.jsonl") and "galore.layers.jsonl" not in ended[0]  # which it did not begin
    for tree in (state[name] for state in ended for name in state.keys() - {"metrics"}):
        tree["config"] = older(tree["config"])  # what was not there is still not given
    assert_same(*ended)
    assert cli("train", "--resume", "--out", tmp_path / "old", "--steps", 30).code == 0


@pytest.mark.parametrize("name", NEW_FIELDS)
def test_new_options_decide_nothing_of_old_runs(name):
    """Not given, they are None, also where options are compared with those of an old checkpoint."""
    assert getattr(resolve(TrainConfig(compare=("adamw",))), name) is None or name == "rule"  # which galore has
    assert flag(name).startswith("--") and getattr(TrainConfig.from_json({}), name) is None
