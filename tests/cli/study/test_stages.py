"""What is run, in which order, and that it goes on where it was stopped."""

from __future__ import annotations

import pytest
from lowrank_core.cli.study.contenders import ABLATIONS, CONTENDERS, has_rank, trial_of
from lowrank_core.cli.study.sizes import SMALL, thinner
from lowrank_core.cli.study.stages import PEERS, NotMade, Study
from lowrank_core.cli.study.store import Store
from lowrank_core.memory.methods import FACADES, METHODS
from study_cases import RATES, faked, fill, made, tiny_study


def good(trial):
    """The higher rate is better, galore is better than adamw."""
    return 3.0 - 100 * trial.options["lr"] - (trial.optimizer == "galore") + trial.seed / 10


def test_every_method_takes_part_beside_the_controls():
    names = [row.name for row in CONTENDERS]
    assert {*METHODS, *FACADES, *PEERS, "adamw-8bit", "galore-torch"} == set(names) and len(names) == len(set(names))
    assert names[0] == PEERS[0], "what all are compared with is run first"


@pytest.mark.parametrize("row", CONTENDERS, ids=lambda row: row.name)
def test_every_start_is_on_its_ladders_and_can_be_trained(row):
    from lowrank_core.cli.config import TrainConfig
    from lowrank_core.cli.resolve import resolve

    for ladder in row.ladders:
        assert set(ladder.first) <= set(ladder.values) and ladder.values == tuple(sorted(ladder.values))
        assert row.start[ladder.option] in ladder.values
        for value in ladder.values:
            trial = trial_of(row, SMALL, 0, {**row.start, ladder.option: value})
            resolve(TrainConfig.from_json(dict(trial.options)))
    assert set(row.start) == {ladder.option for ladder in row.ladders}


def test_one_line_of_the_small_table_after_the_other(tmp_path):
    study = tiny_study(tmp_path)
    first = list(study.missing())
    assert [trial.optimizer for trial in first] == ["adamw", "adamw", "galore"], "all searches could go on"
    assert {trial.seed for trial in first} == {0}
    seen = []
    while trial := next(study.missing(), None):
        two_rates = trial.options["lr"] != trial.options["lr_others"]
        seen.append((trial.size, trial.optimizer, two_rates, trial.seed, "moments" in trial.options))
        faked(study, trial, good(trial))
    for i, (optimizer, two) in enumerate((("adamw", True), ("adamw", False), ("galore", True))):
        line = [("small", optimizer, two, seed, False) for seed in (0, 0, 1, 2)]
        assert seen[4 * i : 4 * i + 4] == line
    assert seen[12:14] == [("small", "galore", True, seed, True) for seed in (1, 2)], "then what is otherwise in it"
    sizes = [one[0] for one in seen]
    assert set(sizes[sizes.index("large") :]) == {"large"}, "the large size comes last"


def test_nothing_is_made_twice_and_the_bound_holds(tmp_path):
    study = tiny_study(tmp_path)
    count = fill(study, good)
    assert count == len(made(study)) <= study.most_runs()
    assert list(tiny_study(tmp_path).missing()) == [], "another process finds the same"


def test_a_lost_run_is_made_again_and_no_other(tmp_path):
    study = tiny_study(tmp_path)
    fill(study, good)
    lost = study.runs(study.row("galore"), study.large)[1]
    study.store.path(lost).unlink()
    assert {trial.name for trial in tiny_study(tmp_path).missing()} == {lost.name}


def test_the_point_reported_is_the_best_of_its_size(tmp_path):
    study = tiny_study(tmp_path)
    fill(study, lambda trial: good(trial) if trial.size != "large" else 100 * trial.options["lr"])
    row = study.row("galore")
    assert study.point(row, study.small)["lr"] == max(RATES) and study.point(row, study.large)["lr"] == min(RATES)
    assert {trial.options["lr"] for trial in study.runs(row, study.large)} == {min(RATES)}


def test_the_best_methods_are_followed_beside_both_peers(tmp_path):
    study = tiny_study(tmp_path)
    with pytest.raises(NotMade):
        study.followed()
    fill(study, good)
    assert [row.name for row in study.followed()] == [*PEERS, "galore"]


def test_ablations_change_one_thing_of_the_tuned_default(tmp_path):
    study = tiny_study(tmp_path, ablations=ABLATIONS)
    fill(study, good)
    kept = study.runs(study.row("galore"), study.small)[0]
    for _, options, keys in ABLATIONS:
        changed = study.ablation(options, keys)[0]
        assert changed.seed == kept.seed and changed.name != kept.name
        assert dict(changed.options) == {**kept.options, **options} and dict(changed.keys) == {**kept.keys, **keys}


def test_half_the_rank_is_a_run_of_its_own_only_where_there_is_a_rank():
    for row in CONTENDERS:
        wide, thin = (trial_of(row, size, 1, row.start) for size in (SMALL, thinner(SMALL)))
        assert (wide.name == thin.name) is not has_rank(row), row.name


def test_the_whole_study_is_as_large_as_is_said():
    assert Study(Store(None)).most_runs() == 570
