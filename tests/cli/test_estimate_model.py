"""`estimate --model`: what it prints of a configuration is what training the model holds."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lowrank_core.cli import model_config
from lowrank_core.cli.defaults import takers
from lowrank_core.memory import methods as memory
from lowrank_core.optim import LISA, METHODS, Int8Linear, fused_backward, param_groups
from testing.gradients import bytes_held, every_gradient_alive
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
RANK, VOCABULARY = 4, 40
SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": VOCABULARY}
LLAMA = {**SIZES, "model_type": "llama", "intermediate_size": 24, "num_key_value_heads": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "tied": {**LLAMA, "tie_word_embeddings": True, "attention_bias": True},
    "gpt2": {
        "model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": VOCABULARY,
    },
    "bert": {
        **SIZES, "model_type": "bert", "intermediate_size": 24, "max_position_embeddings": 32,
        "architectures": ["BertForMaskedLM"],
    },
    "mixtral": {**LLAMA, "model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2},
}  # fmt: skip
every_model = pytest.mark.parametrize("kind", CONFIGS)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(values))
    return path


def rows(cli, path: Path, *options: object, name: str = "all") -> dict[str, dict[str, Any]]:
    """The rows of the table of all optimizers, or of AdamW and `name`."""
    rank = ["--rank", RANK] if name in ("all", *takers("rank")) else []
    outcome = cli("estimate", "--model", path, "--optimizer", name, *rank, "--json", *options)
    assert outcome.code == 0, outcome.err
    return {row["optimizer"]: row for row in json.loads(outcome.out)["bytes"]}


def real(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model itself, made by transformers without this package."""
    values = CONFIGS[kind]
    config = transformers.AutoConfig.for_model(**values)
    auto = transformers.AutoModelForMaskedLM if "architectures" in values else transformers.AutoModelForCausalLM
    return auto.from_config(config, attn_implementation="eager").to(dtype)


def made(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer as a user makes it: at that rank, or at the method's own where it takes matrices whole."""
    rank = RANK if name in takers("rank") else memory.METHODS[name].rank
    together = {} if "stagger" in memory.METHODS[name].lacks else {"stagger": False}
    return METHODS[name](param_groups(model, rank=rank, verbose=False), nonfinite="raise", **together)


def backward(model: nn.Module) -> None:
    tokens = torch.randint(VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(0))
    model(input_ids=tokens, labels=tokens).loss.backward()


def stored(tensors: Iterator[Tensor]) -> int:
    """Bytes of storages, each counted once."""
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(found.values())


@every_model
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.usefixtures("no_network")
def test_every_method(cli, tmp_path, kind, dtype):
    """Weights, gradients and states of the real model after a step, to the byte."""
    estimated = rows(cli, written(tmp_path, CONFIGS[kind]), "--dtype", dtype)
    assert list(estimated) == ["adamw", *METHODS, *memory.FACADES]
    model = real(kind, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    backward(model)
    for param in model.parameters():  # experts that no token chose have none
        param.grad = torch.ones_like(param) if param.grad is None else param.grad
    grads = [param.grad for param in model.parameters()]
    for name, row in estimated.items():
        if name == "lisa":
            continue
        optimizer = torch.optim.AdamW(model.parameters()) if name == "adamw" else made(name, model)
        optimizer.step()
        held = (t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))
        state = optimizer.planned_state_bytes() if name == "adarankgrad" else stored(held)
        assert row["state"] == state, name
        assert row["weights"] == stored(iter(model.parameters())) and row["gradients"] == stored(iter(grads)), name
        assert row["total"] == row["weights"] + row["state"] + row["gradients"]


def test_lisa(cli, tmp_path):
    """Two layers have gradients and states, and all that is outside of the stack."""
    estimated = rows(cli, written(tmp_path, LLAMA), name="lisa")["lisa"]
    model = real("llama")
    optimizer = LISA(torch.optim.AdamW(model.parameters()), model)
    backward(model)
    grads = [param.grad for param in model.parameters() if param.grad is not None]
    assert estimated["gradients"] == stored(iter(grads))
    optimizer.step()
    states = optimizer.optimizer.state.values() if hasattr(optimizer, "optimizer") else optimizer.state.values()
    assert estimated["state"] == stored(t for state in states for t in state.values() if isinstance(t, Tensor))
    assert estimated["layerwise"] is None


@pytest.mark.parametrize("name", METHODS)
def test_layerwise_updates(cli, tmp_path, name):
    """The gradients that `fused_backward` holds at a step, and the most that are there inside backward."""
    row = rows(cli, written(tmp_path, LLAMA), name=name)[name]
    at_once, added = row["layerwise"]["at_once"], row["layerwise"]["added"]
    model = real("llama")
    optimizer = made(name, model)
    with every_gradient_alive(model, optimizer) as alive:
        fused_backward(model, optimizer, at_once=True)
        for _ in range(2):
            backward(model)
            assert bytes_held(optimizer) == 0
            optimizer.step()
    assert at_once["gradients"] == max(alive)
    assert at_once["total"] == row["weights"] + row["state"] + max(alive)
    model = real("llama")
    optimizer = made(name, model)
    with every_gradient_alive(model, optimizer) as alive:
        fused_backward(model, optimizer)
        for whole in ("due", "held"):
            backward(model)
            if added is None:
                with pytest.raises(RuntimeError, match="must get one gradient per step"):
                    backward(model)
                return
            backward(model)
            assert bytes_held(optimizer) == added[whole]
            assert bytes_held(optimizer) <= max(alive) <= bytes_held(optimizer) + added["passing"]
            optimizer.step()
            optimizer.zero_grad()
            alive.clear()
    assert added["gradients"] == added["held"] + added["passing"]
    assert added["total"] == row["weights"] + row["state"] + added["gradients"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_sketches_of_flora(cli, tmp_path, kind, dtype):
    """With `compressed=True` every step holds the same: sketches in the working dtype, and what is plain whole."""
    row = rows(cli, written(tmp_path, CONFIGS[kind]), "--dtype", dtype, name="flora")["flora"]
    sketches = row["layerwise"]["compressed"]
    model = real(kind, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    optimizer = made("flora", model)
    with every_gradient_alive(model, optimizer) as alive:
        handle = fused_backward(model, optimizer, compressed=True)
        for _ in range(2):
            backward(model)
            backward(model)
            assert bytes_held(optimizer) == sketches["held"] == sketches["due"]
            assert sketches["held"] < max(alive) <= sketches["gradients"]
            optimizer.step()
            optimizer.zero_grad()
            alive.clear()
    assert handle.plan()._asdict() == {key: sketches[key] for key in ("ordinary", "held", "due", "passing")}
    assert sketches["gradients"] == sketches["held"] + sketches["passing"]
    assert sketches["total"] == row["weights"] + row["state"] + sketches["gradients"]


@pytest.mark.parametrize("name", METHODS)
def test_weights_in_8_bits(cli, tmp_path, name):
    row = rows(cli, written(tmp_path, LLAMA), "--dtype", "bf16", "--int8-weights", name=name)
    assert row["adamw"]["weights"] == stored(iter(real("llama", torch.bfloat16).parameters()))
    model = real("llama", torch.bfloat16)
    for module in [*model.modules()]:
        for key, child in [*module.named_children()]:
            if isinstance(child, nn.Linear) and key != "lm_head":
                setattr(module, key, Int8Linear.from_linear(child))
    optimizer = made(name, model)
    backward(model)
    grads = [param.grad for param in model.parameters()]
    optimizer.step()
    parts = (
        p for param in model.parameters() for p in ([param.codes, param.scales] if hasattr(param, "codes") else [param])
    )
    assert row[name]["weights"] == stored(parts)
    assert row[name]["gradients"] == stored(iter(grads))
    held = optimizer.planned_state_bytes() if name == "adarankgrad" else optimizer.state_bytes()
    assert row[name]["state"] == held
    coded = json.loads(cli("estimate", "--layers", 2, "--int8-weights", "--json").out)["bytes"]
    assert coded[1]["weights"] < coded[0]["weights"] == coded[-1]["weights"]


def test_a_configuration_is_its_preset(cli, tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
    values = {"model_type": "llama", **sizes, "vocab_size": 32000, "architectures": ["LlamaForCausalLM"]}
    written(tmp_path, values)
    options = ["--dtype", "bf16", "--int8-weights", "--json"]
    by_model, by_preset = (
        json.loads(cli("estimate", *what, *options).out)
        for what in (["--model", tmp_path], ["--preset", "60m"])  # a folder
    )
    assert by_model == by_preset


def test_a_large_model_takes_no_memory(cli, tmp_path):
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    found = rows(cli, written(tmp_path, {"model_type": "llama", **sizes}), name="galore")
    assert found["adamw"]["weights"] > 2e11


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"hidden_size": 8}, "must name a configuration whose `model_type` transformers .* has, got 'None'"),
        ({"model_type": "gone"}, "`model_type` transformers .* has, got 'gone'; use a newer transformers"),
        ({"model_type": ["llama"]}, r"`model_type` transformers .* has, got '\['llama'\]'"),
        ([1, 2], "which is no JSON object"),
        ({**LLAMA, "hidden_size": -16}, r"cannot build the model of '.*': .*; mend its sizes"),
        ({**LLAMA, "hidden_size": "wide"}, r"cannot build the model of '.*': .*; mend its sizes"),
        ({**LLAMA, "hidden_size": 2**62, "head_dim": 2**61}, r"cannot build the model of '.*': .*; mend its sizes"),
        ({**LLAMA, "num_hidden_layers": 10**6}, r"must describe at most 300 weights, got more in '.*'; .* `--shape`"),
    ],
)
def test_configurations_that_are_none(cli, tmp_path, monkeypatch, values, sentence):
    monkeypatch.setattr(model_config, "MAX_TENSORS", 300)
    outcome = cli("estimate", "--model", written(tmp_path, values))
    assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1, outcome.err
    assert re.search(sentence, outcome.err), outcome.err


def test_files_that_are_none(cli, tmp_path, monkeypatch):
    (tmp_path / "model.json").write_text("{")
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe" * 9)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for given, sentence in [
        (tmp_path / "gone.json", r"got '.*gone.json' \(No such file or directory\); no model is downloaded"),
        (tmp_path, r"or a folder that has one, got '.*' \(No such file or directory\)"),
        (tmp_path / "model.json", r"which is no JSON; save it by `config.save_pretrained\(folder\)`"),
        (tmp_path / "weights.bin", "which is no JSON"),
        (tmp_path / "deep.json", "which is no JSON"),
        ("", "--model: must name a file or a folder, got ''"),
        ("meta-llama/Llama-2-7b", "No such file or directory.*; no model is downloaded"),
    ]:
        outcome = cli("estimate", "--model", given)
        assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1, outcome.err
        assert re.search(sentence, outcome.err), outcome.err
    monkeypatch.setattr(model_config, "_MAX_BYTES", 8)
    outcome = cli("estimate", "--model", written(tmp_path, LLAMA))
    assert outcome.code == 2 and re.search("which has .* bytes; name the configuration beside it", outcome.err)


def test_a_model_with_nothing_to_project(cli, tmp_path):
    thin = {**LLAMA, "hidden_size": 2, "num_attention_heads": 1, "head_dim": 2, "intermediate_size": 2}
    outcome = cli("estimate", "--model", written(tmp_path, thin), "--rank", 4)
    assert outcome.code == 2 and re.search("`--rank` must be < 2, the largest min", outcome.err), outcome.err


def test_without_transformers(cli, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    outcome = cli("estimate", "--model", written(tmp_path, LLAMA))
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert re.search(r"`--model` needs transformers and torch, and there is no transformers; install", outcome.err)
