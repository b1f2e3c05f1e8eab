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
from lowrank_core.cli.defaults import BY_RATE, OPTIMIZERS, listed
from lowrank_core.cli.metrics import read
from lowrank_core.cli.palette import DARK, LIGHT
from lowrank_core.cli.plots import VARIABLES, picture
from lowrank_core.cli.report import what_it_buys
from lowrank_core.cli.series import Series
from lowrank_core.cli.table import table

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
    plots = re.findall('<svg role="img".*?</svg>', page, re.DOTALL)
    labels = [label for plot in plots for label in re.findall('aria-label="(.*?)"', plot)]
    assert labels == [
        "Loss against steps", "Loss against compute", "Optimizer state", "Captured energy, median layer",
        "Size of the update, median layer", "Time of searches", "galore: captured energy", "galore: subspace overlap",
        "galore: update / weight norm", "galore: searches, % of time",
    ]  # fmt: skip
    for plot, label in zip(plots, labels, strict=True):
        assert len(re.findall(f">{re.escape(label.removeprefix('galore: '))}[^<]*</text>", plot)) == 1


def test_legend_stands_once(page):
    """In the page, in its order; no plot has one of its own."""
    (legend,) = re.findall('<ul class="legend kept">(.*?)</ul>', page)
    colors = re.findall(r'stroke="var\(--(\w+)\)".*?</svg>(\w+)</li>', legend)
    assert colors == [("hue1", "galore"), ("neutral", "adamw")]
    assert 'id="legend' not in page


def test_page_fits_narrow_and_dark_screens(page):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    light, dark = re.search(
        r":root \{ color-scheme: light dark;(.*?)\}\n@media .*?dark\) \{ :root \{(.*?)\}", page
    ).groups()
    used = set(re.findall(r"var\(--(\w+)\)", page))
    assert used == {"ink", "faint", "grid", "paper", "shade", "neutral", "hue1"}
    for scheme, colors in ((light, LIGHT), (dark, DARK)):
        assert dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", scheme)) == colors and used <= colors.keys()
    body = page.partition("</style></head>")[2]
    assert not [color for color in VARIABLES if color in body]  # none is fixed
    assert set(re.findall(r"#[0-9a-f]{6}\b", body)) <= {"#000000"}  # defaults of clips and markers, never seen
    tables = re.findall("<table.*?</table>", page)
    assert tables and page.count('<div class="scroll"><table') == len(
        tables
    )  # what is wider than the screen moves alone


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
    end = outcome.out.partition("\noptimizer ")[2].partition("\nreport:")[0]
    assert end and max(map(len, end.splitlines())) < 80
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
    fira = {**ROW, "optimizer": "fira", "state_bytes": 2_000_000, "val_loss": 4.0}
    several = what_it_buys([{**ROW, "state_bytes": 1_000_000}, adamw, fira])
    assert "GaLore holds the least optimizer state, 1.00 MB, and AdamW the most, 3.00 MB" in several
    assert "Final losses go from 4.0000 (Fira) to 5.0000 (GaLore), on one seed, which ranks nothing" in several


def test_single_run_has_a_report_too(text, cli, tmp_path):
    outcome = cli("train", "--text", text, *TINY, "--optimizer", "adamw", "--out", tmp_path)
    assert outcome.code == 0 and "GaLore" not in outcome.out
    assert_png((tmp_path / "report.png").read_bytes())
    page = (tmp_path / "report.html").read_text()
    assert "What happens in the layers" not in page and "<th>--compare</th><td>unset</td>" in page
    assert page.count('<svg role="img"') == 3 and "the rate alone" not in page


def test_several_optimizers_in_one_report(text, cli, tmp_path):
    """As many as there are: each has its row, its color or dashes, its bars."""
    others = [name for name in OPTIMIZERS if name != "galore"]
    folder = tmp_path / "run"
    outcome = cli("train", "--text", text, *TINY, "--steps", 4, "--warmup", 0, "--compare", *others, "--out", folder)
    assert outcome.code == 0, outcome.err
    page = (folder / "report.html").read_text()
    names = ["galore", *others]
    (table,) = re.findall('<table class="numbers"><tr><th>optimizer.*?</table>', page)
    assert re.findall("<tr><th>(.*?)</th>", table) == ["optimizer", *names]
    (legend,) = re.findall('<ul class="legend">(.*?)</ul>', page)
    looks = re.findall(r"(--\w+)\).*?dasharray=\"(.*?)\".*?</svg>(\w+)</li>", legend)
    assert [name for *_, name in looks] == names and len({tuple(look) for *look, _ in looks}) == len(names)
    assert [look for *look, name in looks if name == "adamw"] == [["--neutral", ""]]
    said = html.unescape(re.search('<p class="note">(Of .*?)</p>', page)[1])
    assert (
        said == f"Of {listed(BY_RATE)} the rate alone was tuned, on one seed: this run does not say what they can do."
    )
    assert_png((folder / "report.png").read_bytes())
    assert max(map(len, outcome.out.partition("\noptimizer ")[2].partition("\nreport:")[0].splitlines())) < 80


def test_given_rates_are_not_called_tuned(text, cli, tmp_path):
    options = ["--optimizer", "muon", "--lr", 0.02, "--compare", "fira"]
    assert cli("train", "--text", text, *TINY, *options, "--steps", 2, "--warmup", 0, "--out", tmp_path).code == 0
    assert "Of fira the rate alone was tuned" in (tmp_path / "report.html").read_text()


def test_plots_survive_missing_values():
    train = [{"event": "train", "step": 1, "seconds": 0.1, "train_loss": None, "tokens_per_s": 1.0}]
    val = [{"event": "eval", "step": 1, "seconds": 0.1, "val_loss": loss} for loss in (None, 5.0)]
    for lines in ((train, val), ([], []), (train, []), ([], val)):
        assert_png(picture([Series(ROW, *lines, [], 16)], "title"))


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
