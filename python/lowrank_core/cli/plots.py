"""`report.png`: loss against steps and seconds, optimizer memory, captured energy and rank over time."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lowrank_core.cli.metrics import Line

COLORS = {"galore": "#0b6e99", "adamw": "#d9730d"}
_INK, _FAINT = "#37352f", "#9b9a97"
_STYLE: Any = {
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "axes.edgecolor": _FAINT, "axes.labelcolor": _INK, "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "grid.color": "#ececec", "legend.frameon": False, "lines.linewidth": 1.8,
}  # fmt: skip


def plot(lines: list[Line], rows: list[dict[str, Any]], title: str) -> bytes:
    """The picture as PNG bytes; `lines` of metrics.jsonl, `rows` of the final table."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(12, 8.4), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        (by_step, by_time), (memory, subspace) = figure.subplots(2, 2)
        _losses(by_step, lines, rows, "step", "optimizer step")
        _losses(by_time, lines, rows, "seconds", "seconds of training")
        _memory(memory, rows)
        _subspace(subspace, [line for line in lines if line["event"] == "refresh"])
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        out = io.BytesIO()
        figure.savefig(out, format="png")
    return out.getvalue()


def _losses(axes: Axes, lines: list[Line], rows: list[dict[str, Any]], key: str, label: str) -> None:
    axes.set_title(f"Loss against {'steps' if key == 'step' else 'time'}")
    for row in rows:
        mine = [line for line in lines if line["run"] == row["optimizer"]]
        train = [line for line in mine if line["event"] == "train"]
        val = [line for line in mine if line["event"] == "eval"]
        color = COLORS[row["optimizer"]]
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


def _memory(axes: Axes, rows: list[dict[str, Any]]) -> None:
    axes.set_title("Optimizer state")
    names = [row["optimizer"] for row in rows]
    sizes = [row["state_bytes"] / 1e6 for row in rows]
    bars = axes.barh(names, sizes, color=[COLORS[name] for name in names], height=0.45)
    axes.bar_label(
        bars,
        [f"{s:.1f} MB\n{row['ratio']:.2f} of AdamW's" for s, row in zip(sizes, rows, strict=True)],
        padding=6,
    )
    axes.set(xlabel="MB (10^6 bytes)", xlim=(0, 1.45 * max(sizes)), ylim=(len(rows) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)


def _subspace(axes: Axes, refreshes: list[Line]) -> None:
    axes.set_title("Subspace of the projected matrices")
    if not refreshes:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no projected matrices in this run", ha="center", va="center", color=_FAINT)
        return
    color = COLORS[refreshes[0]["run"]]
    steps = [line["step"] for line in refreshes]
    low, mean, high = ([line[key] for line in refreshes] for key in ("captured_min", "captured", "captured_max"))
    axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0, label="smallest to largest matrix")
    axes.plot(steps, mean, color=color, marker="o", ms=4, label="captured energy, mean")
    axes.set(xlabel="optimizer step", ylabel="share of the gradient's energy", ylim=(0, 1.02))
    ranks = axes.twinx()
    held = [line["rank"] for line in refreshes]
    ranks.plot(steps, held, color=_INK, ls="--", lw=1.2, drawstyle="steps-post", label="rank, mean")
    ranks.set(ylabel="rank", ylim=(0, 1.25 * max(held)))
    ranks.spines["right"].set_visible(True)
    ranks.grid(visible=False)
    handles = [*axes.get_legend_handles_labels()[0], *ranks.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="lower right")


def _smooth(values: list[float | None], keep: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start; values that are not numbers are passed over."""
    mean = weight = 0.0
    out = []
    for value in values:
        if value is not None:
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight if weight else float("nan"))
    return out
