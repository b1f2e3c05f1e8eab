"""What each panel of the report of `finetune` draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lowrank_core.cli.panels import Looks, Panel, style
from lowrank_core.cli.series import Series, smoothed

CAPTION = "Losses: bold validation, thin training (smoothed). Accuracy is of held-out samples."


def _accuracy(key: str, label: str) -> Callable[[Axes, Sequence[Series], Looks], None]:
    def draw(axes: Axes, found: Sequence[Series], looks: Looks) -> None:
        for one in found:
            drawn = [x[key] for x in one.val], [100 * x["accuracy"] for x in one.val]
            axes.plot(*drawn, **style(looks[one.name]), marker="o", ms=3.5, lw=2.2)
        axes.set_ylabel("% right")
        axes.set_xlabel(label)
        axes.set_xlim(left=0)

    return draw


def _losses(axes: Axes, found: Sequence[Series], looks: Looks) -> None:
    for one in found:
        look = style(looks[one.name])
        thin = smoothed(x["train_loss"] for x in one.train)
        axes.plot([x["samples"] for x in one.train], thin, **look, alpha=0.45, lw=0.9)
        axes.plot([x["samples"] for x in one.val], [x["val_loss"] for x in one.val], **look, lw=2.2)
    axes.set_ylabel("loss, nats")
    axes.set_xlabel("training samples")
    axes.set_xlim(left=0)


def _ranks(axes: Axes, found: Sequence[Series], looks: Looks) -> None:
    """A thin line for each layer, a bold one for their mean."""
    for one in found:
        look = style(looks[one.name])
        steps = [row["step"] for row in one.layers] + [one.row["steps"]]
        rows = [row["ranks"] for row in one.layers]
        rows += rows[-1:]
        for name in rows[0]:
            axes.plot(steps, [row[name] for row in rows], **look, alpha=0.3, lw=0.8, drawstyle="steps-post")
        axes.plot(steps, [fmean(row.values()) for row in rows], **look, lw=2.2, drawstyle="steps-post")
    axes.set_ylabel("rank")
    axes.set_xlabel("optimizer step")
    axes.set_xlim(left=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _always(found: Sequence[Series]) -> bool:
    return True


PANELS = (
    Panel("Accuracy against samples", _accuracy("samples", "training samples"), _always),
    Panel("Accuracy against compute", _accuracy("seconds", "CPU seconds of training steps"), _always),
    Panel("Loss against samples", _losses, _always),
    Panel("Rank of each layer", _ranks, lambda found: any(one.layers for one in found)),
)
