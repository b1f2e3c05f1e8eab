"""`lowrank-core bench step` for docs/results: its table, and which of the targets each method reaches.

    python bench/bench_step.py [--threads 2] [--rounds 7] [--only llama-130m small medium spread memory]

Results of parts that are left out stay as they are in the file. Peers take part where they are installed:
pip install '.[bench]'.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from _harness import ROOT, Bench, Row
from lowrank_core.cli.bench.field import rivals_of
from lowrank_core.cli.bench.products import LISTED
from lowrank_core.cli.bench.rivals import ADAMW, GALORE
from lowrank_core.cli.bench.shapes import MODELS, elements, matrices
from lowrank_core.cli.bench.step import Plan, measured, peaks_of
from lowrank_core.memory.methods import METHODS

NAME = "bench_step"
RANKS = {"llama-130m": 128, "small": 64}
PARTS = (*RANKS, "medium", "spread", "memory")
ALONE = ("galore",)  # what is also measured with products at "medium", and whose 400 steps are taken three times


class Target(NamedTuple):
    """A number and what it should be at most."""

    what: str
    value: float
    limit: float


def plan(model: str, options: argparse.Namespace, **others: Any) -> Plan:
    given = {"rank": RANKS[model], "rounds": options.rounds, "threads": options.threads, "precision": "highest"}
    return Plan(**{"model": model, "methods": tuple(METHODS), "memory": False, **given, **others})


def part(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What one part finds."""
    if name in RANKS:
        return measured(plan(name, options))
    if name in ("medium", "spread"):
        return measured(plan("llama-130m", options, methods=ALONE, precision="medium", stagger=name == "spread"))
    chosen = plan("llama-130m", options)
    rivals, _ = rivals_of(chosen.methods, with_peers=False)
    return {"plan": asdict(chosen), "peaks": peaks_of(chosen, rivals)}


def targets(found: dict[str, Any]) -> Iterator[Target]:
    """All of the parts that were measured."""
    for row in found.get("llama-130m", {}).get("rows", []):
        yield from large(row)
    for row in found.get("medium", {}).get("rows", []):
        if row["name"] == GALORE:
            yield Target('first step / galore_torch\'s, both at "medium"', row["first_of_galore_torch"], 0.07)
    for row in found.get("small", {}).get("rows", []):
        if row["ours"]:
            limit = 2.0 if row["name"] == GALORE else 2.3
            yield Target(f"small, rank 64: {row['name']} / {ADAMW}", row["of_adamw"], limit)
    for name, spread in found.get("spread", {}).get("spread", {}).items():
        yield Target(f"slowest step / median, {name}", spread["ratio"], 1.25)
    yield from peaks(found)


def large(row: dict[str, Any]) -> Iterator[Target]:
    """Of a method of ours on Llama-130M's shapes."""
    name = row["name"]
    if not row["ours"] or name == GALORE:
        if name == GALORE and row["first_of_galore_torch"] is not None:
            yield Target("first step / galore_torch's", row["first_of_galore_torch"], 0.07)
        return
    if name in LISTED:
        yield Target(f"{name} / its products", row["of_products"], 1.3)
    else:
        yield Target(f"{name} / {GALORE}", row["of_galore"], 1.5 if name == "dct, every step" else 1.3)
    if name == "qgalore":
        yield Target(f"state of qgalore / of {ADAMW}", row["state_of_adamw"], 1 / 20)
    if name == "apollo":  # two moments as large as the low-rank gradient, a few numbers for each weight, no basis
        yield Target("state of apollo / its moments", row["state_bytes"] / (2 * row["low_rank_bytes"]), 1.001)


def peaks(found: dict[str, Any]) -> Iterator[Target]:
    """The memory that a step of ours needs, in units of what it may need."""
    weights = 4 * elements(matrices(MODELS["llama-130m"]))
    lows = {row["name"]: row["low_rank_bytes"] for row in found.get("llama-130m", {}).get("rows", []) if row["ours"]}
    for name, kinds in found.get("memory", {}).get("peaks", {}).items():
        for kind, size in kinds.items():
            if name in lows and size is not None:
                allowed = lows[name] + 0.02 * weights
                yield Target(f"peak memory of {name}, {kind} / low-rank gradients and 2 %", size / allowed, 1.0)


def table_rows(found: dict[str, Any]) -> Iterator[Row]:
    """Of one part, as those of other benches."""
    rows = found.get("rows", [])
    if not rows:
        return
    case = "{model}, rank {rank}, {precision}".format(**found["plan"])
    best = next(row["best_s"] for row in rows if row["name"] == ADAMW)
    for row in rows:
        yield Row(
            case=case,
            rival=row["name"],
            baseline=ADAMW,
            median_s=row["between_s"],
            quartiles_s=row["quartiles_s"],
            best_s=row["best_s"],
            speed_vs_baseline=1 / row["of_adamw"],
            best_speed_vs_baseline=best / row["best_s"],
            error=None,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for torch and for lowrank_core")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="parts that are measured")
    options = parser.parse_args()
    path = ROOT / "docs" / "results" / f"{NAME}.json"
    bench = Bench(NAME, rounds=options.rounds, threads=options.threads)
    new = {}
    for name in options.only:
        new[name] = {**part(name, options), "command": " ".join(["python", "bench/bench_step.py", *sys.argv[1:]])}
    found = {**(json.loads(path.read_text())["parts"] if path.exists() else {}), **new}
    reached = list(targets(found))
    for target in reached:
        verdict = "reaches" if target.value <= target.limit else "MISSES"
        print(f"{target.what}: {target.value:.3f}, {verdict} {target.limit:g}")
    for name in (*RANKS, "medium"):
        bench.rows += table_rows(found.get(name, {}))
    bench.finish(targets=[target._asdict() for target in reached], parts=found)


if __name__ == "__main__":
    main()
