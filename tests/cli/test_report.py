"""The report: table, picture, page, numbers."""

from __future__ import annotations

import html
import io
import json
import re
import sys
import time
from collections import Counter

import pytest
from cli_cases import TINY
from lowrank_core.cli.metrics import read
from lowrank_core.cli.plots import COLORS, VARIABLES, panels, picture
from lowrank_core.cli.report import what_it_buys
from lowrank_core.cli.table import table
from matplotlib.figure import Figure

ROW = {"optimizer": "galore", "val_loss": 5.0, "best_val_loss": 5.0, "state_bytes": 10, "ratio": 0.3}


def assert_png(data: bytes) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.format == "PNG" and image.width >= 1000
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 50  # something is drawn


@pytest.fixture(scope="module")
def page(finished_runs) -> str:
    return (finished_runs / "report.html").read_text()


def test_page_needs_no_other_file(page):
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert not re.search(r"(src|href)=\"(?!#)|@import|url\((?!#)", page)
    assert "--update-proj-gap" in page


def test_title_stands_once(page):
    (title,) = re.findall("<h1>(.*)</h1>", page)
    assert page.count(title) == 2 and f"<title>{title}</title>" in page
    plots = re.findall("<svg .*?</svg>", page, re.DOTALL)
    headings = [label for plot in plots for label in re.findall('aria-label="(.*?)"', plot)]
    assert len(set(headings)) == len(plots) == 4
    for plot, label in zip(plots, headings, strict=True):
        assert len(re.findall(f">{label}[^<]*</text>", plot)) == 1


def test_page_fits_narrow_and_dark_screens(page):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    light, dark = re.search(
        r":root \{ color-scheme: light dark;(.*?)\}\n@media .*?dark\) \{ :root \{(.*?)\}", page
    ).groups()
    used = set(re.findall(r"var\(--(\w+)\)", page))
    assert len(set(COLORS.values())) == len(COLORS) == 2  # a run has two optimizers at most
    assert used >= set(VARIABLES.values())
    for scheme in (light, dark):
        assert used | set(COLORS) <= set(re.findall(r"--(\w+):", scheme))
    body = page.partition("</style></head>")[2]
    assert not [color for color in VARIABLES if color in body]  # none is fixed
    assert set(re.findall(r"#[0-9a-f]{6}\b", body)) <= {"#000000"}  # defaults of clips and markers, never seen


def test_plots_on_one_page_share_no_name(page):
    defined = Counter(re.findall(r' id="(.*?)"', page))
    wanted = set(re.findall(r'(?:url\(|href=")#([^)"]+)', page))
    assert wanted and all(defined[name] == 1 for name in wanted)


def test_picture(finished_runs):
    assert_png((finished_runs / "report.png").read_bytes())


def test_table_and_summary_agree(finished_runs, cli):
    outcome = cli("train", "--resume", "--out", finished_runs)  # finished: prints its table once more
    summary = json.loads((finished_runs / "summary.json").read_text())
    galore, adamw = summary["runs"]
    assert (galore["optimizer"], adamw["optimizer"]) == ("galore", "adamw")
    assert adamw["ratio"] == 1 and galore["ratio"] == galore["state_bytes"] / adamw["state_bytes"]
    for row in (galore, adamw):
        assert row["best_val_loss"] <= row["val_loss"] < 5.6
        assert abs(row["seconds"] - 24 * row["seconds_per_step"]) <= 4 * sys.float_info.epsilon * row["seconds"]
        line = next(line for line in outcome.out.splitlines() if re.match(rf"{row['optimizer']} +\d\.", line))
        assert line.split()[1] == f"{row['val_loss']:.4f}"
    assert summary["config"]["rank"] == 4 and {"versions", "machine", "date"} <= set(summary)
    assert outcome.err == "" and str(finished_runs / "report.html") in outcome.out
    said = " ".join(outcome.out.split())
    assert what_it_buys([galore, adamw]) in said


def test_what_memory_buys():
    adamw = {**ROW, "optimizer": "adamw", "state_bytes": 3_000_000}
    less = what_it_buys([{**ROW, "state_bytes": 1_000_000, "val_loss": 5.25}, adamw])
    assert "holds 2.00 MB less" in less and "0.2500 above" in less and "saves nothing else" in less
    more = what_it_buys([adamw, {**ROW, "state_bytes": 4_000_000, "val_loss": 4.5}])
    assert "holds 1.00 MB more" in more and "0.5000 below" in more
    assert what_it_buys([adamw]) == ""


def test_single_run_has_a_report_too(text, cli, tmp_path):
    outcome = cli("train", "--text", text, *TINY, "--optimizer", "adamw", "--out", tmp_path)
    assert outcome.code == 0 and "GaLore" not in outcome.out
    assert_png((tmp_path / "report.png").read_bytes())
    page = (tmp_path / "report.html").read_text()
    assert "no projected matrices in this run" in page and "<th>--compare</th><td>unset</td>" in page


def test_plots_survive_missing_values():
    lines = [
        {"run": "galore", "event": "train", "step": 1, "seconds": 0.1, "train_loss": None},
        {"run": "galore", "event": "eval", "step": 1, "seconds": 0.1, "val_loss": 5.0},
    ]
    assert_png(picture(lines, [ROW], "title"))


def refresh(step: int, *, rank: float = 4, captured: float = 0.75) -> dict[str, object]:
    shares = {"captured": captured, "captured_min": captured / 2, "captured_max": 1.0}
    return {"run": "galore", "event": "refresh", "step": step, "seconds": 0.1, "rank": rank, **shares}


def test_energy_outside_has_a_log_scale_and_one_axis(monkeypatch):
    """What is captured whole is shown at rounding's size: zero has no logarithm."""
    drawn: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (drawn.append(figure), savefig(figure, *a, **k))[1])
    plots = panels([refresh(1), refresh(6)], [ROW])
    (axes,) = drawn[-1].axes
    assert axes.get_yscale() == "log" and axes.get_title(loc="left").endswith("rank 4")
    (mean,) = axes.lines
    assert list(mean.get_ydata()) == [0.25, 0.25]
    edge = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert edge.min() == 2.0**-23 and edge.max() == 0.625
    assert "rank 4 to 6" in panels([refresh(1), refresh(6, rank=6)], [ROW])[-1] and "rank 4<" in plots[-1]


def test_only_computing_takes_seconds(tiny, cli, tmp_path, monkeypatch):
    """A step that waits, as in a stop or while others have the processor, takes no longer."""
    from lowrank_core.cli import loop

    draw, waited = loop.training_batch, 0.1
    monkeypatch.setattr(loop, "training_batch", lambda *a, **k: (time.sleep(waited), draw(*a, **k))[1])
    assert cli(*tiny, "--out", tmp_path).code == 0
    (row,) = json.loads((tmp_path / "summary.json").read_text())["runs"]
    assert 0 < row["seconds"] < 24 * waited
    logged = [line["seconds"] for line in read(tmp_path / "metrics.jsonl") if line["event"] == "train"]
    assert logged[-1] == row["seconds"] and logged == sorted(logged)


def test_sample_is_in_page_and_summary(finished_runs, page):
    summary = json.loads((finished_runs / "summary.json").read_text())
    for row in summary["runs"]:
        sample = row["sample"]
        assert len(sample["prompt"]) == 16 and sample["text"] and sample["temperature"] == 0.8
        shown = f'<span class="given">{html.escape(sample["prompt"])}</span>{html.escape(sample["text"])}'
        assert shown in page
    assert "at temperature 0.8, seed 0" in html.unescape(page)


def test_columns_line_up():
    assert table(("a", "bb"), [("xxx", "1")]).splitlines() == ["a    bb", "---  --", "xxx   1"]
