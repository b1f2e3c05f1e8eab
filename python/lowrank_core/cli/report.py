"""The end of a run: the table, `report.png`, `report.html` and `summary.json`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.defaults import BY_RATE, TUNED, listed
from lowrank_core.cli.environment import environment
from lowrank_core.cli.files import write_atomic
from lowrank_core.cli.layer_table import layer_table, searched
from lowrank_core.cli.options import flag, in_words
from lowrank_core.cli.page import folded, heading, html_table, legend, page, paragraph, plots, written
from lowrank_core.cli.palette import looks
from lowrank_core.cli.plots import comparison, layer_panels, picture
from lowrank_core.cli.series import Series, series
from lowrank_core.cli.table import megabytes, table
from lowrank_core.memory.methods import METHODS

Row = dict[str, Any]
_HEAD = ("optimizer", "val loss", "best", "state, MB", "of AdamW's", "CPU s/step", "CPU s")
# As the names of the classes have it.
NAMES = (
    {"adamw": "AdamW", "lisa": "LISA"}
    | {name: method.optimizer.partition(":")[2].removesuffix("AdamW") for name, method in METHODS.items()}
    | {"ldadam": "LDAdam"}
)
_NOTES = (
    "Losses are mean cross-entropies in nats per byte, bold on validation windows that are the same for every "
    "optimizer, thin of training, smoothed. The beginning, which falls from far above, is cut off. MB are 10^6 bytes. "
    "CPU seconds are those that this process computed in training steps, all threads together: validation, "
    "checkpoints, stops and other programs do not count."
)
_LAYERS = (
    "Lines are medians over the matrices, shades go from the least to the greatest. Captured energy is the share of a "
    "gradient's squared norm inside its subspace, at the step that chose it; overlap the mean squared cosine between a "
    "subspace and the one before. Searches count in seconds of the wall clock."
)


def write_report(folder: Path, config: TrainConfig, rows: list[Row]) -> str:
    """Writes the three files into `folder`; returns the table and where they are. `rows` are `Run.summary`s.

    Raises:
      CliError: the disk refused.
    """
    title = f"{listed(config.runs)}: {config.steps} steps of {config.bytes_per_step} bytes"
    where, found = environment(), series(folder, rows, config.bytes_per_step)
    meaning = what_it_buys(rows)
    summary = {
        "runs": [{**one.row, "layers": one.summary()} for one in found], "config": config.to_json(), **where
    }  # fmt: skip
    write_atomic(folder / "report.png", picture(found, title))
    write_atomic(folder / "report.html", page(title, _parts(config, found, where)).encode())
    write_atomic(folder / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    said = ["", textwrap.fill(meaning, 79)] if meaning else []
    return "\n".join(("", table(_HEAD, [*map(_cells, rows)]), *said, "", f"report: {folder / 'report.html'}"))


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


def _parts(config: TrainConfig, found: list[Series], where: dict[str, Any]) -> list[str]:
    rows = [one.row for one in found]
    place = [(name, str(value)) for name, value in {**where["versions"], **where["machine"]}.items()]
    options = [(flag(name), in_words(value)) for name, value in config.to_json().items()]
    said = [(what_it_buys(rows), "plain"), (_untuned(config), "note")]
    return [
        html_table(_HEAD, [*map(_cells, rows)], "numbers"),
        *(paragraph(text, kind) for text, kind in said if text),
        legend(looks(config.runs)),
        plots(comparison(found)),
        paragraph(_NOTES),
        *_layers(found),
        *_samples(config, rows),
        heading("How it was made"),
        folded("Options", html_table(("option", "value"), options)),
        folded("Versions and machine", html_table(("", ""), place)),
        *(folded(f"Layers of {one.name}", layer_table(one)) for one in found if one.layers),
    ]


def _untuned(config: TrainConfig) -> str:
    """Of which optimizers no more than the rate was tuned."""
    found = tuple(run for run in config.runs if run in BY_RATE and config.tuned(run) == TUNED[run])
    if not found:
        return ""
    return f"Of {listed(found)} the rate alone was tuned, on one seed: this run does not say what they can do."


def _layers(found: list[Series]) -> list[str]:
    parts = []
    for one in found:
        if drawn := layer_panels(one, found):
            parts += [f"<h3>{one.name}</h3>", paragraph(searched(one)), plots(drawn, "plots small")]
    return [heading("What happens in the layers"), *parts, paragraph(_LAYERS)] if parts else []


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
        f"{row['state_bytes'] / 1e6:,.2f}",
        f"{row['ratio']:.3f}",
        f"{row['seconds_per_step']:.3f}",
        f"{row['seconds']:.1f}",
    )
