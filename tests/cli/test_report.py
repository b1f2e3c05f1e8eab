"""The report: table, picture, page, numbers."""

from __future__ import annotations

import base64
import io
import json
import re
import sys

from cli_cases import TINY
from lowrank_core.cli.plots import plot
from lowrank_core.cli.table import table


def assert_png(data: bytes) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.format == "PNG" and image.width >= 1000
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 50  # something is drawn


def test_files(finished_runs):
    picture = (finished_runs / "report.png").read_bytes()
    assert_png(picture)
    page = (finished_runs / "report.html").read_text()
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # self-contained
    embedded = re.search(r"data:image/png;base64,([^\"]+)", page)
    assert embedded and base64.b64decode(embedded[1]) == picture
    assert "--update-proj-gap" in page


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


def test_single_run_has_a_report_too(text, cli, tmp_path):
    assert cli("train", "--text", text, *TINY, "--optimizer", "adamw", "--out", tmp_path).code == 0
    assert_png((tmp_path / "report.png").read_bytes())


def test_picture_survives_missing_values():
    lines = [
        {"run": "galore", "event": "train", "step": 1, "seconds": 0.1, "train_loss": None},
        {"run": "galore", "event": "eval", "step": 1, "seconds": 0.1, "val_loss": 5.0},
    ]
    assert_png(
        plot(
            lines,
            [{"optimizer": "galore", "val_loss": 5.0, "best_val_loss": 5.0, "state_bytes": 10, "ratio": 0.3}],
            "title",
        )
    )


def test_columns_line_up():
    assert table(("a", "bb"), [("xxx", "1")]).splitlines() == ["a    bb", "---  --", "xxx   1"]
