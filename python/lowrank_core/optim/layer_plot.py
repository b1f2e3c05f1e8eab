"""A picture of what an optimizer does to each layer: heat maps of a `Monitor`'s rows, step by step."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_core.extras import how_to_install
from lowrank_core.optim.monitor_file import lines_of
from lowrank_core.optim.monitor_rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Figure, title, least and greatest value of its colors (None: of the data), whether by its logarithm.
_MAPS: tuple[tuple[str, str, float | None, float | None, bool], ...] = (
    ("captured", "captured energy", None, 1.0, False),
    ("overlap", "subspace overlap", None, 1.0, False),
    ("rank", "rank", 0.0, None, False),
    ("update_ratio", "update / weight norm", None, None, True),
)
_SEARCHES = "refresh_seconds"
_NOTHING, _LINE = "#e4e4e2", "#ffffff"  # where there is no figure; between blocks
_STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "image.cmap": "viridis", "svg.fonttype": "none",
}  # fmt: skip
_ROW, _LABEL, _LEAST, _MOST = 0.17, 0.15, 2.0, 14.0  # inches: of a layer, of its name at least, of all layers


def plot_layers(rows: Sequence[Row] | str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draws captured energy, overlap, rank and size of the update of each layer over its steps, a heat map each.

    Layers go down in the order of the rows, steps to the right; a cell reaches back to the record before. Bars at the
    right say how long the searches of each layer took in all. What no row has (nothing is projected, say) is left out;
    single layers without a figure are grey. Two hundred layers fit: their blocks are named then.

    Args:
      rows: of a `Monitor`, or the path of its file of JSON lines; broken lines of it are passed over.
      path: of the picture; its ending decides the format (.png, .svg, .pdf). A file that is there is replaced.

    Raises:
      ValueError: there are no rows, or matplotlib knows no such ending.
      ModuleNotFoundError: matplotlib is not installed.

    Example:
      >>> import torch
      >>> from lowrank_core.optim import GaLoreAdamW, Monitor, plot_layers
      >>> optimizer = GaLoreAdamW(torch.nn.Linear(64, 32).named_parameters(), rank=8)
      >>> plot_layers(Monitor(optimizer).rows, "layers.png")
      Traceback (most recent call last):
      ValueError: plot_layers: `rows` must hold rows of a Monitor, got none; take a step that it records first
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ModuleNotFoundError as missing:
        if missing.name != "matplotlib":
            raise
        sentence = f"plot_layers: needs matplotlib, which is not installed; {how_to_install('train')}"
        raise ModuleNotFoundError(sentence, name="matplotlib") from None
    if isinstance(rows, (str, os.PathLike)):
        found = _Columns(row for _, row in lines_of(Path(rows)) if row is not None)
    else:
        found = _Columns(rows)
    if not found.names:
        raise ValueError("plot_layers: `rows` must hold rows of a Monitor, got none; take a step that it records first")
    endings = FigureCanvasAgg.get_supported_filetypes()
    if (ending := Path(path).suffix.removeprefix(".")) not in endings:
        raise ValueError(f"plot_layers: `path` must end in .png, .svg or .pdf, got '{Path(path).name}'; choose one")
    with mpl.rc_context(_STYLE):
        _drawn(found).savefig(path, format=ending)


class _Columns:
    """What is drawn of the rows, which need not be held: 56 bytes of each."""

    def __init__(self, rows: Iterable[Row]) -> None:
        names: dict[str, int] = {}
        layer, step = array("q"), array("q")
        figures = {key: array("d") for key in (*(one[0] for one in _MAPS), _SEARCHES)}
        for row in rows:
            layer.append(names.setdefault(row["name"], len(names)))
            step.append(row["step"])
            for key, values in figures.items():
                values.append(np.nan if row[key] is None else row[key])
        self.names, self._layer = list(names), np.array(layer)
        self.steps, self._column = np.unique(step, return_inverse=True)
        self._figures = {key: np.array(values) for key, values in figures.items()}

    def has(self, key: str) -> bool:
        """Whether a row has the figure."""
        return bool(np.isfinite(self._figures[key]).any())

    def grid(self, key: str) -> Any:
        """The figure of each layer (row) at each step (column), masked where there is none."""
        values, found = np.full((len(self.names), len(self.steps)), np.nan), np.isfinite(self._figures[key])
        values[self._layer[found], self._column[found]] = self._figures[key][found]
        return np.ma.masked_invalid(values)

    def totals(self, key: str) -> Any:
        """The sum of the figure of each layer."""
        return np.bincount(self._layer, self._figures[key], len(self.names))


def _drawn(found: _Columns) -> Figure:
    from matplotlib.figure import Figure

    names, steps = found.names, found.steps.tolist()
    maps, spent = [one for one in _MAPS if found.has(one[0])], found.totals(_SEARCHES)
    high = min(max(_ROW * len(names), _LEAST), _MOST)
    count = len(maps) + bool(spent.any())
    figure = Figure(figsize=(2.2 + 2.3 * count, high + 1.6), dpi=150, layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for axes, (key, title, low, top, logarithmic) in zip(panels, maps, strict=False):
        axes.set_title(title)
        _heat_map(figure, axes, found.grid(key), steps, (low, top), logarithmic=logarithmic)
    if spent.any():
        _bars(panels[-1], spent)
    _name_layers(panels, names, room=int(high / _LABEL))
    return figure


def _heat_map(
    figure: Figure, axes: Axes, values: Any, steps: list[int], limits: tuple[float | None, float | None], *,
    logarithmic: bool,
) -> None:  # fmt: skip
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import MaxNLocator

    low = float(values.min()) if limits[0] is None else limits[0]
    top = float(values.max()) if limits[1] is None else limits[1]
    if logarithmic:
        values = np.ma.masked_less_equal(values, 0.0)  # a weight that was not moved has no logarithm
        low = float(values.min()) if values.count() else 1.0
        norm: Normalize = LogNorm(low, max(top, 1.001 * low))
    else:
        norm = Normalize(low, top if top > low else low + 1.0)
    edges = [max(0, steps[0] - (steps[1] - steps[0] if len(steps) > 1 else 1)), *steps]
    axes.set_facecolor(_NOTHING)
    cells = axes.pcolorfast(edges, range(len(values) + 1), values, norm=norm)
    bar = figure.colorbar(cells, ax=axes, location="bottom", aspect=18, pad=0.0)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _bars(axes: Axes, spent: Any) -> None:
    """The time of each layer's searches."""
    axes.barh(np.arange(len(spent)) + 0.5, spent, height=0.8, color="#414487")
    axes.set_title("time of searches")
    axes.set_xlabel("seconds in all")


def _name_layers(panels: Sequence[Axes], names: list[str], *, room: int) -> None:
    """Names every layer where there is `room` for so many names, else the first of each block, with a line above."""
    short = [name.removesuffix(".weight") for name in names]
    ticks = dict(enumerate(short))
    if len(names) > room:
        blocks = [found[0] if (found := re.match(r".*?\.\d+(?=\.)", name)) else name for name in short]
        starts = [i for i, block in enumerate(blocks) if i == 0 or block != blocks[i - 1]]
        ticks = {}
        for i in starts:  # each far enough from the one before
            if not ticks or i - next(reversed(ticks)) >= len(names) / room:
                ticks[i] = blocks[i]
        for axes in panels:
            axes.hlines(starts[1:], *axes.get_xlim(), color=_LINE, lw=0.5)
    panels[0].set_yticks([i + 0.5 for i in ticks], list(ticks.values()), fontsize=8)
    for axes in panels:
        axes.set_ylim(len(names), 0)
        axes.tick_params(axis="y", length=0)
