"""The end of a run of `finetune`: the table, `report.png`, `report.html` and `summary.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lowrank_core.cli import metrics
from lowrank_core.cli.environment import environment
from lowrank_core.cli.files import METRICS_FILE, write_atomic
from lowrank_core.cli.finetune.config import CLASSIFICATION, FinetuneConfig
from lowrank_core.cli.finetune.panels import CAPTION, PANELS
from lowrank_core.cli.options import flag, in_words
from lowrank_core.cli.page import folded, heading, html_table, legend, page, paragraph, plots
from lowrank_core.cli.palette import looks
from lowrank_core.cli.plots import comparison, picture
from lowrank_core.cli.series import Series
from lowrank_core.cli.table import table

_HEAD = ("method", "accuracy", "best", "val loss", "samples", "trained", "state, MB", "CPU s/step", "CPU s")
_WHAT = {
    True: "Accuracy is the share of the held-out texts whose label is the likeliest.",
    False: "Accuracy is the share of the held-out tokens that are the likeliest after what stands before them.",
}
_NOTES = (
    " Losses are mean cross-entropies in nats. Trained are the numbers of adapter and head. MB are 10^6 bytes. CPU "
    "seconds are those that this process computed in training steps, all threads together. One run on one seed ranks "
    "nothing."
)


def write_report(folder: Path, config: FinetuneConfig, row: dict[str, Any]) -> str:
    """Writes the three files into `folder`; returns the table and where they are. `row` is `Tuning.summary`'s.

    Raises:
      CliError: the disk refused.
    """
    title = f"{config.method}: {config.steps} steps of {config.bytes_per_step} samples, {config.task}"
    where, found = environment(), [_series(folder, config, row)]
    summary = {"runs": [row], "config": config.to_json(), **where}
    write_atomic(folder / "report.png", picture(found, title, PANELS, CAPTION))
    write_atomic(folder / "report.html", page(title, _parts(config, found, where)).encode())
    write_atomic(folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    said = (f"adapter: {folder}, for `peft.PeftModel.from_pretrained`", f"report: {folder / 'report.html'}")
    return "\n".join(("", table(_HEAD, [_cells(row)]), "", *said))


def _series(folder: Path, config: FinetuneConfig, row: dict[str, Any]) -> Series:
    lines = [line for line in metrics.read(folder / METRICS_FILE) if line["run"] == config.method]
    train, val, ranks = ([x for x in lines if x["event"] == event] for event in ("train", "eval", "ranks"))
    return Series({**row, "steps": config.steps}, train, val, ranks, config.bytes_per_step)


def _parts(config: FinetuneConfig, found: list[Series], where: dict[str, Any]) -> list[str]:
    place = [(name, str(value)) for name, value in {**where["versions"], **where["machine"]}.items()]
    options = [(flag(name), in_words(value)) for name, value in config.to_json().items()]
    ranks = found[0].row["ranks"] or {}
    return [
        html_table(_HEAD, [_cells(one.row) for one in found], "numbers"),
        legend(looks(config.runs)),
        plots(comparison(found, PANELS)),
        paragraph(_WHAT[config.task == CLASSIFICATION] + _NOTES),
        heading("How it was made"),
        folded("Options", html_table(("option", "value"), options)),
        folded("Versions and machine", html_table(("", ""), place)),
        *([folded("Ranks", html_table(("layer", "rank"), [(k, str(v)) for k, v in ranks.items()]))] if ranks else []),
    ]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["optimizer"],
        f"{row['accuracy']:.4f}",
        f"{row['best_accuracy']:.4f}",
        f"{row['val_loss']:.4f}",
        f"{row['samples']:,}",
        f"{row['trained']:,}",
        f"{row['state_bytes'] / 1e6:,.2f}",
        f"{row['seconds_per_step']:.3f}",
        f"{row['seconds']:.1f}",
    )
