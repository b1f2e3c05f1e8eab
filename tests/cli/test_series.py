"""What the report draws: figures over the layers, shares of time, the ends of the axis of losses."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time

import pytest
from cli_cases import at_step
from lowrank_core.cli.metrics import read
from lowrank_core.cli.series import Series, band, loss_limits, smoothed
from lowrank_core.optim.monitor_rows import KEYS

EPS = sys.float_info.epsilon


def row(step, name="a", **figures):
    usual = {"rank": 4, "captured": None, "overlap": None, "refreshes": 1, "refresh_seconds": 0.0, "update_ratio": 0.5}
    made = {"step": step, "name": name, **usual, **figures}
    assert tuple(made) == KEYS
    return made


def made(train=(), val=(), layers=()):
    """`train` and `val` are losses of steps 1, 2, ...; a step of training takes two seconds for 16 bytes."""
    lines = [{"step": i, "train_loss": loss, "tokens_per_s": 8.0} for i, loss in enumerate(train, 1)]
    checks = [{"step": step, "val_loss": loss} for step, loss in val]
    return Series({"optimizer": "galore"}, lines, checks, list(layers), 16)


def test_band_goes_from_the_least_to_the_greatest():
    rows = [row(2, name, captured=value) for name, value in (("a", 0.5), ("b", 0.75), ("c", 0.25), ("d", None))]
    rows += [row(4, "a", captured=0.125), row(6, "a")]
    assert band(rows, "captured") == ([2, 4], [0.25, 0.125], [0.5, 0.125], [0.75, 0.125])
    assert band(rows, "overlap").steps == [] and band([], "rank").steps == []


def test_share_of_searches_is_of_the_steps_since_the_record_before():
    rows = [row(2, "a", refresh_seconds=0.5), row(2, "b", refresh_seconds=0.5), row(6, "a", refresh_seconds=2.0)]
    assert made([1.0] * 6, layers=rows).searching() == ([2, 6], [0.25, 0.25])
    assert made([], layers=rows).searching() == ([], [])
    assert made([1.0] * 2, layers=rows).searching() == ([2], [0.25])  # no line says what the later steps took


def test_summary_is_that_of_the_last_record():
    rows = [row(2, "a", refresh_seconds=1.0, captured=0.5), row(2, "b", rank=None, refreshes=0)]
    rows += [row(4, "a", refreshes=3, refresh_seconds=1.0, captured=0.75), row(4, "b", rank=None, refreshes=0)]
    assert made([1.0] * 4, layers=rows).summary() == {
        "matrices": 2, "projected": 1, "rank": 4, "captured": 0.75, "overlap": None, "update_ratio": 0.5,
        "refreshes": 3, "refresh_seconds": 2.0, "refresh_share": 0.25,
    }  # fmt: skip
    assert made(layers=rows).summary()["refresh_share"] is None and made().summary() is None


def test_smoothed_begins_where_the_values_do():
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0] * 3, rel=4 * EPS)
    first, second, third = smoothed([None, 1.0, 2.0])
    assert math.isnan(first) and second == pytest.approx(1.0, rel=4 * EPS)
    assert third == pytest.approx((0.9 * 1.0 + 2.0) / 1.9, rel=8 * EPS)


def test_losses_that_fall_from_far_above_do_not_squeeze_the_rest():
    falling = made([5.5] + [2.0] * 99, [(0, 5.6), (10, 3.0), (50, 2.0), (100, 1.5)])
    low, high = loss_limits([falling])
    assert 1.4 < low < 1.5 and 2.0 < high < 2.2
    worse = made([5.5] * 100, [(0, 5.6), (50, 5.0), (100, 5.5)])
    assert loss_limits([falling, worse])[1] > 5.5  # a curve that stays there is seen whole
    assert loss_limits([made(), falling]) == (low, high)


def test_losses_that_are_none_have_no_ends():
    assert loss_limits([made()]) is loss_limits([made([None], [(1, None)])]) is loss_limits([]) is None
    low, high = loss_limits([made([2.0], [(1, 2.0)])])
    assert low < 2.0 < high


def test_a_pause_between_two_parts_of_a_run_counts_nowhere(tiny, cli, tmp_path):
    """Neither as compute nor in what the share of searches is taken of."""
    started = time.monotonic()
    with at_step(11, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert cli(*tiny, "--compare", "muon", "--out", tmp_path).code == 130
    time.sleep(1.0)
    assert cli("train", "--resume", "--out", tmp_path).code == 0
    elapsed = time.monotonic() - started - 1.0
    lines = [line for line in read(tmp_path / "metrics.jsonl") if line["event"] == "train"]
    for summary in json.loads((tmp_path / "summary.json").read_text())["runs"]:
        mine = [line for line in lines if line["run"] == summary["optimizer"]]
        assert len(mine) == 24 and summary["seconds"] == mine[-1]["seconds"]
        wall = sum(32 / line["tokens_per_s"] for line in mine)
        layers = summary["layers"]
        assert wall < elapsed and layers["refresh_seconds"] <= wall
        assert layers["refresh_share"] == pytest.approx(layers["refresh_seconds"] / wall, rel=64 * EPS)
