"""What each panel of the report draws. Colors are those of light paper; the page puts variables in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lowrank_core.cli.palette import LIGHT, Look
from lowrank_core.cli.series import Band, Row, Series, band, loss_limits, smoothed

Looks = dict[str, Look]
_FEW = 25  # validations up to which each is marked


class Panel(NamedTuple):
    """A panel that compares optimizers: its title, what draws it, and whether there is something to draw."""

    title: str
    draw: Callable[[Axes, Sequence[Series], Looks], None]
    has: Callable[[Sequence[Series]], bool]
    bars: bool = False


def style(look: Look) -> dict[str, Any]:
    """Arguments of a line of that look."""
    return {"color": LIGHT[look.role], "linestyle": (0, look.dashes) if look.dashes else "solid"}


def _by_step(axes: Axes, found: Sequence[Series], looks: Looks) -> None:
    _losses(axes, found, looks, "step")
    axes.set_xlabel("optimizer step")
    size = found[0].bytes_per_step / 1e6
    scales: Any = (lambda step: step * size, lambda count: count / size)
    tokens = axes.secondary_xaxis("bottom", functions=scales)
    tokens.spines["bottom"].set_position(("outward", 36))  # below the label of the steps
    tokens.set_xlabel("millions of tokens (bytes)")


def _by_seconds(axes: Axes, found: Sequence[Series], looks: Looks) -> None:
    _losses(axes, found, looks, "seconds")
    axes.set_xlabel("CPU seconds of training steps")


def _losses(axes: Axes, found: Sequence[Series], looks: Looks, key: str) -> None:
    for one in found:
        look = style(looks[one.name])
        axes.plot([x[key] for x in one.train], smoothed(x["train_loss"] for x in one.train), **look, alpha=0.45, lw=0.9)
        marker: dict[str, Any] = {"marker": "o", "ms": 3.5} if len(one.val) <= _FEW else {}
        known = [x for x in one.val if x["val_loss"] is not None]
        axes.plot([x[key] for x in known], [x["val_loss"] for x in known], **look, **marker, lw=2.2)
    axes.set_ylabel("loss, nats per byte")
    axes.set_xlim(left=0)
    if (limits := loss_limits(found)) is not None:
        axes.set_ylim(limits)


def _state(axes: Axes, found: Sequence[Series], looks: Looks) -> None:
    sizes = [one.row["state_bytes"] / 1e6 for one in found]
    said = [f"{size:,.3g} MB ({one.row['ratio']:.2f})" for size, one in zip(sizes, found, strict=True)]
    _bars(axes, found, looks, sizes, said)
    axes.set_xlabel("MB (10⁶ bytes); in brackets the share of AdamW's")


def _searches(axes: Axes, found: Sequence[Series], looks: Looks) -> None:
    known = [(one, summary) for one in found if (summary := one.summary()) and summary["refresh_share"] is not None]
    shares = [100 * summary["refresh_share"] for _, summary in known]
    said = [_said(summary) for _, summary in known]
    _bars(axes, [one for one, _ in known], looks, shares, said)
    axes.set_xlabel("% of the wall-clock time of training steps")


def _said(summary: Row) -> str:
    share, seconds = 100 * summary["refresh_share"], summary["refresh_seconds"]
    return f"{share:.2g} %, {seconds:.2g} s" if seconds else "none"


def _bars(axes: Axes, found: Sequence[Series], looks: Looks, sizes: list[float], said: list[str]) -> None:
    colors = [LIGHT[looks[one.name].role] for one in found]
    bars = axes.barh([one.name for one in found], sizes, color=colors, height=0.6)
    axes.bar_label(bars, said, padding=4, fontsize=9)
    axes.set(xlim=(0, 1.55 * max(sizes, default=0.0) or 1.0), ylim=(len(found) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _captured(axes: Axes, found: Sequence[Series], looks: Looks) -> None:
    _medians(axes, found, looks, "captured")
    axes.set_ylabel("share of the gradient")
    axes.set_ylim(top=min(1.0, axes.get_ylim()[1]))


def _updates(axes: Axes, found: Sequence[Series], looks: Looks) -> None:
    _medians(axes, found, looks, "update_ratio")
    axes.set_ylabel("norm of update / weight")
    _logarithmic(axes)


def _medians(axes: Axes, found: Sequence[Series], looks: Looks, key: str) -> None:
    for one in found:
        over_layers = band(one.layers, key)
        axes.plot(over_layers.steps, over_layers.middle, **style(looks[one.name]), lw=1.8)
    axes.set_xlabel("optimizer step")
    axes.set_xlim(left=0)


def _any(key: str) -> Callable[[Sequence[Series]], bool]:
    return lambda found: any(row[key] for one in found for row in one.layers)


PANELS = (
    Panel("Loss against steps", _by_step, lambda found: True),
    Panel("Loss against compute", _by_seconds, lambda found: True),
    Panel("Optimizer state", _state, lambda found: True, bars=True),
    Panel("Captured energy, median layer", _captured, _any("captured")),
    Panel("Size of the update, median layer", _updates, _any("update_ratio")),
    Panel("Time of searches", _searches, _any("refresh_seconds"), bars=True),
)
# Of one optimizer: figure of the layers, title, whether the axis is logarithmic.
_OF_LAYERS = (
    ("captured", "captured energy", False),
    ("overlap", "subspace overlap", False),
    ("rank", "rank", False),
    ("update_ratio", "update / weight norm", True),
)


def of_layers(one: Series, look: Look) -> dict[str, Callable[[Axes], None]]:
    """By title, what draws each figure of the layers that `one` has: the median, and from the least to the greatest."""
    drawn: dict[str, Callable[[Axes], None]] = {}
    for key, title, logarithmic in _OF_LAYERS:
        figure = band(one.layers, key)
        if figure.steps and not (key == "rank" and min(figure.low) == max(figure.high)):  # one number needs no plot
            drawn[title] = _band_drawer(figure, look, logarithmic=logarithmic, whole=key == "rank")
    steps, shares = one.searching()
    if any(shares):
        drawn["searches, % of time"] = _share_drawer(steps, [100 * share for share in shares], look)
    return drawn


def _band_drawer(figure: Band, look: Look, *, logarithmic: bool, whole: bool) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        color = LIGHT[look.role]
        axes.fill_between(figure.steps, figure.low, figure.high, color=color, alpha=0.2, lw=0)
        axes.plot(figure.steps, figure.middle, color=color, lw=1.8, marker="o" if len(figure.steps) == 1 else "", ms=3)
        if logarithmic:
            _logarithmic(axes)
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=whole))
        _small(axes)

    return draw


def _share_drawer(steps: list[int], shares: list[float], look: Look) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        before = [0, *steps[:-1]]
        widths = [step - start for step, start in zip(steps, before, strict=True)]
        axes.bar(before, shares, widths, align="edge", color=LIGHT[look.role])
        axes.yaxis.set_major_locator(MaxNLocator(4))
        _small(axes)

    return draw


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    between = (1, 2, 5) if high < 30 * low else (1, 3) if high < 1000 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=between, numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _small(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_minor_locator(NullLocator())
