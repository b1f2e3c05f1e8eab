"""Writes docs/results/table.md: every measured rival of every bench, from the files beside it.

python bench/table.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
HEAD = "| case | rival | ms | time / baseline | of the roofline | error |\n| --- | --- | ---: | ---: | ---: | ---: |"


def sections() -> Iterator[str]:
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text())
        rows = record.get("rows") or []
        if not rows or "rival" not in rows[0]:
            continue
        yield f"## {path.stem}\n\n{facts(record)}\n\n{HEAD}\n" + "\n".join(line(row) for row in rows)


def facts(record: dict[str, Any]) -> str:
    rates = f"copy {record['copy_gb_per_s']} GB/s"
    if "product_gflop_per_s" in record:
        rates += f", float32 product {record['product_gflop_per_s']} GFLOP/s"
    return f"`{record['command']}`, {record['date'][:10]}, {record['cpu']}, {record['threads']} threads; {rates}."


def line(row: dict[str, Any]) -> str:
    roofline = row.get("roofline")
    ratio = 1.0 / row["speed_vs_baseline"]
    shown = "" if roofline is None else f"{roofline:.2f}"
    baseline = " (baseline)" if row["rival"] == row["baseline"] else ""
    return (
        f"| {row['case']} | {row['rival']}{baseline} | {1e3 * row['median_s']:.3f} | {ratio:.2f} | {shown} "
        f"| {'' if row['error'] is None else format(row['error'], '.1e')} |"
    )


def main() -> None:
    path = RESULTS / "table.md"
    path.write_text("# Measured\n\nWritten by `python bench/table.py`.\n\n" + "\n\n".join(sections()) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
