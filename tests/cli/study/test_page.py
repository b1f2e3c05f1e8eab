"""The page: figures from faked runs, and what is said where a figure is not there."""

from __future__ import annotations

import json
import sys
from statistics import fmean

import pytest
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.study import figures, tables
from lowrank_core.cli.study.figures import BETTER, NEITHER, UNKNOWN, WORSE, Figures
from lowrank_core.cli.study.page import SECONDS, read_seconds, text_of
from scipy import stats
from study_cases import faked, fill, tiny_study

NOISE = {1: 0.00, 2: 0.01, 3: -0.02, 4: 0.01, 5: 0.03}
SEEDS = tuple(NOISE)


def lines_of(text: str, name: str) -> list[str]:
    """The table rows of `name`."""
    return [line for line in text.splitlines() if line.startswith(f"| {name} |")]


def loss_of(trial, gap: float) -> float:
    """Galore is `gap` above AdamW, with other noise; one rate costs one nat; higher rates are better."""
    galore, one = trial.optimizer == "galore", trial.options["lr"] == trial.options["lr_others"]
    noise = NOISE.get(trial.seed, 0.0) * (2 if galore else 1)
    return 2.0 + noise + gap * galore + one - 10 * trial.options["lr"]


@pytest.fixture
def study(tmp_path):
    return tiny_study(tmp_path, seeds=SEEDS)


@pytest.mark.parametrize(("gap", "said"), [(-0.2, BETTER), (0.2, WORSE), (0.0, NEITHER)])
def test_better_and_worse_are_said_where_both_sizes_show_it(study, gap, said):
    fill(study, lambda trial: loss_of(trial, gap))
    row = lines_of(tables.in_short(study, {}), "galore")[0]
    assert f"| {said} |" in row
    wanted = [
        [loss_of(trial, gap) for trial in study.runs(study.row(name), study.small)] for name in ("galore", "adamw")
    ]
    low, high = stats.ttest_rel(*wanted).confidence_interval(0.95)
    mean = fmean(wanted[0]) - fmean(wanted[1])
    assert f"| {mean:+.4f} ({low:+.4f} to {high:+.4f}) |" in row


def test_what_only_one_size_shows_is_no_difference(study):
    fill(study, lambda trial: loss_of(trial, -0.2 if trial.size == "large" else 0.2))
    assert f"| {NEITHER} |" in lines_of(tables.in_short(study, {}), "galore")[0]


def test_one_rate_is_a_line_of_its_own(study):
    fill(study, lambda trial: loss_of(trial, 0.0))
    assert "| +1.0000 (+1.0000 to +1.0000) |" in lines_of(tables.in_short(study, {}), "adamw, one rate")[0]


def test_losing_and_diverging_methods_stay_in(study):
    fill(study, lambda trial: None if trial.optimizer == "galore" and trial.seed == 3 else loss_of(trial, 0.0))
    text = text_of(study, {})
    assert "diverged on 1 of 5 seeds" in lines_of(text, "galore")[0] and f"| {WORSE} |" in lines_of(text, "galore")[0]


def test_what_is_not_run_yet_says_so(study):
    assert UNKNOWN in lines_of(text_of(study, {}), "galore")[0]
    assert "No run has been made yet" in text_of(study, {})
    while (trial := next(study.missing())).size == "small":
        faked(study, trial, loss_of(trial, -0.2))
    short = lines_of(tables.in_short(study, {}), "galore")[0]
    assert short.count(UNKNOWN) == 3 and BETTER not in short, "the time, the large size, and with it the verdict"
    timing = {"small": {"galore": {"seconds_per_step": 3.0}, "adamw": {"seconds_per_step": 2.0}}}
    assert lines_of(tables.in_short(study, timing), "galore")[0].startswith("| galore | 1.00 | 1.50 |")


def test_an_unfinished_search_shows_its_best_so_far(study):
    faked(study, next(study.missing()), 2.5)
    assert "| adamw | 1 so far | 2.5000 |" in tables.tuned(study)


def test_rates_are_told_as_multiples_of_adamws(study):
    fill(study, lambda trial: loss_of(trial, 0.0) + (20 * trial.options["lr"] if trial.optimizer == "adamw" else 0))
    assert tables.rate_rule(study, study.row("galore")) == "2 small, 2 large"
    assert tables.rate_rule(study, study.row("adamw")) == "1 small, 1 large"


def test_steps_to_a_loss_are_read_off_the_line_between_two_validations(study):
    fill(study, lambda trial: loss_of(trial, -0.5))
    found = figures.of(study, study.row("galore"), study.small)
    steps = study.small.steps
    # A faked curve falls from 5 in a straight line: the share of the way to its own end that the peer's end is.
    shares = sorted((5 - peer) / (5 - own) for own, peer in zip(found.losses, found.peer, strict=True))
    wanted = steps * shares[len(shares) // 2]
    # Both ways to it take fewer than 16 roundings, of numbers up to 5 / (5 - own) times the result.
    assert abs(found.steps_to_peer - wanted) <= 16 * sys.float_info.epsilon * 5 / (5 - max(found.losses)) * wanted
    timing = {"sizes": {"small": {"galore": {"seconds_per_step": 0.5, "refresh_share": 0.25}}}}
    row = lines_of(tables.of_size(study, study.small, timing["sizes"]), "galore")[0]
    assert row.endswith("| 0.5000 | 0.25 |") and f"| {found.steps_to_peer * 0.5:.1f} |" in row


def test_a_loss_that_is_not_reached_says_so(study):
    fill(study, lambda trial: loss_of(trial, 0.5))
    assert "| not reached |" in lines_of(tables.of_size(study, study.small, {}), "galore")[0]


def test_ablations_are_paired_with_the_tuned_default(study):
    fill(study, lambda trial: loss_of(trial, 0.0) + 0.5 * ("moments" in trial.options))
    assert "| +0.5000 (+0.5000 to +0.5000) | more |" in lines_of(tables.ablations(study), "moments rotate")[0]


def test_one_seed_gives_no_interval():
    assert Figures((1.0,), (2.0,), 0.0, 1, 1, 1.0).difference is None


@pytest.mark.parametrize("data", ["", "{", "{}", "[]", "3"])
def test_a_damaged_file_of_seconds_is_named(tmp_path, data):
    (tmp_path / SECONDS).write_text(data)
    with pytest.raises(CliError, match=f"'{tmp_path / SECONDS}' is damaged .*; delete it and measure again"):
        read_seconds(tmp_path)


def test_seconds_of_a_step_are_measured_for_everybody(study, tmp_path):
    from lowrank_core.cli.study.seconds import write_seconds

    folder = tmp_path / "results"
    folder.mkdir()
    for size in (study.small, study.large):
        write_seconds(study, size, folder, steps=3)
    found = json.loads((folder / SECONDS).read_text())
    assert set(found["sizes"]) == {"small", "large"} == set(found["measured"])
    for rows in found["sizes"].values():
        assert set(rows) == {row.name for row in study.contenders}
        assert all(row["seconds_per_step"] > 0 for row in rows.values())
        assert rows["adamw"]["refresh_share"] is None and 0 <= rows["galore"]["refresh_share"] < 1
    assert "3 interleaved steps" in text_of(study, found)
