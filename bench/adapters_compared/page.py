"""`docs/results/adapters.md`: written from the run files and the file of seconds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from statistics import fmean, median

from lowrank_core.cli.study.figures import UNKNOWN
from lowrank_core.cli.study.intervals import paired
from lowrank_core.cli.study.ladders import at_an_end, on_the_edge
from lowrank_core.cli.study.search import NotMade
from lowrank_core.cli.study.tables import markdown

from adapters_compared.comparison import SEEDS, Comparison
from adapters_compared.contenders import PEER, Contender
from adapters_compared.places import Place
from adapters_compared.runs import COMMAND, Record

SEEN = {-1: "less", 0: "no difference seen", 1: "more"}
EARLY = 50  # samples after which the share of right answers so far is looked at
Seconds = Mapping[str, Mapping[str, float]]  # of a step, by "task, batch" and contender
HEAD = """\
# Adapter methods compared, small-scale: rankings may flip at size

Written by `{command}` from the files in `runs/adapters/`.

A pretrained model learns a stream of samples in one pass, in steps of 1 and of 8, without a schedule and without
clipping. "Online" is the share of samples that were answered rightly before they were learned from, "final" that of
samples that are held out, after the pass. All have rank {rank} in all linear layers (AdaLoRA {rank} on average at the
end, GeoLoRA up to twice {rank}); a new head is trained whole. Each is tuned alike on seed 0, up to 12 runs for the
online share, one option after the other from the best so far, the rate followed until it is interior; reported are
seeds {seeds}, paired with tuned AdamW's. "More" and "less" stand where the 95 % interval (Student's, paired by seed)
excludes zero: with so many lines, one in twenty excludes it by chance. "LoKO, one
setting" has its defaults, which were chosen on seeds 0 to 2 of the digits and on seed 0 of the last layer.

Digits: scikit-learn's, under a perceptron (64-64-64-10) that has seen five of the ten classes. "Digits, shifted": the
labels of the second half are turned by three. The texts are docstrings of Python's standard library, to be labelled
by their package, of eight or of two, under MiniLM (22.7 million weights): "last layer" adapts its last layer alone,
"minilm" all of it. "smollm2" has them under SmolLM2, a decoder of 135 million weights, on one seed. Options are tuned
on the digits and on the last layer, and the others have the same. On the digits AdamW and GeoLoRA are run beside their
tuned rates, too.

Shares come from runs of one thread in the background; seconds are samples over the batch times those of one step,
measured in turns on a quiet machine. "Samples to AdamW's" is where the share so far is first what AdamW's is at the
end, after {early} samples, the median over the seeds; where labels turn, shares fall half-way, and it says nothing. The
state is counted by the storages behind its tensors; the peak is that of the whole process, torch and data included.

{made}"""


def text_of(comparison: Comparison, timing: Mapping[str, object]) -> str:
    """The whole page."""
    seconds: Seconds = timing.get("seconds", {})  # type: ignore[assignment]
    parts = [
        HEAD.format(command=COMMAND, rank=4, seeds=f"{SEEDS[0]} to {SEEDS[-1]}", early=EARLY, made=_made(comparison))
    ]
    for place in comparison.places:
        parts += [f"## {place.task.capitalize()}, steps of {place.batch}", table(comparison, place, seconds)]
    for place in comparison.places:
        if place.own:
            parts += [f"## What was found by tuning: {place.task}, steps of {place.batch}", tuned(comparison, place)]
    clock = timing.get("clock")
    return "\n\n".join([*parts, str(clock) if clock else "Seconds are not measured yet."]) + "\n"


def table(comparison: Comparison, place: Place, seconds: Seconds) -> str:
    """Everybody at one place."""
    head = [
        "method", "online", "difference to AdamW, 95 % interval", "seen", "final", "difference", "samples to AdamW's",
        "seconds to it", "trained", "state, MB", "peak, MB", "s/step",
    ]  # fmt: skip
    rows = []
    for row in comparison.at(place):
        step = seconds.get(f"{place.task}, {place.batch}", {}).get(row.name)
        rows.append([row.name, *_cells(comparison, row, place, step)])
    return markdown(head, rows)


def _cells(comparison: Comparison, row: Contender, place: Place, step: float | None) -> list[str]:
    clock = UNKNOWN if step is None else f"{step:.4f}"
    try:
        mine = [comparison.record(trial) for trial in comparison.reported(row, place)]
        peer = [comparison.record(trial) for trial in comparison.peers(place)]
    except NotMade:
        return [UNKNOWN, *[""] * 9, clock]
    first = mine[0]
    held = [f"{first['trained']}", f"{first['state_bytes'] / 1e6:.2f}", f"{first['peak_rss_bytes'] / 1e6:.0f}", clock]
    diverged = sum(one["online"] is None for one in mine)
    if diverged:
        return [f"diverged on {diverged} of {len(mine)} seeds", *[""] * 6, *held]
    shares = [f"{fmean(one[what] for one in mine):.3f}" for what in ("online", "final")]
    if row.name == PEER:
        return [shares[0], "", "", shares[1], "", "", "", *held]
    online, final = (([m[w] for m in mine], [p[w] for p in peer]) for w in ("online", "final"))
    samples = median(map(samples_to, mine, peer))
    there = math.isfinite(samples)
    return [
        shares[0],
        *difference(*online),
        shares[1],
        difference(*final)[0],
        f"{samples:.0f}" if there else "not reached",
        ("" if step is None else f"{samples / place.batch * step:.1f}") if there else "",
        *held,
    ]


def difference(mine: list[float], peer: list[float]) -> tuple[str, str]:
    """Of shares, with its interval, and what that says; of a single seed there is none."""
    if len(mine) == 1:
        return f"{mine[0] - peer[0]:+.3f}", "one seed"
    found = paired(mine, peer)
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})", SEEN[found.sign]


def samples_to(mine: Record, peer: Record) -> float:
    """After how many samples the share of right answers so far is the peer's at the end; infinite if never."""
    return next((float(n) for n, right in mine["curve"] if n >= EARLY and right >= peer["online"] * n), math.inf)


def tuned(comparison: Comparison, place: Place) -> str:
    """The options that were found, and what is left to say of each search."""
    rows = []
    for row in comparison.at(place):
        if not row.ladders:
            continue
        made, lacking = comparison.search(row, place)
        if not made:
            rows.append([row.name, UNKNOWN, "", "", ""])
            continue
        lowest = min(made, key=lambda one: one.loss)
        options = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in lowest.point.items())
        trials = f"{len(made)}" if lacking is None else f"{len(made)} so far"
        ends = [f"{option}, the last of its values" for option in at_an_end(row.ladders, made)]
        edge = "; ".join(on_the_edge(row.ladders, made) + ends) if lacking is None else ""
        rows.append([row.name, trials, f"{1 - lowest.loss:.3f}", options, edge])
    return markdown(["method", "trials", "online, seed 0", "options", "best at the edge"], rows)


def _made(comparison: Comparison) -> str:
    records = comparison.runs.records()
    if not records:
        return "No run has been made yet."
    kinds = Counter(record["machine"]["cpu"] for record in records)
    dates = sorted(record["date"][:10] for record in records)
    between = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    where = ", ".join(f"{count} on {kind}" for kind, count in kinds.most_common())
    return f"{len(records)} of at most {comparison.most_runs()} runs are made, one thread each, {between}: {where}."
