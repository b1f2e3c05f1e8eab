"""`lowrank-core bench step`: the optimizers' steps beside each other, in time and memory."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from lowrank_core import atomic
from lowrank_core.cli.bench.field import rivals_of
from lowrank_core.cli.bench.peak import peak_of
from lowrank_core.cli.bench.products import LISTED, products_of
from lowrank_core.cli.bench.race import Race
from lowrank_core.cli.bench.rivals import Rival
from lowrank_core.cli.bench.rows import Peak, rows_of
from lowrank_core.cli.bench.shapes import MODELS, Shapes, elements, matrices
from lowrank_core.cli.bench.spread import spread_of, staggering
from lowrank_core.cli.bench.words import in_words
from lowrank_core.cli.environment import environment
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.memory import is_out_of_memory
from lowrank_core.memory.methods import METHODS


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    model: str
    rank: int
    rounds: int
    threads: int
    precision: str
    methods: tuple[str, ...]
    peers: bool = True
    memory: bool = True
    stagger: bool = False

    @property
    def shapes(self) -> Shapes:
        return matrices(MODELS[self.model])


def run(options: argparse.Namespace) -> int:
    """Measures, prints the table, and writes the same as JSON where that was asked for."""
    target = _target(options.json)
    plan = plan_of(options)
    try:
        result = measured(plan)
    except RuntimeError as failure:
        if not is_out_of_memory(failure):
            raise
        raise CliError("out of memory; free some, or ask for `--shapes small` or for fewer `--methods`") from failure
    print(in_words(result))
    if target is not None:
        atomic.write_atomic(target, (json.dumps(result, indent=1) + "\n").encode())
        print(f"wrote {target}")
    return 0


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that `options` ask for.

    Raises:
      CliError: the rank is none, or no method spreads its refreshes.
    """
    methods = tuple(dict.fromkeys(options.methods or METHODS))
    shorter = min(min(shape) for shape in matrices(MODELS[options.shapes]))
    if options.rank >= shorter:
        raise CliError(
            f"`--rank` must be < {shorter}, the smallest side of a matrix of {options.shapes}, got {options.rank}; "
            f"the largest allowed is {shorter - 1}"
        )
    if options.stagger and not staggering(methods):
        raise CliError(
            f"`--stagger` must come with a method that looks for subspaces once in a while, got {', '.join(methods)}; "
            "name another one in `--methods`"
        )
    threads = options.threads or torch.get_num_threads()
    return Plan(
        options.shapes, options.rank, options.rounds, threads, options.precision, methods,
        options.peers, options.memory, options.stagger,
    )  # fmt: skip


def measured(plan: Plan) -> dict[str, Any]:
    """All of `plan`, as plain values for JSON."""
    load = os.getloadavg()[0]
    torch.set_num_threads(plan.threads)
    torch.set_float32_matmul_precision(plan.precision)
    facts = {"plan": asdict(plan), "elements": elements(plan.shapes), "load_average_before": load, **environment()}
    if plan.stagger:
        return {**facts, "spread": _spread(plan)}
    rivals, absent = rivals_of(plan.methods, with_peers=plan.peers)
    with tqdm(total=100, desc="steps", unit="%", disable=None, bar_format="{l_bar}{bar}| {elapsed}") as bar:
        entries = Race(plan.shapes, plan.rank, plan.rounds, _percent(bar)).run(rivals)
    peaks = peaks_of(plan, rivals) if plan.memory else {}
    listed = {name: products_of(name, plan.shapes, plan.rank) for name in LISTED if name in plan.methods}
    products = {name: [{**p._asdict(), "flops": p.flops} for p in each] for name, each in listed.items()}
    rows = [asdict(row) for row in rows_of(entries, peaks)]
    return {**facts, "rows": rows, "not_measured": absent, "products": products}


def _percent(bar: Any, parts: int = 1) -> Callable[[float], object]:
    """Moves `bar` by a share of one of so many equal parts of the work."""
    return lambda share: bar.update(100 * share / parts)


def _target(path: str | None) -> Path | None:
    """Where the JSON goes; refused before anything is measured if it cannot."""
    if path is None:
        return None
    target = Path(path)
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise CliError(f"`--json` must be a file in a folder that can be written, got '{path}'; choose another")
    return target


def peaks_of(plan: Plan, rivals: list[Rival]) -> dict[str, Peak]:
    """Of each rival whose process ended well, by name."""
    found: dict[str, Peak] = {}
    for rival in tqdm(rivals, desc="memory", unit="step", disable=None):
        peak = peak_of(rival.name, rival.method, plan.shapes, plan.rank, plan.threads)
        if peak is not None:
            found[rival.name] = peak
    return found


def _spread(plan: Plan) -> dict[str, Any]:
    names, found = staggering(plan.methods), {}
    with tqdm(total=100, desc="spread", unit="%", disable=None, bar_format="{l_bar}{bar}| {elapsed}") as bar:
        for name in names:
            tick = _percent(bar, len(names))
            found[name] = spread_of(name, plan.shapes, plan.rank, tick)._asdict()
    return found
