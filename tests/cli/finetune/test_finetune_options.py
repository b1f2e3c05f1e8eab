"""Options that `finetune` shares with `train`: precision, accumulation, Adam's numbers."""

from __future__ import annotations

import json

import pytest
import torch
from cli_cases import flags
from cli_states import assert_same, final_state
from finetune_cases import tuned
from lowrank_core.cli import checkpoint
from lowrank_core.cli.finetune.config import FILTERS, METHODS, FinetuneConfig, takers_of
from lowrank_core.cli.finetune.methods import place
from lowrank_core.cli.finetune.resolve import resolve
from lowrank_core.cli.metrics import read
from safetensors.torch import load_file
from testing import tolerance

pytestmark = pytest.mark.filterwarnings("ignore")  # what the libraries say of their own future


def train_lines(folder, key):
    return [line[key] for line in read(folder / "metrics.jsonl") if line["event"] == "train"]


@pytest.mark.parametrize(
    ("method", "precision", "accumulation"),
    [
        ("lora", "fp32", 3),
        ("lora", "amp-fp16", 2),
        ("scaled", "bf16", 2),
        ("adalora", "bf16", 1),
        ("geolora", "amp-bf16", 2),
        ("loko", "bf16", 1),
        ("loko", "amp-bf16", 1),
    ],
)
def test_a_resume_in_every_precision(tiny, cli, tmp_path, method, precision, accumulation, monkeypatch):
    """To the bit, the loss scale included; and what trains is in float32, in the checkpoint and for PEFT."""
    from lowrank_core.cli.loop import Run

    options = [*tiny, *flags(method=method, precision=precision, accumulation=accumulation, lr=0.05)]
    assert cli(*options, "--out", tmp_path / "whole").code == 0
    step = Run.train_step
    monkeypatch.setattr(Run, "train_step", lambda run, log: 1 / 0 if run.step == 3 else step(run, log))
    with pytest.raises(ZeroDivisionError):
        cli(*options, "--out", tmp_path / "cut")
    monkeypatch.undo()
    assert cli("finetune", "--resume", "--out", tmp_path / "cut").code == 0
    whole = final_state(tmp_path / "whole")
    assert_same(final_state(tmp_path / "cut"), whole)
    saved = whole[f"{method}.checkpoint.safetensors"]
    assert bool(saved["scaler"]) is (precision == "amp-fp16")
    for tensors in (saved["model"], load_file(tmp_path / "whole/adapter_model.safetensors")):
        assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}
    assert train_lines(tmp_path / "whole", "samples") == [4 * accumulation * n for n in range(1, 7)]


@pytest.mark.parametrize("method", METHODS)
def test_bf16_is_of_what_does_not_train(tiny, cli, tmp_path, method):
    """The head computes in float32 on what comes in bfloat16."""
    options = flags(method=method, precision="bf16", steps=1, eval_every=1)
    assert cli(*tiny, *options, "--out", tmp_path).code == 0
    run = tuned(tmp_path)
    kinds = {(p.dtype, p.requires_grad) for p in run.model.parameters()}
    assert kinds == {(torch.bfloat16, False), (torch.float32, True)}
    logits = run.model.eval()(run._batches[0].inputs)
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


def test_autocast_narrows_what_is_between(tiny, cli, decoder, tmp_path):
    """Of what the model computes only; a decoder, for it has no dropout whose draws would differ."""
    found = {}
    for precision in ("fp32", "amp-bf16", "amp-fp16"):
        options = ["--model", decoder, "--precision", precision, *flags(steps=1, eval_every=1)]
        assert cli(*tiny, *options, "--out", tmp_path / precision).code == 0
        found[precision] = {key: train_lines(tmp_path / precision, key)[0] for key in ("train_loss", "grad_norm")}
        found[precision]["val_loss"] = next(read(tmp_path / precision / "metrics.jsonl"))["val_loss"]
    for precision, dtype in (("amp-bf16", torch.bfloat16), ("amp-fp16", torch.float16)):
        for key, value in found[precision].items():
            assert value != found["fp32"][key]
            assert value == pytest.approx(found["fp32"][key], rel=20 * tolerance.UNIT[dtype]), (precision, key)


def test_accumulated_batches_are_one_batch(tiny, cli, decoder, tmp_path):
    """The same samples at once and in two parts give the same loss and gradient, but for the order of sums: of some
    twenty products of up to 40 terms there and back, in each of three steps that feed the next."""
    for name, batch, parts in (("once", 8, 1), ("parts", 4, 2)):
        options = ["--model", decoder, *flags(steps=3, eval_every=3, batch_size=batch, accumulation=parts)]
        assert cli(*tiny, *options, "--out", tmp_path / name).code == 0
    bound = 3 * 2 * 20 * tolerance.gamma(40, torch.float32)
    for key in ("train_loss", "grad_norm"):
        assert train_lines(tmp_path / "parts", key) == pytest.approx(train_lines(tmp_path / "once", key), rel=bound)
    assert "3 steps of 8 samples" in (tmp_path / "parts/report.html").read_text()


@pytest.mark.parametrize("method", [name for name in METHODS if name not in FILTERS])
def test_numbers_of_adam_reach_the_optimizer(method):
    of_adam = {"betas": (0.5, 0.75), "eps": 1e-3}
    config = resolve(FinetuneConfig(model="x", method=method, **of_adam))
    optimizer, _ = place(torch.nn.Sequential(torch.nn.Linear(16, 16)), config, ())
    assert all({key: group[key] for key in of_adam} == of_adam for group in optimizer.param_groups)
    default, _ = place(torch.nn.Sequential(torch.nn.Linear(16, 16)), resolve(FinetuneConfig("x", method=method)), ())
    assert {(group["betas"], group["eps"]) for group in default.param_groups} == {((0.9, 0.999), 1e-8)}


@pytest.mark.parametrize("method", takers_of("moment_dtype"))
def test_moments_in_bfloat16(tiny, cli, tmp_path, method):
    held = {}
    for kind in ("auto", "bfloat16"):
        options = ["--method", method, "--moment-dtype", kind, *flags(rank=8, steps=1, eval_every=1)]
        assert cli(*tiny, *options, "--out", tmp_path / kind).code == 0
        held[kind] = json.loads((tmp_path / kind / "summary.json").read_text())["runs"][0]["state_bytes"]
    assert held["bfloat16"] < 0.6 * held["auto"]


def test_a_filter_that_diverges_is_told_what_helps(tiny, cli, tmp_path, monkeypatch):
    from lowrank_core.cli.finetune import tuning

    monkeypatch.setattr(tuning, "mean_loss", lambda logits, targets: logits.sum() * torch.nan)
    outcome = cli(*tiny, "--method", "loko", "--lr", 1, "--out", tmp_path / "loko")
    assert outcome.code == 2 and "loko diverged at step 1 (loss nan); lower `--p0`" in outcome.err
    outcome = cli(*tiny, "--out", tmp_path / "lora")
    assert outcome.code == 2 and "lora diverged at step 1" in outcome.err and "lower its learning rate" in outcome.err


def test_a_run_from_before_these_options_goes_on(tiny, cli, tmp_path):
    """With the values that it had."""
    assert cli(*tiny, "--out", tmp_path).code == 0
    newer = ("betas", "eps", "accumulation", "precision", "moment_dtype")
    described, path = json.loads((tmp_path / "run.json").read_text()), tmp_path / "lora.checkpoint.safetensors"
    described["config"] = {key: value for key, value in described["config"].items() if key not in newer}
    saved = checkpoint.load(path)
    checkpoint.save(path, {**saved, "config": described["config"]})
    (tmp_path / "run.json").write_text(json.dumps(described))
    outcome = cli("finetune", "--resume", "--steps", 8, "--out", tmp_path)
    assert outcome.code == 0, outcome.err
    assert len(train_lines(tmp_path, "step")) == 8
