"""The result of `bench step` for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lowrank_core.cli.bench.rows import Row, as_table
from lowrank_core.cli.bench.spread import GAP, RUNS, STEPS
from lowrank_core.cli.table import table

_MEANING = (
    "ms: median of a step that looks for no subspace; ratios: medians of those within a round\n"
    "/ products: of the time of the products that the method cannot do without, by torch\n"
    "first ms: the first step, which finds all subspaces and opens the state; refresh ms: one that finds all again\n"
    "peak MB: the most that a step holds beyond weights, gradients and state"
)


def in_words(result: dict[str, Any]) -> str:
    """Machine, table, what its columns mean, and who is missing."""
    return "\n".join(_lines(result))


def _lines(result: dict[str, Any]) -> Iterator[str]:
    plan, count = result["plan"], result["elements"]
    yield (
        f"{plan['model']}, {count / 1e6:.1f} million weights, rank {plan['rank']}, float32, products at "
        f'"{plan["precision"]}"; {result["machine"]["cpu"]}, {plan["threads"]} threads'
    )
    if result["load_average_before"] > 1:
        load = result["load_average_before"]
        yield f"other work is running (load average {load:.1f}): times are too long, ratios uncertain"
    yield ""
    if "spread" in result:
        yield from _spread(result["spread"])
        return
    yield as_table([Row(**row) for row in result["rows"]])
    yield ""
    yield _MEANING
    for name, products in result["products"].items():
        yield f"products of {name}: {sum(product['flops'] for product in products) / 1e9:.2f} billion operations"
    for name, why in result["not_measured"].items():
        yield f"not measured: {name} ({why})"


def _spread(found: dict[str, dict[str, float]]) -> Iterator[str]:
    yield table(
        ("step", "median ms", "slowest ms", "slowest / median", "in one run"),
        [
            (
                name,
                f"{1e3 * spread['median_s']:.2f}",
                f"{1e3 * spread['slowest_s']:.2f}",
                f"{spread['ratio']:.2f}",
                f"{spread['of_one_run']:.2f}",
            )
            for name, spread in found.items()
        ],
    )
    yield ""
    yield f"{STEPS} steps, refreshes spread over a gap of {GAP}, step 0 aside; each step the least of {RUNS} equal runs"
