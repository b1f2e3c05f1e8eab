"""The end of a run: the table, `report.png`, `report.html` and `summary.json`."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.environment import environment
from lowrank_core.cli.files import METRICS_FILE, write_atomic
from lowrank_core.cli.metrics import read
from lowrank_core.cli.options import flag
from lowrank_core.cli.plots import plot
from lowrank_core.cli.table import megabytes, table

_HEAD = ("optimizer", "final val loss", "best val loss", "optimizer state", "of AdamW's", "s/step", "seconds")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #37352f; max-width: 72rem; margin: auto; padding: 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0 }} img {{ max-width: 100% }}
th, td {{ padding: .3rem .9rem; border-bottom: 1px solid #e3e2e0; text-align: right }}
th:first-child, td:first-child {{ text-align: left }} details {{ margin: 1rem 0 }}
</style></head><body>
<h1>{title}</h1>
{results}
<img src="data:image/png;base64,{picture}" alt="Loss, optimizer memory and captured energy">
<p>Losses are mean cross-entropies in nats per byte; the validation windows are the same for every optimizer.
Seconds are those of training steps alone, without validation and checkpoints. Captured energy is the share of a
gradient's squared norm that lies in the subspace, at the step that chose it.</p>
<details><summary>Options</summary>{options}</details>
<details><summary>Where it ran</summary>{place}</details>
</body></html>
"""


def write_report(folder: Path, config: TrainConfig, rows: list[dict[str, Any]]) -> str:
    """Writes the three files into `folder`; returns the table and where they are. `rows` are `Run.summary`s.

    Raises:
      CliError: the disk refused.
    """
    title = f"{' and '.join(config.runs)}: {config.steps} steps of {config.bytes_per_step} bytes"
    cells = [_cells(row) for row in rows]
    where = environment()
    picture = plot(list(read(folder / METRICS_FILE)), rows, title)
    place = [(name, str(value)) for name, value in {**where["versions"], **where["machine"]}.items()]
    page = _PAGE.format(
        title=html.escape(title),
        results=_html_table(_HEAD, cells),
        picture=base64.b64encode(picture).decode(),
        options=_html_table(("option", "value"), [(flag(k), str(v)) for k, v in config.to_json().items()]),
        place=_html_table(("", ""), place),
    )
    summary = {"runs": rows, "config": config.to_json(), **where}
    write_atomic(folder / "report.png", picture)
    write_atomic(folder / "report.html", page.encode())
    write_atomic(folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    return f"\n{table(_HEAD, cells)}\n\nreport: {folder / 'report.html'}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["optimizer"],
        f"{row['val_loss']:.4f}",
        f"{row['best_val_loss']:.4f}",
        megabytes(row["state_bytes"]),
        f"{row['ratio']:.3f}",
        f"{row['seconds_per_step']:.3f}",
        f"{row['seconds']:.1f}",
    )


def _html_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    def line(tag: str, cells: tuple[str, ...]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"
