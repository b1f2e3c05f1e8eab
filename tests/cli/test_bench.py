"""`bench step`: its table and its JSON, what it measures, and what it refuses to time."""

from __future__ import annotations

import json
import re

import pytest
import torch
from lowrank_core.cli.bench import peak, race, spread, step
from lowrank_core.cli.bench.entry import started
from lowrank_core.cli.bench.products import LISTED
from lowrank_core.cli.bench.rivals import Rival, gradients, ours, parameters, search_always, state_bytes, torchs
from lowrank_core.cli.bench.shapes import MODELS, elements, matrices
from lowrank_core.cli.bench.timing import interleaved
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.presets import Sizes
from lowrank_core.optim import METHODS, estimate_state_bytes

TINY = ["bench", "step", "--shapes", "small", "--rank", 8, "--rounds", 1, "--threads", 1, "--no-peers"]
SHAPES = [(48, 32), (32, 48), (32, 32)]
SEARCHING = {"galore", "qgalore", "fira", "apollo", "coap", "frugal", "flora", "adarankgrad", "dct"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Both are put back: the command sets them for its whole process."""
    monkeypatch.setitem(MODELS, "small", Sizes(32, 48, 1, 100))
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_table_and_json(cli, tmp_path):
    path = tmp_path / "steps.json"
    done = cli(*TINY, "--no-memory", "--methods", "muon", "flora", "--precision", "medium", "--json", path)
    assert done.code == 0, done.err
    head = next(line for line in done.out.splitlines() if line.startswith("step"))
    assert re.split(r"\s{2,}", head.strip()) == [
        "step", "ms", "/ AdamW", "/ GaLore", "/ products", "first ms", "/ galore_torch", "refresh ms", "state MB",
        "/ AdamW", "peak MB",
    ]  # fmt: skip
    result = json.loads(path.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    own = {"galore", "galore, adafactor", "galore, lion", "galore, adabelief", "flora", "muon"}
    assert rows.keys() == {"fused AdamW", "torch Muon"} | own
    assert {name for name, row in rows.items() if row["ours"]} == own
    assert all(name in done.out for name in rows)
    assert rows["fused AdamW"]["of_adamw"] == rows["galore"]["of_galore"] == 1
    assert all(0 < row["best_s"] <= row["between_s"] for row in rows.values())
    assert {name for name, row in rows.items() if row["of_products"] is not None} == {"muon"}
    assert {name for name, row in rows.items() if row["refresh_s"] is not None} == own - {"muon"}
    shapes = {f"{i}": shape for i, shape in enumerate(matrices(MODELS["small"]))}
    assert rows["galore"]["state_bytes"] == estimate_state_bytes(shapes, "galore", rank=8)
    assert rows["galore"]["low_rank_bytes"] == 4 * sum(8 * max(shape) for shape in shapes.values())
    assert rows["muon"]["low_rank_bytes"] == 0
    # One number for each of torch's steps is no moment.
    assert rows["fused AdamW"]["state_bytes"] == 2 * 4 * result["elements"] + 4 * len(shapes)
    assert result["plan"]["precision"] == "medium" and set(result["products"]) == {"muon"}
    assert f"{sum(p['flops'] for p in result['products']['muon']) / 1e9:.2f} billion operations" in done.out


def test_galore_is_measured_unasked(cli):
    done = cli(*TINY, "--no-memory", "--methods", "sinkgd")
    assert done.code == 0 and "\ngalore " in done.out and "\nsinkgd " in done.out and "muon" not in done.out


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--rank", 32], "`--rank` must be < 32, the smallest side .* got 32; the largest allowed is 31"),
        (["--rank", 0], "--rank: must be a whole number >= 1"),
        (["--rounds", 0], "--rounds: must be a whole number >= 1"),
        (["--methods", "adam"], "--methods: invalid choice: 'adam'"),
        (["--shapes", "gpt"], "--shapes: invalid choice: 'gpt'"),
        (["--precision", "low"], "--precision: invalid choice: 'low'"),
        (["--json", "/nowhere/x"], "`--json` must be a file in a folder that can be written, got '/nowhere/x'"),
        (["--json", "/"], "`--json` must be a file"),
        (["--stagger", "--methods", "muon", "scale"], "`--stagger` must come with .* got muon, scale; name another"),
    ],
)
def test_refusals(cli, options, pattern):
    done = cli(*TINY, *options)
    assert done.code == 2 and re.search(pattern, done.err), done.err
    assert done.err.count("\n") == 1 and done.out == ""


def test_what_is_missing(cli):
    done = cli("bench")
    assert done.code == 2 and "WHAT" in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("failure", "code", "sentence"),
    [
        (KeyboardInterrupt(), 130, "lowrank-core bench: interrupted"),
        (RuntimeError("DefaultCPUAllocator: not enough memory"), 2, "out of memory; .*`--shapes small`"),
        (MemoryError(), 2, "out of memory"),
    ],
)
def test_ends_by_a_sentence(cli, monkeypatch, tmp_path, failure, code, sentence):
    def fail(self, rivals):
        raise failure

    monkeypatch.setattr(race.Race, "run", fail)
    done = cli(*TINY, "--json", tmp_path / "x.json")
    assert done.code == code and re.search(sentence, done.err) and "Traceback" not in done.err
    assert not (tmp_path / "x.json").exists()


def test_spread(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(spread, "STEPS", 6)
    monkeypatch.setattr(spread, "GAP", 3)
    path = tmp_path / "spread.json"
    done = cli(*TINY, "--stagger", "--methods", "galore", "muon", "--json", path)
    assert done.code == 0 and "slowest / median" in done.out
    (found,) = json.loads(path.read_text())["spread"].values()
    assert found["ratio"] == found["slowest_s"] / found["median_s"] >= 1


# ---- one rival -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_and_looks_when_it_is_told_to(method):
    for rival in ours([method]):
        entry = started(rival, SHAPES, gradients(SHAPES), 8, lambda: None)
        optimizer = entry.running
        assert entry.state == state_bytes(optimizer) == optimizer.state_bytes()
        for _ in range(2):
            optimizer.step()
        before = [row.refreshes for row in optimizer.projections()]
        always = search_always(optimizer)
        assert always is (method in SEARCHING and rival.name != "dct, every step"), rival.name
        if always:
            assert before == [1] * len(SHAPES)
            for _ in range(12):  # more than Q-GaLore's queue is long
                optimizer.step()
            # A choice at every step counts the steps before it, too.
            refreshes = 15 if method == "dct" else 13
            assert [row.refreshes for row in optimizer.projections()] == [refreshes] * len(SHAPES)


class Fake(torch.optim.Optimizer):
    """Adds `factor` times the gradient."""

    def __init__(self, params, factor):
        super().__init__(params, {})
        self.factor = factor

    @torch.no_grad()
    def step(self, closure=None):
        for param in self.param_groups[0]["params"]:
            param.add_(param.grad, alpha=self.factor)


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [
        (0.0, r"does not move the weight \[32, 32\] against its gradient; its times would say nothing"),
        (1.0, "does not move the weight"),
        (float("inf"), "leaves weights that are not finite"),
    ],
)
def test_a_step_that_is_none_is_not_timed(factor, sentence):
    rival = Rival("fake", "nobody's", lambda params, rank: Fake(params, factor))
    with pytest.raises(CliError, match=rf"the first step of fake \(nobody's\) {sentence}"):
        started(rival, SHAPES, gradients(SHAPES), 8, lambda: None)
    assert started(
        Rival("fake", "", lambda params, rank: Fake(params, -1.0)), SHAPES, gradients(SHAPES), 8, lambda: None
    )


def test_state_inside_of_objects_counts_once():
    class Projector:
        def __init__(self):
            self.basis = torch.zeros(4, 10)[:, :2]  # holds all ten columns
            self.again = self.basis.T

    optimizer = Fake(parameters(SHAPES), -1.0)
    state = {"projector": Projector(), "list": [torch.zeros(3)], "step": 1}
    optimizer.state[optimizer.param_groups[0]["params"][0]] = state
    assert state_bytes(optimizer) == 4 * (40 + 3)


def test_torch_takes_part():
    assert [rival.name for rival in torchs([])] == ["fused AdamW"]
    assert [rival.name for rival in torchs(["muon"])] == ["fused AdamW", "torch Muon"]


# ---- time and memory -------------------------------------------------------------------------------------------------


def test_calls_take_turns():
    seen: list[str] = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    found = interleaved(calls, 4, before=lambda: seen.append("("), after=lambda: seen.append(")"))
    rounds = [seen[i : i + 9] for i in range(0, len(seen), 9)]
    assert len(rounds) == 4 and all(sorted(one[1::3]) == ["a", "b", "c"] for one in rounds)
    assert all(one[::3] == ["("] * 3 and one[2::3] == [")"] * 3 for one in rounds)
    assert len({"".join(one[1::3]) for one in rounds}) > 1
    assert {name: len(times) for name, times in found.items()} == {"a": 4, "b": 4, "c": 4}
    assert len(interleaved(calls, 9, seconds=0.0)["a"]) == 5


def test_work_that_is_done_adds_up_to_all_of_it(monkeypatch):
    monkeypatch.setattr(race, "_SECONDS", 0.0)
    shares: list[float] = []
    rivals = [*torchs([]), *ours(["galore", "scale", "flora"])]
    entries = race.Race(SHAPES, 8, 7, shares.append, before=lambda: None).run(rivals)
    assert [entry.rival for entry in entries] == rivals
    assert 1 - 1e-9 < sum(shares) < 1 + 1e-9
    assert {len(entry.between) for entry in entries[2:]} == {3}


def test_those_that_take_many_products_are_apart():
    rivals = ours(["fira", "muon", "scale", "apollo", "trion", "sinkgd"])
    groups = race._groups(rivals)
    assert all(0 < len(some) <= race.TOGETHER for some in groups) and race._groups([]) == [[]]
    assert sorted(rival.name for some in groups for rival in some) == sorted(rival.name for rival in rivals)
    assert all(len({rival.method in LISTED for rival in some}) == 1 for some in groups)


def test_peak_is_that_of_the_step():
    if not peak._RESET.exists():
        pytest.skip("needs the peak that Linux keeps")
    shapes = [(2048, 1024)] * 2
    found = peak.peak_of("galore", "galore", shapes, 8, 1)
    assert found is not None and set(found) == set(peak.KINDS)
    assert all(0 <= size < 4 * elements(shapes) for size in found.values())
    whole = peak.peak_of("muon", "muon", shapes, 8, 1)
    assert whole is not None and whole["refresh"] is None and whole["between"] > found["between"]


def test_no_peak_where_none_is_told(monkeypatch, tmp_path):
    assert peak.peak_of("nobody", "galore", SHAPES, 8, 1) is None
    monkeypatch.setattr(peak, "_RESET", tmp_path / "missing")
    assert peak.peak_of("galore", "galore", SHAPES, 8, 1) is None


def test_peaks_are_in_the_table(cli, monkeypatch):
    monkeypatch.setattr(step, "peak_of", lambda *_: {"first": 7_000_000, "between": 5_000_000, "refresh": None})
    done = cli(*TINY, "--methods", "scale")
    assert done.code == 0 and all(line.endswith(" 7.0") for line in done.out.splitlines() if line.startswith("scale"))
