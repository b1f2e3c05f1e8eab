"""Rows are read, parted and labelled; the same rows give the same parts in any order."""

from __future__ import annotations

import csv
import inspect
import json

from finetune_cases import write_csv
from lowrank_core.adapters import (
    ALLoRAAdamW,
    GeoLoRA,
    LoKO,
    LoRAProAdamW,
    ScaledAdamW,
    loraplus_param_groups,
    lorapro,
    observation,
)
from lowrank_core.cli.finetune.config import FISHERS, METHODS, MOMENTS
from lowrank_core.cli.finetune.docstrings import CLASSES, docstrings
from lowrank_core.cli.finetune.rows import Row, part, read_tables


def test_tables_of_each_kind(tmp_path):
    rows = [Row("one, two", "1"), Row('a "quoted"\nline', "2"), Row("größer", "2")]
    comma, tsv, lines = (tmp_path / name for name in ("a.CSV", "a.tsv", "a.jsonl"))
    comma.write_text('\ufefflabel,text,more\n1,"one, two",x\n2,"a ""quoted""\nline",x\n2,größer,x\n')
    tsv.write_text('label\ttext\n1\tone, two\n2\t"a ""quoted""\nline"\n2\tgrößer\n')
    lines.write_text("\n\n".join(json.dumps({"text": text, "label": int(label)}) for text, label in rows))
    for path in (comma, tsv, lines):
        assert read_tables([str(path)], "text", "label") == rows
    assert read_tables([str(comma), str(tsv)], "text", None) == [Row(row.text) for row in rows] * 2


def test_a_text_may_be_long(tmp_path):
    """Longer than the limit of the csv module, which stays as it was."""
    limit, text = csv.field_size_limit(), "word " * 40_000
    path = write_csv(tmp_path / "rows.csv", [(text, "a"), ("short", "b")])
    assert len(text) > limit and read_tables([str(path)], "text", "label") == [Row(text, "a"), Row("short", "b")]
    assert csv.field_size_limit() == limit


def test_labels_of_lines(tmp_path):
    """Equal numbers are one label; truth values are written as JSON has them, and null is no text."""
    for values, labels in (([1, 1.0, 1e0, 2.5], "1 1 1 2.5"), ([True, False], "true false"), (["1.0", "1"], "1.0 1")):
        rows = [{"text": None, "label": value} for value in values]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        found = read_tables([str(tmp_path / "rows.jsonl")], "text", "label")
        assert found == [Row("", label) for label in labels.split()]


def test_each_label_is_held_out(tmp_path):
    rows = [Row(f"text {number}", "few" if number % 10 == 0 else "many") for number in range(100)]
    found = part([*rows, *rows[:5], Row("  ", "few")], 0.25)
    assert sorted([*found.train, *found.val]) == sorted(rows) and not set(found.train) & set(found.val)
    assert [sum(row.label == label for row in found.val) for label in ("few", "many")] == [2, 22]
    assert found.labels == ("few", "many") and found.skipped == 1
    assert part(rows[::-1], 0.25) == part(rows, 0.25)
    assert part(rows[1:], 0.25).sha256 != found.sha256


def test_docstrings_of_packages(tmp_path):
    for number in range(CLASSES + 1):
        folder = tmp_path / f"package{number}"
        (folder / "test").mkdir(parents=True)
        own = "".join(f'def f{i}():\n    """What f{i} of package {number} does."""\n' for i in range(number + 2))
        (folder / "__init__.py").write_text(f'"""Common to all of the packages."""\n{own}def g():\n    "Short."\n')
        (folder / "test/__init__.py").write_text('"""A docstring of tests, which are left out."""')
        (folder / "broken.py").write_text("def")
    rows = docstrings(tmp_path)
    counts = {name: sum(row.label == name for row in rows) for _, name in rows}
    assert counts == {f"package{number}": 3 for number in range(1, CLASSES + 1)}
    assert all(row.text.endswith(f"of package {row.label[-1]} does.") for row in rows)
    assert docstrings(tmp_path) == rows


def test_docstrings_of_this_python():
    labels = [row.label for row in docstrings()]
    assert len(set(labels)) == CLASSES and len({labels.count(label) for label in labels}) == 1
    assert "asyncio" in labels and len(labels) >= 50 * CLASSES


def test_choices_and_defaults_are_those_of_the_classes():
    """They are written a second time where nothing heavy is imported."""
    assert (FISHERS, MOMENTS) == (observation.FISHERS, lorapro.MOMENTS)
    classes = {"geolora": GeoLoRA, "loko": LoKO, "scaled": ScaledAdamW, "lora-pro": LoRAProAdamW, "allora": ALLoRAAdamW}
    chosen = {"fisher"}  # a row for each class of each sample takes too long
    for method, kind in classes.items():
        known = inspect.signature(kind).parameters
        own = {name: value for name, value in METHODS[method][1].items() if name not in chosen}
        assert own == {name: known[name].default for name in own}, method
    assert METHODS["lora+"][1]["ratio"] == inspect.signature(loraplus_param_groups).parameters["ratio"].default
