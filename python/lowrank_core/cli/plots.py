"""The report's plots: loss against steps and seconds, optimizer memory, what the subspaces leave out."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lowrank_core.cli.defaults import takers
from lowrank_core.cli.metrics import Line

COLORS = {"first": "#0b6e99", "second": "#d9730d"}  # of the optimizers of a run, in its order
_INK, _FAINT, _GRID = "#37352f", "#9b9a97", "#ececec"
# Each color of the plots, and the name by which the page sets it for light and dark screens.
VARIABLES = {**{color: name for name, color in COLORS.items()}, _INK: "ink", _FAINT: "faint", _GRID: "grid"}
_STYLE: Any = {
    "font.size": 10, "font.family": "sans-serif", "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "axes.edgecolor": _FAINT, "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _INK,
    "ytick.color": _INK, "grid.color": _GRID, "legend.frameon": False, "lines.linewidth": 1.8, "svg.fonttype": "none",
}  # fmt: skip
_SMALLEST_SHARE = float(np.finfo(np.float32).eps)  # below it, a share of energy is rounding
Row = dict[str, Any]


def picture(lines: list[Line], rows: list[Row], title: str) -> bytes:
    """All plots under `title`, as PNG bytes; `lines` of metrics.jsonl, `rows` of the final table."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(12, 8.4), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        for axes, draw in zip(figure.subplots(2, 2).flat, _PLOTS.values(), strict=True):
            draw(axes, lines, rows)
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        out = io.BytesIO()
        figure.savefig(out, format="png")
    return out.getvalue()


def panels(lines: list[Line], rows: list[Row]) -> list[str]:
    """Each plot as an `<svg>` element without background that takes its colors from CSS variables, see `VARIABLES`."""
    return [_svg(name, lines, rows) for name in _PLOTS]


def _svg(name: str, lines: list[Line], rows: list[Row]) -> str:
    # The salt makes the names of clips and markers a function of the plot: equal runs give equal pages, and two plots
    # of one page share no name.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.6, 3.5), layout="constrained")
        FigureCanvasSVG(figure)
        _PLOTS[name](figure.subplots(), lines, rows)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg ") :].replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return text


def _by_step(axes: Axes, lines: list[Line], rows: list[Row]) -> None:
    axes.set_title("Loss against steps")
    _losses(axes, lines, rows, "step", "optimizer step")


def _by_time(axes: Axes, lines: list[Line], rows: list[Row]) -> None:
    axes.set_title("Loss against compute")
    _losses(axes, lines, rows, "seconds", "CPU seconds of training")


def _losses(axes: Axes, lines: list[Line], rows: list[Row], key: str, label: str) -> None:
    for row in rows:
        mine = [line for line in lines if line["run"] == row["optimizer"]]
        train = [line for line in mine if line["event"] == "train"]
        val = [line for line in mine if line["event"] == "eval"]
        color = _color(row["optimizer"], rows)
        smooth = _smooth([x["train_loss"] for x in train])
        axes.plot([x[key] for x in train], smooth, color=color, alpha=0.35, lw=1.0)
        axes.plot(
            [x[key] for x in val], [x["val_loss"] for x in val], color=color, marker="o", ms=4,
            label=f"{row['optimizer']}, final {row['val_loss']:.3f}",
        )  # fmt: skip
    axes.set(xlabel=label, ylabel="loss (nats per byte)")
    axes.set_xlim(left=0)
    # The first steps fall from far above; what sets the curves apart is further down.
    axes.set_ylim(top=2 * min(row["best_val_loss"] for row in rows))
    axes.legend(title="validation (faint: training, smoothed)", title_fontsize=9, alignment="left")


def _memory(axes: Axes, lines: list[Line], rows: list[Row]) -> None:
    axes.set_title("Optimizer state")
    names = [row["optimizer"] for row in rows]
    sizes = [row["state_bytes"] / 1e6 for row in rows]
    bars = axes.barh(names, sizes, color=[_color(name, rows) for name in names], height=0.45)
    axes.bar_label(
        bars,
        [f"{s:.1f} MB\n{row['ratio']:.2f} of AdamW's" for s, row in zip(sizes, rows, strict=True)],
        padding=6,
    )
    axes.set(xlabel="MB (10^6 bytes)", xlim=(0, 1.45 * max(sizes)), ylim=(len(rows) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)


def _subspace(axes: Axes, lines: list[Line], rows: list[Row]) -> None:
    refreshes = [line for line in lines if line["event"] == "refresh"]
    if not refreshes:
        axes.set_title("Energy outside the subspaces")
        axes.set_axis_off()
        projected = any(row["optimizer"] in takers("rank") for row in rows)
        why = (
            "a subspace that is drawn or that moves at each step measures none"
            if projected
            else "no projected matrices in this run"
        )
        axes.text(0.5, 0.5, why, ha="center", va="center", color=_FAINT)
        return
    low_rank, high_rank = (choice(line["rank"] for line in refreshes) for choice in (min, max))
    rank = f"{low_rank:g}" if low_rank == high_rank else f"{low_rank:g} to {high_rank:g}"
    axes.set_title(f"Energy outside the subspaces, rank {rank}")
    outside = []
    runs = dict.fromkeys(line["run"] for line in refreshes)
    for run in runs:
        mine, whose = [line for line in refreshes if line["run"] == run], f", {run}" if len(runs) > 1 else ""
        steps = [line["step"] for line in mine]
        high, mean, low = (
            [max(1 - line[key], _SMALLEST_SHARE) for line in mine]
            for key in ("captured_min", "captured", "captured_max")
        )
        label = f"smallest to largest matrix{whose}"
        axes.fill_between(steps, low, high, color=_color(run, rows), alpha=0.15, lw=0, label=label)
        axes.plot(steps, mean, color=_color(run, rows), marker="o", ms=4, label=f"mean of all matrices{whose}")
        outside += high + low
    axes.set(xlabel="optimizer step", ylabel="share of the gradient's energy", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(outside) < 30 * min(outside) else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}"))
    axes.set_xlim(left=0)
    axes.legend(loc="best")


def _color(run: str, rows: list[Row]) -> str:
    first = run == rows[0]["optimizer"]
    return COLORS["first" if first else "second"]


def _smooth(values: list[float | None], keep: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start; values that are not numbers are passed over."""
    mean = weight = 0.0
    out = []
    for value in values:
        if value is not None:
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight if weight else float("nan"))
    return out


_PLOTS: dict[str, Callable[[Axes, list[Line], list[Row]], None]] = {
    "Loss against steps": _by_step,
    "Loss against compute": _by_time,
    "Optimizer state": _memory,
    "Energy outside the subspaces": _subspace,
}
