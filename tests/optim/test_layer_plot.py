"""The picture of a monitor's rows: every value where its layer and step are, names that can be read, refusals."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, Monitor, plot_layers
from lowrank_core.optim.monitor_rows import KEYS, row_of
from optim_cases import Zoo, train

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure


def row(step: int, name: str, **figures: Any) -> dict[str, Any]:
    usual = {"rank": 4, "captured": 0.5, "overlap": 0.5, "refreshes": 1, "refresh_seconds": 0.25, "update_ratio": 0.01}
    return {"step": step, "name": name, **usual, **figures}


def model(blocks: int, records: int) -> list[dict[str, Any]]:
    names = ["embed.weight", *(f"model.layers.{i}.{j}.weight" for i in range(blocks) for j in "abcdefg"), "head.weight"]
    return [row(10 * k, name, captured=(i + k) / 999) for k in range(1, records + 1) for i, name in enumerate(names)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), savefig(figure, *a, **k))[1]
    )
    return figures


def panels(figure: Figure) -> dict[str, Any]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def test_every_value_is_where_its_layer_and_step_are(drawn: list[Figure], tmp_path: Path) -> None:
    rows = [
        row(2, "a.weight", captured=0.25, rank=8, refresh_seconds=1.0),
        row(2, "b.weight", captured=None, rank=None, overlap=None, update_ratio=0.1, refresh_seconds=0.0),
        row(6, "a.weight", captured=0.75, rank=6, overlap=0.125, update_ratio=None),
        row(8, "b.weight", captured=None, rank=None, overlap=None, update_ratio=0.001, refresh_seconds=0.0),
    ]
    plot_layers(rows, tmp_path / "layers.png")
    found = panels(drawn[0])
    assert list(found) == ["captured energy", "subspace overlap", "rank", "update / weight norm", "time of searches"]
    expected = {
        "captured energy": [[0.25, 0.75, np.nan], [np.nan] * 3],
        "subspace overlap": [[0.5, 0.125, np.nan], [np.nan] * 3],
        "rank": [[8, 6, np.nan], [np.nan] * 3],
        "update / weight norm": [[0.01, np.nan, np.nan], [0.1, np.nan, 0.001]],
    }
    for title, values in expected.items():
        (image,) = found[title].images
        assert np.array_equal(image.get_array().filled(np.nan), np.array(values), equal_nan=True), title
        assert tuple(image.get_extent()) == (0, 8, 0, 2) and found[title].get_ylim() == (2, 0)
    assert [bar.get_width() for bar in found["time of searches"].patches] == [1.25, 0.0]
    assert [label.get_text() for label in found["captured energy"].get_yticklabels()] == ["a", "b"]
    assert found["update / weight norm"].images[0].norm.vmin == expected["update / weight norm"][1][2]


def test_cells_reach_back_to_the_record_before(drawn: list[Figure], tmp_path: Path) -> None:
    """Where steps are uneven their cells are too."""
    plot_layers([row(step, "a.weight", captured=step / 16) for step in (2, 4, 12)], tmp_path / "layers.png")
    axes = panels(drawn[0])["captured energy"]
    shown = {at: axes.images[0].get_cursor_data(event(axes, at)) for at in (1, 3, 5, 11)}
    assert shown == {1: 0.125, 3: 0.25, 5: 0.75, 11: 0.75}


def event(axes: Any, step: float) -> Any:
    """A mouse at `step` in the middle of the first layer."""
    from matplotlib.backend_bases import MouseEvent

    x, y = axes.transData.transform((step, 0.5))
    return MouseEvent("motion_notify_event", axes.figure.canvas, x, y)


@pytest.mark.parametrize(("blocks", "named"), [(1, "all"), (6, "all"), (29, "blocks"), (80, "some")])
def test_names_can_be_read(drawn: list[Figure], tmp_path: Path, blocks: int, named: str) -> None:
    """Two hundred layers and more: no name lies on the next, and the picture stays as high as a page."""
    rows = model(blocks, 5)
    plot_layers(rows, tmp_path / "layers.png")
    figure, axes = drawn[0], panels(drawn[0])["captured energy"]
    labels = [label for label in axes.get_yticklabels() if label.get_text()]
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))  # a pixel
    assert figure.get_figheight() <= 16
    layers = len({one["name"] for one in rows})
    said = [label.get_text() for label in labels]
    if named == "all":
        assert len(said) == layers and said[1] == "model.layers.0.a"
    else:
        assert set(said[1:-1]) < {f"model.layers.{i}" for i in range(blocks)} and len(said) >= min(blocks - 1, 25)
    assert np.shape(axes.images[0].get_array()) == (layers, 5)


def test_a_monitor_draws_its_rows_as_its_file_is_drawn(drawn: list[Figure], tmp_path: Path) -> None:
    net, path = Zoo(), tmp_path / "rows.jsonl"
    optimizer = GaLoreAdamW(net.named_parameters(), rank=4, update_proj_gap=3)
    with Monitor(optimizer, path=path) as watching:
        train(net, optimizer, range(5))
        watching.plot(tmp_path / "of_monitor.png")
    path.write_text(path.read_text() + '{"step": 6, "na')
    plot_layers(str(path), tmp_path / "of_file.png")
    assert (tmp_path / "of_monitor.png").read_bytes() == (tmp_path / "of_file.png").read_bytes()
    image = panels(drawn[0])["update / weight norm"].images[0].get_array()
    assert np.array_equal(image.T.ravel(), [one["update_ratio"] for one in watching.rows])


def test_what_no_row_has_is_left_out(drawn: list[Figure], tmp_path: Path) -> None:
    bare = {"rank": None, "captured": None, "overlap": None, "refreshes": 0, "refresh_seconds": 0.0}
    plot_layers([row(1, "a", **bare)], tmp_path / "layers.svg")
    assert list(panels(drawn[0])) == ["update / weight norm"]
    plot_layers([row(1, "a", **{**bare, "update_ratio": 0.0}), row(1, "b", update_ratio=0.0)], tmp_path / "zeros.png")


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    for nothing in (
        [],
        tmp_path / "empty.jsonl",
        Monitor(GaLoreAdamW([torch.nn.Parameter(torch.zeros(4, 3))], rank=2)).rows,
    ):
        with pytest.raises(ValueError, match="plot_layers: `rows` must hold rows of a Monitor, got none"):
            plot_layers(nothing, tmp_path / "layers.png")
    for name in ("layers", "layers.xyz"):
        with pytest.raises(ValueError, match=f"`path` must end in .png, .svg or .pdf, got '{name}'; choose one"):
            plot_layers([row(1, "a")], tmp_path / name)
    with pytest.raises(FileNotFoundError):
        plot_layers(tmp_path / "missing.jsonl", tmp_path / "layers.png")
    assert {path.name for path in tmp_path.iterdir()} == {"empty.jsonl"}


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="plot_layers: needs matplotlib, which is not installed; install"):
        plot_layers([row(1, "a")], tmp_path / "layers.png")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", "{", '{"step": 1}', "[" * 100_000, json.dumps(dict(reversed(row(1, "a").items()))),
        json.dumps(row(1, "a", extra=1)), *(json.dumps({**row(1, "a"), key: "x"}) for key in KEYS if key != "name"),
        *(json.dumps({**row(1, "a"), key: None}) for key in ("step", "name", "refreshes", "refresh_seconds")),
        json.dumps({**row(1, "a"), "captured": float("nan")}), json.dumps({**row(1, "a"), "rank": True}),
    ],
)  # fmt: skip
def test_what_is_no_row(text: str) -> None:
    assert row_of(text) is None
    assert row_of(json.dumps(row(1, "a", captured=None))) == row(1, "a", captured=None)
