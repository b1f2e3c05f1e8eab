"""Starts of PEFT's adapters: against its own, over every kind of layer, and through its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from integration_cases import batches, tiny_llama
from lowrank_core import adapters
from lowrank_core.adapters.starts.base_weight import BaseWeight, base_weight
from peft.tuners.lora.loraga import preprocess_loraga
from peft_cases import TARGETS, Net, close, llama, logits
from testing import tolerance
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore")  # what the library says of its own future
REVEALING = ("pissa", "olora", "lora_ga")


def data(method: str) -> dict[str, Any]:
    return {"batches": list(batches(2, 3))} if method in ("lora_ga", "lora_sb", "eva") else {}


def held(model: nn.Module) -> list[tuple[adapters.Pair, BaseWeight]]:
    found = [(pair, base_weight(pair)) for pair in adapters.find_pairs(model)]
    assert not any(isinstance(base, str) for _, base in found)
    return found  # type: ignore[return-value]


def product(pair: adapters.Pair) -> Tensor:
    return pair.scale * (pair.b_of(pair.b).detach().double() @ pair.a_of(pair.a).detach().double())


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_starts_are_pefts_own(method: str) -> None:
    ours, theirs = llama(), llama(init=method)
    adapters.init_lora_(ours, method, oversample=16)  # the search then sees all of a matrix
    for (pair, base), (other, rest) in zip(held(ours), held(theirs), strict=True):
        s = torch.linalg.svdvals(rest.matrix.double() + product(other))
        gap = float(s[2] - s[3]) if method == "pissa" else float(s[-1]) / 4
        bound = 4 * tolerance.coefficients(base.matrix, 16) / gap * float(s[0])
        torch.testing.assert_close(product(pair), product(other), rtol=0, atol=bound)
        torch.testing.assert_close(base.matrix, rest.matrix, rtol=0, atol=bound)
    close(logits(ours), logits(theirs))


def test_lora_ga_has_the_directions_of_pefts_port() -> None:
    """Which multiplies B by the singular values and leaves A without the factor."""
    base, rows = tiny_llama().train(), list(batches(2, 3))
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=TARGETS, init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig()
    )

    def step() -> None:
        for row in rows:
            base(**row).loss.backward()

    preprocess_loraga(base, config, step)
    theirs, ours = peft.get_peft_model(base, config), llama()
    adapters.init_lora_(ours, "lora_ga", batches=rows)
    for (pair, weight), (other, _) in zip(held(ours), held(theirs), strict=True):
        size = weight.matrix.shape[0] ** 0.25 / 4.0
        a, b = pair.a.detach() / size, pair.b.detach() / size
        other_b = other.b.detach() / torch.linalg.vector_norm(other.b.detach(), dim=0)
        for cosines in ((a * other.a.detach()).sum(1).abs(), (b * other_b).sum(0).abs()):
            assert (1 - cosines).max() < 1e-2  # both searches are randomized; the gradient's values lie close


def net(dtype: torch.dtype = torch.float32, targets: tuple[str, ...] = ("embed", "conv", "up", "head")) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=1, lora_alpha=3, target_modules=list(targets), init_lora_weights=False)
    return peft.get_peft_model(Net().to(dtype), config, autocast_adapter_dtype=False)


TOKENS = torch.arange(11).view(1, 11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", REVEALING)
def test_embeddings_convolutions_and_conv1d_start_too(method: str, dtype: torch.dtype) -> None:
    model = net(dtype)
    before = {pair.name: base.matrix.clone() for pair, base in held(model)}
    assert {tuple(matrix.shape) for matrix in before.values()} == {(6, 11), (8, 18), (7, 8), (3, 7)}
    keys: dict[str, Any] = {}
    if method == "lora_ga":
        keys = {"batches": [TOKENS], "loss_fn": lambda model, x: model(x).square().mean()}
    adapters.init_lora_(model, method, **keys)
    for pair, base in held(model):
        old, now = before[pair.name].double(), base.matrix.double()
        b, a = pair.b_of(pair.b).detach().double(), pair.a_of(pair.a).detach().double()
        formed = tolerance.gamma(3, torch.float32) * (old.abs() + pair.scale * b.abs() @ a.abs())
        assert ((now + product(pair) - old).abs() <= tolerance.UNIT[dtype] * (now.abs() + formed) + formed).all()
        assert product(pair).any() and base.param.dtype == dtype
    if dtype == torch.float32:
        adapted = model(TOKENS)
        torch.manual_seed(0)
        close(adapted, Net()(TOKENS))


@pytest.mark.parametrize("method", ["lora_xs", "eva"])
@pytest.mark.parametrize(("target", "kind"), [("embed", "Embedding"), ("conv", "Conv1d")])
def test_layers_that_a_method_does_not_start_are_named(method: str, target: str, kind: str) -> None:
    model = net(targets=(target, "head"))
    keys: dict[str, Any] = {"batches": [TOKENS], "loss_fn": lambda model, x: model(x).sum()} if method == "eva" else {}
    with pytest.raises(ValueError, match=rf"init_lora_: `model` must .*{kind}|init_lora_: `model` must .*{target}"):
        adapters.init_lora_(model, method, **keys)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,eio->bo", x, self.weight)


@pytest.mark.parametrize("turned", [False, True])  # stored as [in, out]
@pytest.mark.parametrize("method", REVEALING)
def test_experts_start_each_for_itself(method: str, turned: bool) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(Experts())
    base[0].is_transposed = turned
    x = torch.randn(6, 5)
    before, weight = base(x).detach(), base[0].weight.detach().clone()
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=4, target_parameters=["0.weight"]))
    keys: dict[str, Any] = {}
    if method == "lora_ga":
        keys = {"batches": [x], "loss_fn": lambda model, x: model(x).square().sum()}
    adapters.init_lora_(model, method, **keys)
    for pair, base_of in held(model):
        assert pair.expert is not None
        old = weight[pair.expert[0]].double()
        old = old.mT if turned else old
        assert (base_of.matrix.double() - old).abs().max() > 0.01 * old.abs().max()
        formed = 4 * tolerance.gamma(4, torch.float32) * float(old.abs().max())
        torch.testing.assert_close(base_of.matrix.double() + product(pair), old, rtol=0, atol=formed)
    close(model(x), before)


def test_dora_keeps_the_function_by_pissa() -> None:
    model = llama(use_dora=True)
    before = logits(model)
    adapters.init_lora_(model, "pissa")
    close(logits(model), before)


def test_hidden_tokens_do_not_count_for_eva() -> None:
    row = next(iter(batches(1, 3)))
    padded = {key: torch.cat([x, torch.zeros_like(x[:, :4])], 1)[:, :12] for key, x in row.items()}
    short = {key: x[:, :8] for key, x in padded.items()}
    hidden = {**padded, "attention_mask": (torch.arange(12) < 8).long().expand(3, 12)}
    results = []
    for batch in (short, hidden):
        model = llama()
        adapters.init_lora_(model, "eva", batches=[batch])
        results.append([pair.a.detach() for pair in adapters.find_pairs(model)])
    assert len({id(x) for x in results[0]}) == 6
    for one, other in zip(*results, strict=True):
        cosines = (one * other).sum(1)
        assert (1 - cosines).max() <= 20 * tolerance.gamma(
            40, torch.float32
        )  # the same numbers, summed by attention in another order


def test_merged_and_twice_adapted_layers_are_refused() -> None:
    model = llama()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"got an adapter that is merged in .*; unmerge it first"):
        adapters.init_lora_(model, "pissa")
    model = peft.get_peft_model(Net(), peft.AdaLoraConfig(target_modules=["head"], init_r=2, target_r=1, total_step=9))
    with pytest.raises(ValueError, match=r"got AdaLoRA's values between the factors in .*; take LoRA"):
        adapters.init_lora_(model, "pissa")


def test_of_two_active_adapters_one_is_to_be_named() -> None:
    model = llama()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"got two active adapters in .*q_proj; name one by `adapter`"):
        adapters.init_lora_(model, "pissa")
    before = [pair.b.detach().clone() for pair in adapters.find_pairs(model, adapter="default")]
    adapters.init_lora_(model, "pissa", adapter="other")
    assert all(pair.b.any() for pair in adapters.find_pairs(model, adapter="other"))
    assert all(torch.equal(b, p.b) for b, p in zip(before, adapters.find_pairs(model, adapter="default"), strict=True))


# ---- squares -------------------------------------------------------------------------------------------------------


def trained(method: str) -> tuple[Any, Tensor]:
    model = llama()
    adapters.init_lora_(model, method, **data(method))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for batch in batches(2, 3):
        model(**batch).loss.backward()
        optimizer.step()
    return model, logits(model)


@pytest.mark.parametrize("method", ["lora_xs", "lora_sb"])
def test_squares_alone_train_whatever_peft_makes_active(method: str) -> None:
    model, _ = trained(method)
    model.set_adapter("default")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 6 and all(name.endswith("lora_B.default.lora_S") for name in names)
    module = model.base_model.model.model.layers[0].self_attn.q_proj
    assert tuple(module.lora_B["default"].lora_S.shape) == (3, 3)


@pytest.mark.parametrize("method", ["lora_xs", "lora_sb"])
def test_what_is_saved_is_a_plain_adapter(method: str, tmp_path: Path) -> None:
    model, expected = trained(method)
    model.save_pretrained(tmp_path)
    stock = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path)
    close(logits(stock), expected)
    assert not close_to_base(expected)
    merged = model.merge_and_unload()
    close(logits(merged), expected)


def close_to_base(found: Tensor) -> bool:
    return float((found - logits(tiny_llama())).abs().max()) < 1e-5 * float(found.abs().max())


@pytest.mark.parametrize("method", ["lora_xs", "lora_sb"])
def test_a_saved_square_goes_on_where_it_was(method: str, tmp_path: Path) -> None:
    model, expected = trained(method)
    model.save_pretrained(tmp_path)
    again = llama()
    adapters.init_lora_(again, method, **data(method))
    frozen = again.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].outer.clone()
    again.load_adapter(tmp_path, "default", is_trainable=True)
    close(logits(again), expected)
    factor = again.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"]
    assert torch.equal(factor.outer, frozen)  # S was solved, and B left
    assert [n for n, p in again.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]


def test_a_square_of_other_factors_takes_over_what_is_loaded(tmp_path: Path) -> None:
    """Such as LoRA-SB's of other batches: B is no longer that of the file."""
    model, expected = trained("lora_sb")
    model.save_pretrained(tmp_path)
    again = llama()
    adapters.init_lora_(again, "lora_xs")
    again.load_adapter(tmp_path, "default", is_trainable=True)
    close(logits(again), expected)


def test_a_state_of_another_shape_is_torchs_error() -> None:
    model, _ = trained("lora_xs")
    state: Mapping[str, Tensor] = model.state_dict()
    key = next(key for key in state if key.endswith("q_proj.lora_B.default.weight"))
    with pytest.raises(RuntimeError, match=r"size mismatch for .*lora_B"):
        model.load_state_dict({**state, key: torch.zeros(5, 3)})
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({name: x for name, x in state.items() if name != key})


@pytest.mark.parametrize("method", ["lora_xs", "lora_sb"])
def test_folded_squares_are_plain_adapters(method: str) -> None:
    model, expected = trained(method)
    assert adapters.fold_square_(model) == 6
    close(logits(model), expected)
    pairs = adapters.find_pairs(model)
    assert all(pair.trained and isinstance(pair.b, nn.Parameter) for pair in pairs) and len(pairs) == 6
    adapters.init_lora_(model, "pissa")
