"""Weights are found by the names of parameters and modules, in modules as torch ships them."""

from __future__ import annotations

import pytest
import torch
from lowrank_core.optim import GaLoreAdamW, estimate_state_bytes, param_groups
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations

WIDTH = 12


def projected(model: nn.Module, *targets: object, **keys: object) -> list[str]:
    optimizer = GaLoreAdamW(param_groups(model, *targets, **{"rank": 4, "exclude": (), "verbose": False, **keys}))
    return [row.name for row in optimizer.plan() if row.projected]


class Model(nn.Module):
    """Reads a sequence by an LSTM, a GRU and attention; every kind of layer that has no `weight` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(2 * WIDTH, WIDTH, batch_first=True)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.normed = parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.gru(self.lstm(self.embed(tokens))[0])
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        x = x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
        return self.head(torch.tanh(self.normed(x)))


LSTM = [f"lstm.weight_{way}_l{n}{end}" for n in range(2) for end in ("", "_reverse") for way in ("ih", "hh")]
GRU = ["gru.weight_ih_l0", "gru.weight_hh_l0"]
DIRECTION = "normed.parametrizations.weight.original1"
LINEAR = ["attention.out_proj.weight", DIRECTION, "head.weight"]


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["lstm"], LSTM),
        (["weight_hh"], [name for name in [*LSTM, *GRU] if "_hh_" in name]),
        (["weight_ih_l0", "gru"], [*[name for name in LSTM if "ih_l0" in name], *GRU]),
        (r"gru", GRU),
        (r".*\.weight_hh_l0", [LSTM[1], GRU[1]]),
        (["in_proj"], ["attention.in_proj_weight"]),
        (["attention"], ["attention.in_proj_weight", "attention.out_proj.weight"]),
        (r"attention", ["attention.in_proj_weight"]),  # what the module itself holds
        (["embed"], ["embed.weight"]),
        ("all-linear", LINEAR),
        (["all-linear", "in_proj_weight"], ["attention.in_proj_weight", *LINEAR]),
        (["normed"], [DIRECTION]),
        (["normed.weight"], [DIRECTION]),  # as it is called without the norm
        (r"normed\.weight", [DIRECTION]),
        (r"normed", [DIRECTION]),
        (["original1"], [DIRECTION]),
    ],
)
def test_words_and_expressions(targets: str | list[str], names: list[str]) -> None:
    assert projected(Model(), targets) == names


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("make", "matrix"),
    [
        (lambda layer: layer, "weight"),
        (parametrizations.weight_norm, "parametrizations.weight.original1"),
        (lambda layer: parametrizations.weight_norm(layer, dim=1), "parametrizations.weight.original1"),
        (lambda layer: parametrizations.weight_norm(layer, dim=None), "parametrizations.weight.original1"),
        (parametrizations.spectral_norm, "parametrizations.weight.original"),
        (parametrizations.orthogonal, "parametrizations.weight.original"),
        (torch.nn.utils.weight_norm, "weight_v"),
        (torch.nn.utils.spectral_norm, "weight_orig"),
    ],
    ids=["bare", "weight", "weight-dim1", "weight-scalar", "spectral", "orthogonal", "weight-old", "spectral-old"],
)
def test_normed_linear_layers_are_linear(make: object, matrix: str) -> None:
    model = nn.Sequential(make(nn.Linear(9, 7)))  # type: ignore[operator]
    for targets in ("all-linear", ["0"], "0", ["weight"]):
        assert projected(model, targets) == [f"0.{matrix}"]
    assert projected(model, exclude=(), force_projection=True) == [f"0.{matrix}"]  # the magnitudes are vectors
    model(torch.ones(3, 9)).square().sum().backward()
    optimizer = GaLoreAdamW(param_groups(model, rank=4, verbose=False))
    optimizer.step()
    assert "proj.basis" in optimizer.state[model.get_parameter(f"0.{matrix}")]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_normed_weights_of_other_layers() -> None:
    model = nn.Sequential(
        torch.nn.utils.weight_norm(nn.LSTM(9, 9), "weight_hh_l0"), parametrizations.weight_norm(nn.Conv2d(8, 12, 3))
    )
    assert projected(model, ["0"]) == ["0.weight_ih_l0", "0.weight_hh_l0_v"]
    assert projected(model, ["1"], force_projection=True) == ["1.parametrizations.weight.original1"]
    with pytest.raises(ValueError, match=r"there are: \*\.parametrizations\.weight\.original\*, \*\.weight_hh_l\*_v, "):
        projected(model)  # nothing of it is linear


def test_a_parametrization_with_weights_of_its_own_is_not_the_linear_weight() -> None:
    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(8, 16)), nn.Parameter(torch.zeros(16, 8))

        def forward(self, weight: Tensor) -> Tensor:
            return weight + self.b @ self.a

    model = nn.Sequential(nn.Linear(16, 16))
    nn.utils.parametrize.register_parametrization(model[0], "weight", LowRank())
    assert projected(model) == ["0.parametrizations.weight.original"]
    assert projected(model, ["weight.0.a"]) == ["0.parametrizations.weight.0.a"]


def test_transformer_layers() -> None:
    model = nn.Transformer(WIDTH, 2, 1, 1, dim_feedforward=20, batch_first=True)
    linear = [name for name, p in model.named_parameters() if p.ndim == 2 and "in_proj" not in name]
    assert len(linear) == 7 and projected(model) == linear
    assert projected(model, ["in_proj_weight"]) == [
        "encoder.layers.0.self_attn.in_proj_weight",
        "decoder.layers.0.self_attn.in_proj_weight",
        "decoder.layers.0.multihead_attn.in_proj_weight",
    ]
    assert projected(nn.MultiheadAttention(12, 2, kdim=9, vdim=7), ["proj_weight"]) == [
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
    ]


def test_vectors_in_two_dimensions_are_no_targets() -> None:
    model = nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 1, bias=False))
    groups = param_groups(model, rank=4, verbose=False, force_projection=True)
    assert [[name for name, _ in group["params"]] for group in groups] == [["0.bias", "1.weight"], ["0.weight"]]
    with pytest.raises(ValueError, match=r"must match a matrix by its name .*got '1\.weight'"):
        param_groups(model, ["1.weight"], rank=4)


def test_complex_matrices_are_no_targets(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 9, dtype=torch.complex64))
    groups = param_groups(model, ["weight"], rank=4)
    plan = {row.name: row for row in GaLoreAdamW(groups).plan()}
    assert [name for name, row in plan.items() if row.projected] == ["0.weight"]
    assert [name for name, _ in groups[-1]["params"]] == ["0.weight"]
    line = next(line for line in capsys.readouterr().out.splitlines() if "9x7" in line)
    assert line.split()[-1] == plan["1.weight"].reason == "complex"
    assert projected(model) == ["0.weight"]


def test_a_frozen_lazy_layer_is_nobodys_business() -> None:
    model = nn.Sequential(nn.Linear(9, 7), nn.LazyLinear(6))
    model[1].weight.requires_grad = model[1].bias.requires_grad = False
    for targets in ("all-linear", ["weight"], r"0\.weight"):
        assert projected(model, targets) == ["0.weight"]


def test_normed_weights_are_excluded_by_their_own_name() -> None:
    assert projected(Model(), exclude="normed.weight") == [name for name in LINEAR if name != DIRECTION]


def test_tied_weights_answer_to_all_their_names() -> None:
    model = Model()
    model.head.weight = model.embed.weight
    model.gru.weight_hh_l0 = model.lstm.weight_hh_l0
    assert projected(model, ["head"]) == ["embed.weight"]
    assert projected(model, r"head\.weight") == ["embed.weight"]
    assert projected(model, ["gru"]) == ["lstm.weight_hh_l0", "gru.weight_ih_l0"]
    assert projected(model, "all-linear", exclude="embed") == LINEAR[:2]


def test_models_without_memory() -> None:
    names = projected(Model(), ["weight"])
    expected = estimate_state_bytes(Model(), rank=4, target_modules=["weight"], exclude=())
    with torch.device("meta"):
        on_meta = Model()
    with FakeTensorMode():
        fake = Model()
    for model in (on_meta, fake):
        assert projected(model, ["weight"]) == names
        assert estimate_state_bytes(model, rank=4, target_modules=["weight"], exclude=()) == expected
        assert estimate_state_bytes(model, "adamw") == estimate_state_bytes(Model(), "adamw")


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.MultiheadAttention], ids=lambda layer: layer.__name__)
def test_layers_without_a_weight_train(layer: type[nn.Module]) -> None:
    class Recall(nn.Module):
        """Names the last but one token: only `layer` can look back."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Embedding(16, WIDTH), nn.Parameter(torch.randn(9, WIDTH))
            self.layer = layer(WIDTH, 1 if layer is nn.MultiheadAttention else WIDTH, batch_first=True)
            self.head = nn.Linear(WIDTH, 16)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens) + self.place
            return self.head((self.layer(x, x, x) if layer is nn.MultiheadAttention else self.layer(x))[0])

    torch.manual_seed(0)
    model = Recall()
    tokens = torch.randint(16, (32, 9))
    groups = param_groups(model, ["layer"], rank=4, verbose=False, scale=1.0)
    optimizer = GaLoreAdamW(groups, lr=0.03, update_proj_gap=10)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens)[:, 1:].flatten(0, 1), tokens[:, :-1].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]  # log 16 at first
    matrices = [name for name, p in model.layer.named_parameters(prefix="layer") if p.ndim == 2]
    assert [row.name for row in optimizer.projections() if row.refreshes == 10] == matrices
