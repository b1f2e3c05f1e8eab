"""Every method and task trains, ends with a report, and leaves an adapter that PEFT loads."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers
from cli_cases import flags
from cli_states import assert_same, final_state
from finetune_cases import LABELS, TINY, assert_adapted, stock_logits, texts, tuned
from lowrank_core.cli.finetune.config import METHODS
from lowrank_core.cli.metrics import read

pytestmark = pytest.mark.filterwarnings("ignore")  # what the libraries say of their own future
FEW = flags(steps=3, eval_every=3)
# Rates at which the tiny model moves in three steps.
RATES = {"lora+": 0.02, "loko": 1.0}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_an_adapter_for_peft(tiny, cli, encoder, tmp_path, method):
    outcome = cli(*tiny, *FEW, "--method", method, "--lr", RATES.get(method, 0.05), "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    run = tuned(tmp_path)
    auto = transformers.AutoModelForSequenceClassification
    assert_adapted(*stock_logits(run, encoder, tmp_path, auto, num_labels=len(LABELS)))
    lines = list(read(tmp_path / "metrics.jsonl"))
    assert [line["samples"] for line in lines if line["event"] == "train"] == [4, 8, 12]
    assert [line["step"] for line in lines if line["event"] == "eval"] == [0, 3]
    assert json.loads((tmp_path / "summary.json").read_text())["runs"][0]["accuracy"] == run.progress["accuracy"]
    page = (tmp_path / "report.html").read_text()
    assert "Accuracy against samples" in page and "Accuracy against compute" in page
    moving = method in ("adalora", "geolora")
    assert ("Rank of each layer" in page) is any(line["event"] == "ranks" for line in lines) is moving


@pytest.mark.parametrize("method", ["lora", "geolora", "loko"])
def test_a_language_model(cli, decoder, tmp_path, method):
    (tmp_path / "text.txt").write_text("\n".join(text for text, _ in texts(60)))
    options = ["--model", decoder, "--task", "causal-lm", "--data", tmp_path / "text.txt", *TINY, *FEW]
    outcome = cli("finetune", *options, "--method", method, "--lr", RATES.get(method, 0.05), "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    run = tuned(tmp_path / "run")
    assert_adapted(*stock_logits(run, decoder, tmp_path / "run", transformers.AutoModelForCausalLM))


def test_rows_without_labels_train_a_language_model(cli, decoder, tmp_path):
    lines = [json.dumps({"body": text}) for text, _ in texts(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    options = ["--model", decoder, "--task", "causal-lm", "--data", tmp_path / "rows.jsonl", "--text-column", "body"]
    outcome = cli("finetune", *options, *TINY, *FEW, "--out", tmp_path / "run")
    assert outcome.code == 0 and "48 texts to train on, 12 held out" in outcome.out


def test_a_decoder_tells_labels_apart(tiny, cli, decoder, tmp_path):
    """Texts of different lengths in one batch: the model finds the last token by the padding."""
    assert cli(*tiny, *FEW, "--model", decoder, "--out", tmp_path).code == 0
    auto, more = transformers.AutoModelForSequenceClassification, {"num_labels": len(LABELS), "pad_token_id": 0}
    assert_adapted(*stock_logits(tuned(tmp_path), decoder, tmp_path, auto, **more))


def test_it_learns(tiny, cli, tmp_path):
    assert cli(*tiny, *flags(steps=60, batch_size=8, lr=0.02), "--out", tmp_path).code == 0
    assert json.loads((tmp_path / "summary.json").read_text())["runs"][0]["accuracy"] > 2 / 3  # by chance 1 / 3


@pytest.mark.parametrize("method", ["lora", "adalora", "geolora", "loko"])
def test_a_resumed_run_ends_as_an_unbroken_one(tiny, cli, tmp_path, method, monkeypatch):
    """To the bit, dropout included; the run is cut by a failure in place of a signal, between two checkpoints."""
    from lowrank_core.cli.loop import Run

    options = [*tiny, "--method", method, "--lr", RATES.get(method, 0.05)]
    assert cli(*options, "--out", tmp_path / "whole").code == 0
    step = Run.train_step
    monkeypatch.setattr(Run, "train_step", lambda run, log: 1 / 0 if run.step == 3 else step(run, log))
    with pytest.raises(ZeroDivisionError):
        cli(*options, "--out", tmp_path / "cut")
    monkeypatch.undo()
    assert cli("finetune", "--resume", "--out", tmp_path / "cut").code == 0
    assert_same(final_state(tmp_path / "cut"), final_state(tmp_path / "whole"))
    whole, cut = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_a_run_may_grow(tiny, cli, tmp_path):
    assert cli(*tiny, "--out", tmp_path).code == 0
    outcome = cli("finetune", "--resume", "--steps", 8, "--out", tmp_path)
    assert outcome.code == 0 and "steps: 8 instead of 6" in outcome.out
    assert [x["step"] for x in read(tmp_path / "metrics.jsonl") if x["event"] == "train"] == [*range(1, 9)]


def test_a_head_of_another_task_is_made_anew(tiny, cli, encoder, tmp_path):
    """As of a model that was trained to tell five classes, where the table has three."""
    auto = transformers.AutoModelForSequenceClassification
    five, out = tmp_path / "five", tmp_path / "run"
    shutil.copytree(encoder, five)
    auto.from_pretrained(encoder, num_labels=5).save_pretrained(five)
    outcome = cli(*tiny, *FEW, "--model", five, "--out", out)
    assert outcome.code == 0, outcome.err
    more = {"num_labels": len(LABELS), "ignore_mismatched_sizes": True}
    assert_adapted(*stock_logits(tuned(out), five, out, auto, **more))
