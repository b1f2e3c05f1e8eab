"""The comparison as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lowrank_core.cli.study import figures
from lowrank_core.cli.study.contenders import Contender
from lowrank_core.cli.study.figures import UNKNOWN, Figures
from lowrank_core.cli.study.ladders import best, on_the_edge
from lowrank_core.cli.study.search import NotMade
from lowrank_core.cli.study.sizes import Size, longer, thinner
from lowrank_core.cli.study.stages import ABLATED, PEERS, Study

Seconds = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # by size, contender and what was measured


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table; the first column flush left, the others flush right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_short(study: Study, seconds: Seconds) -> str:
    """One line for each: state, time of a step, difference at both sizes, verdict, and the rate given AdamW's."""
    head = [
        "optimizer", "state, of AdamW's", "s/step, of AdamW's", "small: difference to AdamW",
        "large: difference to AdamW", "verdict", "its `lr`, of AdamW's",
    ]  # fmt: skip
    rows = []
    for row in study.contenders:
        peer = row.name == PEERS[0]
        small, large = (figures.of(study, row, size) for size in (study.small, study.large))
        losses = ["", "", ""] if peer else [difference(small), difference(large), figures.verdict(small, large)]
        rows.append([row.name, _state(study, row), _slowdown(study, row, seconds), *losses, rate_rule(study, row)])
    return markdown(head, rows)


def _state(study: Study, row: Contender) -> str:
    """Of the largest size where both have a run, if only one of the search."""
    for size in (study.large, study.small):
        held = [figures.state_bytes(study, one, size) for one in (row, study.row(PEERS[0]))]
        if all(held):
            return f"{held[0] / held[1]:.2f}"
    return UNKNOWN


def _slowdown(study: Study, row: Contender, seconds: Seconds) -> str:
    """Of the largest size that was timed."""
    for size in (study.large, study.small):
        rows = seconds.get(size.name, {})
        mine, peer = (rows.get(name, {}).get("seconds_per_step") for name in (row.name, PEERS[0]))
        if mine and peer:
            return f"{mine / peer:.2f}"
    return UNKNOWN


def rate_rule(study: Study, row: Contender) -> str:
    """The tuned rate of the matrices as a multiple of tuned AdamW's, at each size."""
    peer = study.row(PEERS[0])
    found = []
    for size in (study.small, study.large):
        mine, theirs = (figures.point_of(study, one, size) for one in (row, peer))
        if mine is not None and theirs is not None:
            found.append(f"{mine['lr'] / theirs['lr']:.3g} {size.name}")
    return ", ".join(found) or UNKNOWN


def of_size(study: Study, size: Size, seconds: Seconds) -> str:
    """One size in full."""
    head = [
        "optimizer",
        "final val loss",
        "difference to AdamW, 95 % interval",
        "seen",
        "steps to AdamW's loss",
        "seconds to it",
        "state, MB",
        "of AdamW's",
        "peak memory, MB",
        "s/step",
        "of it refreshes",
    ]
    rows = []
    for row in study.contenders:
        found, timed = figures.of(study, row, size), seconds.get(size.name, {}).get(row.name, {})
        rows.append([row.name, *_cells(found, row.name == PEERS[0], timed)])
    return markdown(head, rows)


def tuned(study: Study) -> str:
    """The options that were found, and what is left to say of the search."""
    head = [
        "optimizer", "trials", "loss, seed 0", "lr", "lr_others", "beta2", "decay", "its own", "lr at the large size",
        "best at the edge",
    ]  # fmt: skip
    return markdown(head, [[row.name, *_search(study, row)] for row in study.contenders])


def _search(study: Study, row: Contender) -> list[str]:
    tried, ended = study.tried(row)
    if not tried:
        return [UNKNOWN, *[""] * 8]
    point, lowest = best(tried)
    common = ("lr", "lr_others", "beta2", "weight_decay")
    large = figures.point_of(study, row, study.large)
    return [
        str(len(tried)) if ended else f"{len(tried)} so far",
        f"{lowest:.4f}",
        *(f"{point[key]:g}" if key in point else "as lr" for key in common),
        ", ".join(f"{key} {value:g}" for key, value in point.items() if key not in common),
        UNKNOWN if large is None else f"{large['lr']:g}",
        ", ".join(on_the_edge(row.ladders, tried)) if ended else "",
    ]


def ablations(study: Study) -> str:
    """The tuned default with one key otherwise, paired with itself."""
    head = [f"{ABLATED}, tuned, but", "final val loss", f"difference to {ABLATED}, 95 % interval", "seen", "state, MB"]
    rows = []
    for name, options, keys in study.ablations:
        try:
            changed = figures.figures(study, study.ablation(options, keys), study.small)
            kept = figures.figures(study, study.runs(study.row(ABLATED), study.small), study.small)
        except NotMade:
            rows.append([name, UNKNOWN, "", "", ""])
            continue
        pair = Figures(changed.losses, kept.losses, 0.0, changed.state_bytes, 0, 0.0)
        rows.append([name, loss(changed), difference(pair), seen(pair), f"{pair.state_bytes / 1e6:.2f}"])
    return markdown(head, rows)


def followed(study: Study) -> str:
    """Both AdamWs and the best methods, for twice the steps and at half the rank."""
    head = ["optimizer", "twice the steps: difference to AdamW", "seen", "rank d/8: difference to AdamW", "seen"]
    try:
        rows = study.followed()
    except NotMade:
        return "Which methods are the best is not measured yet."
    cells = []
    for row in rows:
        found = [figures.of(study, row, size) for size in (longer(study.small), thinner(study.small))]
        peer = row.name == PEERS[0]
        cells.append([row.name, *("" if peer else cell for one in found for cell in (difference(one), seen(one)))])
    return markdown(head, cells)


def loss(found: Figures) -> str:
    """The mean over seeds."""
    value = figures.mean(found.losses)
    return f"{value:.4f}" if math.isfinite(value) else f"diverged on {found.diverged} of {len(found.losses)} seeds"


def difference(found: Figures | None) -> str:
    """A mean and its interval."""
    if found is None:
        return UNKNOWN
    between = found.difference
    if between is None:
        return f"diverged on {found.diverged} of {len(found.losses)} seeds"
    return f"{between.mean:+.4f} ({between.low:+.4f} to {between.high:+.4f})"


def seen(found: Figures | None) -> str:
    """What the interval of one size shows."""
    between = None if found is None else found.difference
    if between is None:
        return ""
    return {-1: "less", 0: figures.NEITHER, 1: "more"}[between.sign]


def _cells(found: Figures | None, is_peer: bool, timed: Mapping[str, float | None]) -> list[str]:
    step, share = timed.get("seconds_per_step"), timed.get("refresh_share")
    clock = [UNKNOWN if step is None else f"{step:.4f}", "" if share is None else f"{share:.2f}"]
    if found is None:
        return [UNKNOWN, *[""] * 7, *clock]
    there = math.isfinite(found.steps_to_peer)
    return [
        loss(found),
        "" if is_peer else difference(found),
        "" if is_peer else seen(found),
        f"{found.steps_to_peer:.0f}" if there else "not reached",
        (UNKNOWN if step is None else f"{found.steps_to_peer * step:.1f}") if there else "",
        f"{found.state_bytes / 1e6:.2f}",
        f"{found.ratio:.2f}",
        f"{found.peak_rss_bytes / 1e6:.0f}",
        *clock,
    ]
