"""The comparison of adapter methods: who can be run, what is run when, and what the page says of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from testing import cases
from torch import nn

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))
pytest.importorskip("transformers")
from adapters_compared import digits, page, places, runs  # noqa: E402
from adapters_compared.comparison import Comparison  # noqa: E402
from adapters_compared.contenders import CONTENDERS, PEER, RATES, Contender  # noqa: E402
from adapters_compared.learn import build, learn, step  # noqa: E402
from adapters_compared.runs import Runs, decided_by  # noqa: E402
from adapters_compared.stream import Stream, Task  # noqa: E402
from adapters_compared.trial import Trial  # noqa: E402
from lowrank_core.cli.environment import environment  # noqa: E402
from lowrank_core.cli.finetune.config import METHODS  # noqa: E402
from lowrank_core.cli.study import sources  # noqa: E402

sys.path.remove(str(BENCH))
SAMPLES, WIDTH, CLASSES = 40, 12, 4
BEST = RATES[4]  # of the fakes
ON = places.Place("digits", 1, "digits")


def tiny_stream(seed: int) -> Stream:
    x = cases.gaussian(2 * SAMPLES, WIDTH, seed=seed).float()
    y = x[:, :CLASSES].argmax(1)
    return Stream((x[:SAMPLES],), y[:SAMPLES], (x[SAMPLES:],), y[SAMPLES:])


def tiny_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, CLASSES))


TINY = Task("digits", tiny_model, tiny_stream, rank=2)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("row", [row for row in CONTENDERS if row.of is None], ids=lambda row: row.name)
def test_everybody_learns_from_where_the_search_begins(row: Any, batch: int) -> None:
    place = places.Place("digits", batch, "digits")
    if not row.takes_part(place):
        assert row not in Comparison(Runs(Path())).at(place)
        return
    trial = Comparison.trial(row, place, 0, row.point)
    found = learn(trial, TINY)
    assert found["online"] is not None and 0.0 < found["final"] <= 1.0 and found["skipped"] == 0
    assert found["curve"][-1] == (SAMPLES, round(SAMPLES * found["online"]))
    assert found["trained"] > 0 and found["state_bytes"] >= 0
    for key in ("online", "final", "curve"):
        assert learn(trial, TINY)[key] == found[key], "the same run twice"
    model, stream = TINY.model(0).eval(), TINY.stream(0)
    optimizer = build(trial, TINY, model, stream)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        step(model, optimizer, [stream.inputs[0][:batch]], stream.targets[:batch], trial.method)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and moved == {name for name in moved if dict(model.named_parameters())[name].requires_grad}


def test_a_run_that_diverges_is_told() -> None:
    found = learn(Trial("digits", 1, 0, "sgd", {"lr": 1e30}), TINY)
    assert found["online"] is None and found["final"] is None


def small(folder: Path) -> Comparison:
    """Three of them at one place and at one that takes its options from there."""
    rows = tuple(row for row in CONTENDERS if row.name in (PEER, "LoRA, SGD", "LoKO, one setting"))
    return Comparison(Runs(folder), rows, (ON, places.Place("digits, shifted", 1, "digits")), (1, 2, 3))


def fake(folder: Path, trial: Trial, online: float | None) -> None:
    curve = [] if online is None else [(n, round(n * online)) for n in range(10, 110, 10)]
    result = {
        "online": online,
        "final": online,
        "curve": curve,
        "trained": 7,
        "state_bytes": 10**6,
        "peak_rss_bytes": 2 * 10**6,
    }
    record = {**asdict(trial), "decided_by": decided_by(trial), **environment(), **result}
    (folder / f"{trial.name}.json").write_text(json.dumps(record))


def fill(comparison: Comparison, online: Callable[[Trial], float | None]) -> Iterator[Trial]:
    """Every run of it, one after the other as they are wanted."""
    while trial := next(comparison.missing(), None):
        fake(comparison.runs.folder, trial, online(trial))
        comparison.runs.forget(trial)
        yield trial


def share(trial: Trial) -> float | None:
    """AdamW is best at one rate; SGD gets worse by 0.1 and more; LoKO is better."""
    if trial.method == "loko":
        return 0.8 + 0.01 * trial.seed
    return {"adamw": 0.7, "sgd": 0.6}[trial.method] - 0.01 * abs(trial.options["lr"] - BEST) + 0.01 * trial.seed


def test_all_that_is_wanted_is_made_once_and_told(tmp_path: Path) -> None:
    comparison = small(tmp_path)
    made = [trial.name for trial in fill(comparison, share)]
    assert len(set(made)) == len(made) <= comparison.most_runs()
    assert comparison.point(comparison.row(PEER), ON)["lr"] == BEST
    assert list(comparison.missing()) == [] == list(small(tmp_path).missing()), "files stand"
    text = page.text_of(comparison, {})
    lines = [line for line in text.splitlines() if line.startswith(("| LoRA", "| LoKO"))]
    assert len(lines) == 8, "three at each place, and two searches"
    assert [line.split(" | ")[3] for line in lines[:3]] == ["", "less", "more"]
    assert all("not measured yet" in line.split(" | ")[-1] for line in lines[:6]), "seconds"
    timed = page.text_of(comparison, {"seconds": {"digits, 1": {"LoKO, one setting": 0.5}}, "clock": "Seconds: so."})
    assert "| 25.0 |" in timed and timed.endswith("Seconds: so.\n"), "50 samples, one a step"


def test_rates_beside_the_found_one_and_a_single_seed(tmp_path: Path) -> None:
    rows = (Comparison(Runs(tmp_path)).row(PEER), Contender("beside", "adamw", of=PEER, rungs=1))
    alone = places.Place("minilm", 1, "digits", seeds=1)
    comparison = Comparison(Runs(tmp_path), rows, (ON, alone), (1, 2, 3))
    for _ in fill(comparison, share):
        pass
    assert comparison.point(rows[1], ON)["lr"] == RATES[5] > BEST
    assert len(comparison.reported(rows[1], ON)) == 3 and len(comparison.reported(rows[0], alone)) == 1
    assert rows[1] not in comparison.at(alone), "beside the digits alone"
    assert page.difference([0.5], [0.25]) == ("+0.250", "one seed")


def test_the_best_value_at_the_end_of_a_ladder_is_told(tmp_path: Path) -> None:
    comparison = small(tmp_path)
    for _ in fill(comparison, lambda trial: 0.5 if trial.method == "loko" else 1 / (1 + trial.options["lr"])):
        pass
    assert "lr, the last of its values" in page.tuned(comparison, ON)


def test_a_diverged_run_stays_in(tmp_path: Path) -> None:
    comparison = small(tmp_path)
    for _ in fill(comparison, lambda trial: None if trial.method == "sgd" and trial.seed == 2 else share(trial)):
        pass
    assert "| LoRA, SGD | diverged on 1 of 3 seeds |" in page.text_of(comparison, {})


def test_nothing_is_run_yet(tmp_path: Path) -> None:
    text = page.text_of(small(tmp_path), {})
    assert "No run has been made yet." in text and "Seconds are not measured yet." in text


def test_the_page_is_that_of_the_run_files() -> None:
    results = BENCH.parent / "docs/results"
    timing = results / "adapters_seconds.json"
    comparison = Comparison(Runs(results / "runs/adapters", past=True))
    text = page.text_of(comparison, json.loads(timing.read_bytes()) if timing.exists() else {})
    assert (results / "adapters.md").read_text() == text, "`python bench/compare_adapters.py --hours 0` writes it"


def test_other_sources_make_a_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = next(small(tmp_path).missing())
    fake(tmp_path, trial, 0.5)
    assert Runs(tmp_path).find(trial)
    monkeypatch.setattr("adapters_compared.runs.decided_by", lambda trial: {"sources": "other"})
    assert Runs(tmp_path).find(trial) is None and Runs(tmp_path, past=True).find(trial)


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("adapters/geolora.py", {"geolora"}),
        ("adapters/loko.py", {"loko", "loko, one gradient"}),
        ("adapters/layers.py", {"adamw", "geolora", "loko", "loko, one gradient"}),
        ("cli/finetune/config.py", set()),
        ("cli/finetune/docstrings.py", {"texts"}),
    ],
)
def test_only_runs_that_a_file_decides_are_made_again(
    changed: str, again: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = {method: Trial("digits", 1, 0, method) for method in ("adamw", "geolora", "loko", "loko, one gradient")}
    trials = {**methods, "texts": Trial("last layer", 1, 0, "adamw")}
    if "adamw" in again:
        again = again | {"texts"}

    def decided() -> dict[str, dict[str, Any]]:
        runs._sources.cache_clear()
        return {name: decided_by(trial) for name, trial in trials.items()}

    before, found = decided(), sources._digest_of_file
    monkeypatch.setattr(sources, "_digest_of_file", lambda path: found(path) + str(path).endswith(changed) * "x")
    after = decided()
    runs._sources.cache_clear()
    assert {name for name in trials if before[name] != after[name]} == again


def test_a_default_decides_the_runs_of_its_method_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [Trial("digits", 1, 0, method) for method in ("geolora", "adamw")]
    runs._sources.cache_clear()
    before = [decided_by(trial) for trial in trials]
    monkeypatch.setitem(METHODS, "geolora", (METHODS["geolora"][0], {**METHODS["geolora"][1], "tol": 0.5}))
    runs._sources.cache_clear()
    after = [decided_by(trial) for trial in trials]
    runs._sources.cache_clear()
    assert before[0] != after[0] and before[1] == after[1]


def test_digits_are_those_that_the_model_has_not_seen() -> None:
    pytest.importorskip("sklearn")
    one, other, turned = digits.DIGITS.stream(0), digits.DIGITS.stream(1), digits.SHIFTED.stream(0)
    assert len(one.targets) + len(one.held_targets) + digits.FIRST == 1797
    assert not torch.equal(one.targets, other.targets)
    half = len(one.targets) // 2
    assert torch.equal(turned.targets[:half], one.targets[:half])
    assert torch.equal(turned.targets[half:], (one.targets[half:] + digits.SHIFT) % 10)
    known = one.held_targets < digits.KNOWN
    right = digits.perceptron(0)(one.held_inputs[0]).argmax(1) == one.held_targets
    assert float(right[known].float().mean()) > 0.8 and not bool(right[~known].any())
