"""Mixtures of experts of transformers, whose experts are stacks: every one trains, in a subspace of its own."""

from __future__ import annotations

import io
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install '.[integrations]'")

import torch
import transformers
from lowrank_core.optim import METHODS, estimate_state_bytes, fused_backward, param_groups
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future

EXPERTS, WIDTH, HIDDEN, VOCABULARY = 6, 32, 24, 64
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 32, "num_experts_per_tok": 2,
    "output_router_logits": False,
}  # fmt: skip
GPT_OSS = {"num_local_experts": EXPERTS, "intermediate_size": HIDDEN, "sliding_window": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("MixtralConfig", {"num_local_experts": EXPERTS, "intermediate_size": HIDDEN}),
    "Qwen3Moe": ("Qwen3MoeConfig", {"num_experts": EXPERTS, "moe_intermediate_size": HIDDEN}),
    "GptOss": ("GptOssConfig", GPT_OSS),  # [E, in, out], and biases [E, out]
}
# [m, n] of one expert, as it is stored.
SHAPES = {
    "Mixtral": {"gate_up_proj": (2 * HIDDEN, WIDTH), "down_proj": (WIDTH, HIDDEN)},
    "Qwen3Moe": {"gate_up_proj": (2 * HIDDEN, WIDTH), "down_proj": (WIDTH, HIDDEN)},
    "GptOss": {"gate_up_proj": (WIDTH, 2 * HIDDEN), "down_proj": (HIDDEN, WIDTH)},
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str) -> nn.Module:
    kind, own = MODELS[name]
    if not hasattr(transformers, kind):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**SIZES, **own)
    config._attn_implementation = "eager"
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    if not any(param.ndim == 3 for param in model.parameters()):
        pytest.skip(f"transformers {transformers.__version__} has the experts of {name} as modules, not as stacks")
    return model


def loss_of(model: nn.Module, number: int) -> Tensor:
    """Of sequences that count up, from letters of their own in each batch."""
    first = torch.randint(VOCABULARY, (8, 1), generator=torch.Generator().manual_seed(number))
    tokens = (first + torch.arange(12)) % VOCABULARY
    loss: Tensor = model(input_ids=tokens, labels=tokens).loss
    return loss


def train(model: nn.Module, optimizer: Any, steps: range) -> list[float]:
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def make(method: str, model: nn.Module) -> Any:
    kind: Any = METHODS[method]
    lr = {"muon": 0.02, "frugal": 0.005, "scale": 0.005}.get(method, 0.01)
    gap = {"update_proj_gap": 4} if method in ("galore", "qgalore", "adarankgrad") else {}
    return kind(param_groups(model, rank=8, verbose=False), lr=lr, **gap)


@every_model
def test_the_plan(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Stacks beside linear layers; routers, biases and embeddings are AdamW's."""
    model = build(name)
    groups = param_groups(model, rank=8)
    shown = capsys.readouterr().out
    for part, (rows, cols) in SHAPES[name].items():
        line = next(line for line in shown.splitlines() if f"experts.{part} " in line)
        assert f"{EXPERTS}x{rows}x{cols}" in line and f"a stack of {EXPERTS} matrices" in line
    plan = {row.name: row for row in METHODS["galore"](groups).plan()}
    assert len(plan) == len(list(model.parameters()))
    matrices = ("_proj.weight", "experts.gate_up_proj", "experts.down_proj")
    assert [key for key, row in plan.items() if row.projected] == [key for key in plan if key.endswith(matrices)]


RUNS = [("Qwen3Moe", "galore"), ("GptOss", "galore"), ("GptOss", "muon")]
RUNS += [("Mixtral", method) for method in ("galore", "muon", "qgalore", "adarankgrad", "frugal", "scale")]


@pytest.mark.parametrize(("name", "method"), RUNS)
def test_it_learns_and_resumes_to_the_bit(name: str, method: str) -> None:
    model = build(name)
    optimizer = make(method, model)
    losses = train(model, optimizer, range(12))
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert optimizer.state_bytes() <= estimate_state_bytes(model, method, rank=8) == optimizer.planned_state_bytes()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin = build(name)
    twin.load_state_dict(saved["model"])
    other = make(method, twin)
    other.load_state_dict(saved["optimizer"])
    assert train(model, optimizer, range(12, 15)) == train(twin, other, range(12, 15))
    for (key, one), two in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two), key


@every_model
def test_every_expert_has_a_subspace_of_its_own(name: str) -> None:
    model = build(name)
    optimizer = make("galore", model)
    train(model, optimizer, range(6))
    rows = {row.name: row for row in optimizer.projections()}
    for layer in range(2):
        for part, shape in SHAPES[name].items():
            known_as = next(
                key
                for key, _ in model.named_parameters()
                if f"layers.{layer}." in key and key.endswith(f"experts.{part}")
            )
            found = [rows[f"{known_as}[{expert}]"] for expert in range(EXPERTS)]
            assert {row.shape for row in found} == {shape}
            captured = [row.captured for row in found if row.captured is not None]
            assert len(set(captured)) == len(captured) > EXPERTS // 2


@every_model
def test_layer_wise(name: str) -> None:
    models = [build(name) for _ in range(2)]
    optimizers = [make("galore", model) for model in models]
    fused_backward(models[0], optimizers[0])
    assert train(models[0], optimizers[0], range(8)) == train(models[1], optimizers[1], range(8))
