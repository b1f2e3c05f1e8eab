"""The report's pictures: all panels as one PNG, and each as an SVG for the page."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lowrank_core.cli.palette import HUES, LIGHT, NEUTRAL, looks
from lowrank_core.cli.panels import PANELS, Looks, Panel, of_layers, style
from lowrank_core.cli.series import Series

# Each color of the plots, and the variable by which the page sets it for light and dark screens.
VARIABLES = {LIGHT[role]: role for role in ("ink", "faint", "grid", NEUTRAL, *HUES)}
_STYLE: Any = {
    "font.size": 10, "font.family": "sans-serif", "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "axes.edgecolor": LIGHT["faint"], "axes.labelcolor": LIGHT["ink"],
    "text.color": LIGHT["ink"], "xtick.color": LIGHT["ink"], "ytick.color": LIGHT["ink"], "grid.color": LIGHT["grid"],
    "legend.frameon": False, "svg.fonttype": "none", "lines.solid_capstyle": "round",
}  # fmt: skip
_SMALL: Any = {"axes.titlesize": 10, "axes.titleweight": "normal", "font.size": 9}
CAPTION = "Losses: bold validation, thin training (smoothed)."


def picture(found: Sequence[Series], title: str, panels: Sequence[Panel] = PANELS, caption: str = CAPTION) -> bytes:
    """All panels that have something to show under `title` and one legend, as PNG bytes."""
    panels, seen = [panel for panel in panels if panel.has(found)], looks([one.name for one in found])
    count = (len(panels) + 1) // 2
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 1.0 + 3.5 * count), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(count, 2)
        for number, panel in enumerate(panels):
            alone = number == len(panels) - 1 and number % 2 == 0
            axes = figure.add_subplot(grid[number // 2, :] if alone else grid[number // 2, number % 2])
            axes.set_title(panel.title)
            panel.draw(axes, found, seen)
        handles = [Line2D([], [], **style(look), lw=2.6, label=name) for name, look in seen.items()]
        figure.legend(
            handles=handles, loc="outside upper left", ncols=7, handlelength=2.4, fontsize=11, title=title,
            title_fontproperties={"size": 14, "weight": "bold"}, alignment="left",
        )  # fmt: skip
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=9, color=LIGHT["faint"])
        out = io.BytesIO()
        figure.savefig(out, format="png")
    return out.getvalue()


def comparison(found: Sequence[Series], panels: Sequence[Panel] = PANELS) -> list[str]:
    """Each panel that has something to show, as an `<svg>` element; see `_svg`."""
    seen = looks([one.name for one in found])
    bars = max(2.0, 1.1 + 0.32 * len(found))  # their height, inches
    return [
        _svg(panel.title, (4.6, bars if panel.bars else 3.4), _drawer(panel, found, seen))
        for panel in panels
        if panel.has(found)
    ]


def _drawer(panel: Panel, found: Sequence[Series], seen: Looks) -> Callable[[Axes], None]:
    return lambda axes: panel.draw(axes, found, seen)


def layer_panels(one: Series, found: Sequence[Series]) -> list[str]:
    """What the layers of `one` of the optimizers did, a small `<svg>` element for each figure; see `_svg`."""
    look = looks([other.name for other in found])[one.name]
    drawn = of_layers(one, look).items()
    return [_svg(title, (2.4, 1.8), draw, f"{one.name}: {title}", **_SMALL) for title, draw in drawn]


def _svg(title: str, size: tuple[float, float], draw: Callable[[Axes], None], label: str = "", **own: Any) -> str:
    """An element without background that takes its colors from CSS variables, see `VARIABLES`."""
    label = label or title
    # The salt makes the names of clips and markers a function of the plot: equal runs give equal pages, and two plots
    # of one page share no name.
    chosen: Any = {**_STYLE, **own, "svg.hashsalt": label}
    with mpl.rc_context(chosen):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.set_title(title)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg ") :].replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    return text
