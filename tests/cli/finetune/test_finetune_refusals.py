"""Bad input of `finetune` gets one sentence on stderr and exit code 2, and no folder."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil

import pytest
from cli_cases import flags
from finetune_cases import TINY
from safetensors.torch import load_file, save_file


def assert_refused(outcome, pattern: str) -> None:
    assert outcome.code == 2
    assert re.search(pattern, outcome.err), outcome.err
    assert outcome.err.startswith("lowrank-core finetune: ") and outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--method", "sgd"], "--method: invalid choice: 'sgd'"),
        (["--task", "translation"], "--task: invalid choice"),
        (["--rank", "0"], "--rank: must be a whole number >= 1, got '0'"),
        (["--ratio", "4"], "`--ratio` must come with the method lora\\+, got lora"),
        (["--tol", "0.1"], "`--tol` must come with the method geolora, got lora"),
        (["--method", "loko", "--clip", "1"], "`--clip` must come with a method that takes gradients, got loko"),
        (["--method", "loko", "--betas", "0.9", "0.99"], "`--betas` must come with a method that takes gradients"),
        (["--method", "loko", "--eps", "1e-8"], "`--eps` must come with a method that takes gradients, got loko"),
        (["--method", "loko", "--accumulation", "2"], "`--accumulation` must come with .* which add up, got loko"),
        (["--method", "loko", "--precision", "amp-fp16"], "`--precision amp-fp16` must come with .* use amp-bf16"),
        (["--moment-dtype", "int8"], "`--moment-dtype` must come with the method scaled, lora-pro or allora, got lora"),
        (["--method", "geolora", "--tol", "5"], "--tol: must be a number >= 0 and < 1, got '5'"),
        (["--method", "geolora", "--max-rank", "1"], "`--max-rank` must be at least `--rank`, 2, got 1"),
        (["--warmup", "7"], "`--warmup` must be at most `--steps`, 6, got 7"),
        (["--seq-len", "13"], "`--seq-len` must be at most 12, the model's positions, got 13"),
        (["--model", "/nowhere"], "`--model` must name a folder .* got '/nowhere', which does not exist"),
        (["--model", __file__], "`--model` must name a folder or a GGUF file, got the file"),
        (["--data", "/nowhere.csv"], "`--data` must name files, got '/nowhere.csv', which does not exist"),
        (["--data", "/nowhere"], "must be a CSV, TSV or JSONL file with labels, got '/nowhere'"),
        (["--data", "/nowhere", "--task", "causal-lm"], "`--data` must name files or folders, got '/nowhere'"),
        (["--data", "/no.csv", "/no.txt"], "`--data` must be tables or plain text, got both: '/no.csv' and '/no.txt'"),
        (
            ["--text-column", "body"],
            "`--text-column` must name a column of '.*', got 'body'; line 2 has text",
        ),
        (["--label-column", "kind"], "`--label-column` must name a column of '.*', got 'kind'; line 2 has text and"),
        (["--resume"], "`--resume` needs a run, but there is none"),
        (["--out", __file__], "`--out` must be a folder .* \\(a file\\)"),
    ],
)
def test_bad_options(tiny, cli, tmp_path, options, pattern):
    out = [] if "--out" in options else ["--out", tmp_path / "run"]
    assert_refused(cli(*tiny, *out, *options), pattern)
    assert not (tmp_path / "run").exists()


FILES = (
    ("rows.csv", "", "must hold text, got none"),
    ("rows.csv", "text,label\n", "must hold text, got none"),
    ("rows.csv", "text,label\n ,a\n", "must hold text, got none"),
    ("rows.csv", "text,label\none,a\ntwo,\n", "must have a label in each row, got none in line 3"),
    ("rows.csv", 'text,label\n"one,a\n', "is no table .*line"),
    ("rows.csv", "text,label\none,a\ntwo,a\n", "must have at least two labels, got 1 \\(a\\)"),
    ("rows.csv", "text,label\none,a\ntwo,a\nthree,b\nthree,b\n", "two different texts of the label 'b', got 1"),
    ("rows.csv", b"text,label\n\xff\xfe,a\n", "must name UTF-8 text"),
    ("rows.csv", "text,label\none,a\ntwo, or three,b\n", "line 3 of '.*' must have 2 cells, one for .*, got 3; put"),
    ("rows.csv", "text,label,text\none,a,b\n", "must name each column once, got 'text' twice; rename one"),
    ("rows.csv", "text,label\none\n", "must have a label in each row, got none in line 2"),
    ("rows.jsonl", '{"text": ["one"], "label": "a"}\n', "`--text-column` must hold text, got a list in line 1 of"),
    ("rows.jsonl", '{"text": 5, "label": "a"}\n', "`--text-column` must hold text, got a number in line 1 of"),
    (
        "rows.jsonl",
        '{"text": "", "label": {}}\n',
        "`--label-column` must hold texts or numbers, got an object in line 1",
    ),
    ("rows.jsonl", '{"text": "", "label": NaN}\n', "`--label-column` must hold texts or numbers, got nan in line 1"),
    (
        "rows.jsonl",
        '{"text": "one", "label": 1}\n{"text": "two", "label": true}\n',
        "`--label-column` must hold labels of one kind, got a number in line 1 and a truth value in line 2 of",
    ),
    ("rows.jsonl", '{"text": "one", "label": "a"}\n{"text": \n', "line 2 of '.*' is no JSON"),
    ("rows.jsonl", '["one", "a"]\n', "line 1 of '.*' must be an object with columns, got list"),
    ("rows.jsonl", '{"text": "one"}\n', "`--label-column` must name a column of '.*', got 'label'; line 1 has text"),
)


@pytest.mark.parametrize(("name", "content", "pattern"), FILES)
def test_bad_data(cli, encoder, tmp_path, name, content, pattern):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "run"
    assert_refused(cli("finetune", "--model", encoder, "--data", path, *TINY, "--out", out), pattern)
    assert not out.exists()


def test_models_that_are_none(tiny, cli, encoder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    out = ["--out", tmp_path / "run"]
    assert_refused(cli("finetune", *tiny[3:], *out), "`--model` is missing; name a folder")
    assert_refused(cli(*tiny, "--model", folder, *out), "must name a folder with config.json or a GGUF file")
    (folder / "one.gguf").touch()
    assert_refused(cli(*tiny, "--model", folder, *out), "must be what transformers can load|needs the package gguf")
    (folder / "two.gguf").touch()
    assert_refused(cli(*tiny, "--model", folder, *out), "has one.gguf and two.gguf; name the file")
    shutil.copy(encoder / "config.json", folder)
    assert_refused(cli(*tiny, "--model", folder, *out), "must be what transformers can load for classification")
    assert_refused(cli(*tiny, "--model", encoder, "--data", __file__, "--task", "causal-lm", "--seq-len", 12,
                       *flags(val_fraction=0.001), *out), "`--data` must hold")  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_files_that_do_not_belong_together(tiny, cli, encoder, tmp_path):
    model, out = tmp_path / "model", ["--out", tmp_path / "run"]
    shutil.copytree(encoder, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    assert_refused(cli(*tiny, "--model", model, *out), "must fit its config.json, got '.*', whose `bert.*` does not")
    fewer = config["vocab_size"] - 1
    weights = load_file(model / "model.safetensors")
    words = next(name for name in weights if name.endswith("word_embeddings.weight"))
    save_file({**weights, words: weights[words][:fewer].clone()}, model / "model.safetensors", {"format": "pt"})
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": fewer}))
    assert_refused(cli(*tiny, "--model", model, *out), f"which has {fewer} tokens, got number {fewer}; name a folder")
    assert not (tmp_path / "run").exists()


def test_packages_that_are_missing(tiny, cli, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    gone = "transformers"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == gone else found(name))
    pattern = "needs transformers; install what is missing with `pip install '.\\[integrations\\]'`"
    assert_refused(cli(*tiny, "--out", tmp_path / "run"), pattern)
    gone = "safetensors"
    assert_refused(cli(*tiny, "--out", tmp_path / "run"), "needs safetensors; .*'.\\[train\\]'")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # which PEFT asks for
def test_layers_that_are_none_of_torch(tiny, cli, encoder, tmp_path):
    """GPT-2's, which PEFT takes: its factors are found there."""
    import peft
    import transformers
    from finetune_cases import SIZES
    from lowrank_core.adapters import find_pairs

    shutil.copytree(encoder, tmp_path / "model")
    sizes = {"n_embd": SIZES["hidden_size"], "n_layer": 1, "n_head": 2, "n_positions": 12}
    config = transformers.GPT2Config(vocab_size=SIZES["vocab_size"], **sizes)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "model")
    for task in ("classification", "causal-lm"):
        outcome = cli(*tiny, "--model", tmp_path / "model", "--task", task, "--out", tmp_path / "run")
        assert_refused(outcome, "lora cannot train this model: its layers are transformers' Conv1D, and adapters")
    lora = peft.LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    assert len(find_pairs(peft.get_peft_model(model, lora))) == 3


def test_another_run_or_adapter_in_the_folder(tiny, cli, tmp_path):
    (tmp_path / "adapter_config.json").write_text("mine")
    assert_refused(cli(*tiny, "--out", tmp_path), "must not hold another adapter")
    assert (tmp_path / "adapter_config.json").read_text() == "mine"
    assert cli(*tiny, "--out", tmp_path, "--overwrite").code == 0
    assert_refused(cli(*tiny, "--out", tmp_path / ""), "must not hold")
    outcome = cli("train", "--resume", "--out", tmp_path)
    assert outcome.code == 2 and "needs a run of `train`, but" in outcome.err and "one of `finetune`" in outcome.err
    assert_refused(cli("finetune", "--resume", "--steps", 5, "--out", tmp_path), "`--steps` may only grow .* from 6")
    assert_refused(cli("finetune", "--resume", "--lr", 1, "--out", tmp_path), "`--lr` must stay 0.05 .* got 1.0")


def test_what_has_changed_since(tiny, cli, encoder, table, tmp_path):
    model, data, out = (tmp_path / name for name in ("model", "rows.csv", "run"))
    shutil.copytree(encoder, model)
    shutil.copy(table, data)
    assert cli(*tiny, "--model", model, "--data", data, "--method", "adalora", "--out", out).code == 0
    again = ["finetune", "--resume", "--out", out]
    assert_refused(cli(*again, "--steps", 9), "`--steps` of adalora must stay 6")
    data.write_text(data.read_text().replace("wave", "salt"))
    assert_refused(cli(*again), "the text has changed since")
    shutil.copy(table, data)
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    assert_refused(cli(*again), "the model in '.*' has changed since")
