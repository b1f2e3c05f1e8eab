"""The end of a run: the table, `report.png`, `report.html` and `summary.json`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.defaults import listed
from lowrank_core.cli.environment import environment
from lowrank_core.cli.files import METRICS_FILE, write_atomic
from lowrank_core.cli.metrics import read
from lowrank_core.cli.options import flag, in_words
from lowrank_core.cli.page import folded, heading, html_table, page, paragraph, written
from lowrank_core.cli.plots import panels, picture
from lowrank_core.cli.table import megabytes, table
from lowrank_core.memory.methods import METHODS

Row = dict[str, Any]
_HEAD = (
    "optimizer", "final val loss", "best val loss", "optimizer state", "of AdamW's", "CPU s/step", "CPU seconds",
)  # fmt: skip
# As the names of the classes have it.
NAMES = {"adamw": "AdamW", "lisa": "LISA"} | {
    name: method.optimizer.partition(":")[2].removesuffix("AdamW") for name, method in METHODS.items()
}
_NOTES = (
    "Losses are mean cross-entropies in nats per byte; the validation windows are the same for every optimizer. CPU "
    "seconds are those that this process computed in training steps, all threads together: validation, checkpoints, "
    "stops and other programs do not count. The energy outside a subspace is the share of a gradient's squared norm "
    "that the subspace leaves out, at the step that chose it."
)


def write_report(folder: Path, config: TrainConfig, rows: list[Row]) -> str:
    """Writes the three files into `folder`; returns the table and where they are. `rows` are `Run.summary`s.

    Raises:
      CliError: the disk refused.
    """
    title = f"{listed(config.runs)}: {config.steps} steps of {config.bytes_per_step} bytes"
    where, lines = environment(), list(read(folder / METRICS_FILE))
    cells = [_cells(row) for row in rows]
    meaning = what_it_buys(rows)
    summary = {"runs": rows, "config": config.to_json(), **where}
    write_atomic(folder / "report.png", picture(lines, rows, title))
    write_atomic(folder / "report.html", page(title, _parts(config, rows, panels(lines, rows), where)).encode())
    write_atomic(folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    said = ["", textwrap.fill(meaning, 100)] if meaning else []
    return "\n".join(("", table(_HEAD, cells), *said, "", f"report: {folder / 'report.html'}"))


def what_it_buys(rows: list[Row]) -> str:
    """What the memory of a projected optimizer buys beside others, and what it does not; empty for one run."""
    if len(rows) < 2:
        return ""
    if len(rows) > 2:
        return _of_several(rows)
    ours, other = sorted(rows, key=lambda row: row["optimizer"] == "adamw")
    name, beside = NAMES[ours["optimizer"]], NAMES[other["optimizer"]]
    spared, apart = other["state_bytes"] - ours["state_bytes"], ours["val_loss"] - other["val_loss"]
    bought = f"{name} holds {megabytes(abs(spared))} {'less' if spared > 0 else 'more'} optimizer state than {beside}"
    if spared > 0:
        bought += ", which is room for a larger model or batch"
    elif other["optimizer"] == "adamw":
        bought += " here: use AdamW, or a lower rank"
    return (
        f"{bought}. It saves nothing else: weights, gradients and activations take what they take with {beside}. Its "
        f"final loss is {abs(apart):.4f} {'above' if apart > 0 else 'below'} {beside}'s, on one seed, which ranks "
        "nothing."
    )


def _of_several(rows: list[Row]) -> str:
    least, most = (choice(rows, key=lambda row: row["state_bytes"]) for choice in (min, max))
    best, worst = (choice(rows, key=lambda row: row["val_loss"]) for choice in (min, max))
    return (
        f"{NAMES[least['optimizer']]} holds the least optimizer state, {megabytes(least['state_bytes'])}, and "
        f"{NAMES[most['optimizer']]} the most, {megabytes(most['state_bytes'])}. That is all that differs in memory: "
        "weights, gradients and activations take the same with all. Final losses go from "
        f"{best['val_loss']:.4f} ({NAMES[best['optimizer']]}) to {worst['val_loss']:.4f} "
        f"({NAMES[worst['optimizer']]}), on one seed, which ranks nothing."
    )


def _parts(config: TrainConfig, rows: list[Row], plots: list[str], where: dict[str, Any]) -> list[str]:
    columns = [[name, *values] for name, *values in zip(_HEAD, *map(_cells, rows), strict=True)]
    place = [(name, str(value)) for name, value in {**where["versions"], **where["machine"]}.items()]
    options = [(flag(name), in_words(value)) for name, value in config.to_json().items()]
    meaning = what_it_buys(rows)
    return [
        html_table(columns[0], columns[1:], "numbers"),
        *([paragraph(meaning, "plain")] if meaning else []),
        f'<div class="plots">{"".join(f"<figure>{plot}</figure>" for plot in plots)}</div>',
        paragraph(_NOTES),
        *_samples(config, rows),
        heading("How it was made"),
        folded("Options", html_table(("option", "value"), options)),
        folded("Versions and machine", html_table(("", ""), place)),
    ]


def _samples(config: TrainConfig, rows: list[Row]) -> list[str]:
    first = rows[0]["sample"]
    said = (
        "Each was given the grey bytes of the held-out text and wrote the rest: drawn byte by byte at temperature "
        f"{first['temperature']:g}, seed {config.seed}. What is no text is shown as \N{REPLACEMENT CHARACTER}."
    )
    texts = [f"<h3>{row['optimizer']}</h3>{written(row['sample']['prompt'], row['sample']['text'])}" for row in rows]
    return [heading("What the models write"), paragraph(said), *texts]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row["optimizer"],
        f"{row['val_loss']:.4f}",
        f"{row['best_val_loss']:.4f}",
        megabytes(row["state_bytes"]),
        f"{row['ratio']:.3f}",
        f"{row['seconds_per_step']:.3f}",
        f"{row['seconds']:.1f}",
    )
