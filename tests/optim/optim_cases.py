"""The optimizers of the contract table, and a small model that has every kind of parameter."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from lowrank_core.memory.geometry import Geometry
from lowrank_core.memory.methods import METHODS
from lowrank_core.optim import (
    SCALE,
    AdaRankGradAdamW,
    ApolloAdamW,
    CoapAdamW,
    DCTAdamW,
    Dion2,
    FiraAdamW,
    FloraAdamW,
    FrugalAdamW,
    GaLoreAdamW,
    LDAdamW,
    LowRankOptimizer,
    Muon,
    QGaLoreAdamW,
    SinkGD,
    Trion,
    fused,
)
from lowrank_core.optim.parts.projectors import Query
from lowrank_core.optim.parts.subspaces import Subspace
from torch import Tensor, nn

VOCABULARY, WIDTH, HIDDEN, LENGTH, BATCH = 16, 12, 20, 10, 8
RANK = 4


@dataclass(frozen=True)
class Case:
    """One row of the contract table. `keys` make it project every matrix of the model, refreshing every 3 steps."""

    name: str
    optimizer: type[LowRankOptimizer]
    keys: dict[str, Any] = field(default_factory=dict)
    lr: float = 0.02
    # Its rank, where "rank" among `keys` does not say it; None where it differs from matrix to matrix, and moves.
    rank_held: int | None = RANK
    by_group: bool = False  # whether what else is in its group shows in a weight

    @property
    def method(self) -> str:
        """The name of the optimizer."""
        return self.name.partition("-")[0]

    @property
    def plain(self) -> dict[str, Any]:
        """Keys with which nothing is projected: a rank above all sides; or none, where a method then projects all the
        same."""
        marked = self.optimizer.full_rank != "plain" or "density" in self.keys
        return {"rank": None if marked else 10_000}

    def adamw(self, keys: dict[str, Any]) -> dict[str, Any]:
        """Of `keys` of AdamW those that what is not projected can be given, by the names that this method has for
        them: where it has no moments of its own it has no `betas`, and its `eps` is another one."""
        if "plain_betas" not in inspect.signature(self.optimizer).parameters:
            return keys
        return {{"betas": "plain_betas"}.get(key, key): value for key, value in keys.items() if key != "eps"}

    @property
    def searches(self) -> bool:
        """False where there is no subspace, or another one in each step."""
        weight = torch.ones(6, 8)
        optimizer = self.make([nn.Parameter(weight)])
        return not optimizer.parts(optimizer.param_groups[0], weight).projector.each_step

    @property
    def rank(self) -> int:
        """Of each projected matrix of the model."""
        rank: int = self.keys.get("rank", RANK)
        return rank

    @property
    def moves(self) -> bool:
        """True if the state is smaller at times than what is planned."""
        return self.rank_held is None

    @property
    def betas(self) -> dict[str, Any]:
        """Those that it does not leave to the defaults."""
        return {key: value for key, value in self.keys.items() if key == "betas"}

    @property
    def moment_dtype(self) -> str:
        """How it stores its moments."""
        return str(self.keys.get("moment_dtype", METHODS[self.method].moment_dtype))

    def make(self, params: Any, **overrides: Any) -> LowRankOptimizer:
        shared = {"lr": self.lr, "rank": RANK, "update_proj_gap": 3, "scale": 1.0, "weight_decay": 0.0}
        known = inspect.signature(self.optimizer).parameters
        keys = {**shared, **self.keys, **overrides}
        if "kappa" in known and "update_proj_gap" in overrides:  # Flora's name of the gap
            keys["kappa"] = overrides["update_proj_gap"]
        return self.optimizer(params, **{key: keys[key] for key in keys if key in known or key not in shared})


BLOCKS = {"subspace": "block", "density": 0.5, "sign_scale": 0.25}
CASES = [
    Case("galore", GaLoreAdamW),
    Case("galore-svd", GaLoreAdamW, {"projector": "svd"}),
    Case("galore-rotate", GaLoreAdamW, {"moments": "rotate"}),
    Case("galore-reverse", GaLoreAdamW, {"proj_type": "reverse_std"}),
    Case("galore-full", GaLoreAdamW, {"proj_type": "full"}),
    Case("galore-int8", GaLoreAdamW, {"moment_dtype": "int8"}),
    Case("galore-stochastic", GaLoreAdamW, {"moment_dtype": "bfloat16", "rounding": "stochastic"}),
    Case("galore-lion", GaLoreAdamW, {"rule": "lion"}),
    Case("galore-adabelief", GaLoreAdamW, {"rule": "adabelief", "moments": "rotate"}),
    Case("galore-adafactor", GaLoreAdamW, {"rule": "adafactor"}),
    Case("galore-adafactor-int8", GaLoreAdamW, {"rule": "adafactor", "moment_dtype": "int8", "moments": "rotate"}),
    Case("qgalore", QGaLoreAdamW),
    Case("qgalore-auto", QGaLoreAdamW, {"moment_dtype": "auto", "group_size": 32, "proj_type": "reverse_std"}),
    Case("qgalore-svd", QGaLoreAdamW, {"projector": "svd", "moment_dtype": "auto", "moments": "rotate"}),
    Case("qgalore-full", QGaLoreAdamW, {"proj_type": "full", "moment_dtype": "float32"}),
    Case("fira", FiraAdamW),
    Case("fira-code", FiraAdamW, {"residual": "code", "scale": 0.25, "limiter": None}),
    Case("fira-int8", FiraAdamW, {"moment_dtype": "int8", "proj_type": "reverse_std"}),
    Case("apollo", ApolloAdamW),
    Case("apollo-svd", ApolloAdamW, {"projector": "svd", "scale_cap": 3.0}),
    Case("apollo-int8", ApolloAdamW, {"moment_dtype": "int8", "proj_type": "reverse_std"}),
    Case("apollo-mini", ApolloAdamW, {"rank": 1, "scale_type": "tensor", "scale": 12.0}),
    Case("frugal", FrugalAdamW, {"sign_scale": 0.25}),
    Case("frugal-rows", FrugalAdamW, {"subspace": "rows", "sign_scale": 0.25}),
    Case("frugal-random", FrugalAdamW, {"subspace": "random", "sign_scale": 0.25}),
    Case("frugal-svd", FrugalAdamW, {"subspace": "svd", "sign_scale": 0.25}),
    Case("frugal-int8", FrugalAdamW, {"subspace": "svd", "sign_scale": 0.25, "moment_dtype": "int8"}),
    Case("frugal-sign", FrugalAdamW, {"density": 0.0, "sign_scale": 0.25}, rank_held=0),
    Case("frugal-block", FrugalAdamW, {**BLOCKS}, rank_held=None, by_group=True),
    Case("frugal-block-int8", FrugalAdamW, {**BLOCKS, "moment_dtype": "int8"}, rank_held=None, by_group=True),
    # At each draw the sketch gains in noise what the betas have to lose until the next one.
    Case("flora", FloraAdamW, {"kappa": 3, "betas": (0.5, 0.999)}),
    Case(
        "flora-int8",
        FloraAdamW,
        {"kappa": 3, "betas": (0.5, 0.999), "moment_dtype": "int8", "proj_type": "reverse_std"},
    ),
    Case("adarankgrad", AdaRankGradAdamW),
    Case("adarankgrad-int8", AdaRankGradAdamW, {"moment_dtype": "int8", "proj_type": "reverse_std", "energy": 0.5}),
    Case("ldadam", LDAdamW, {"betas": (0.9, 0.999)}),
    Case("ldadam-int8", LDAdamW, {"betas": (0.9, 0.999), "moment_dtype": "int8", "proj_type": "reverse_std"}),
    Case("dct", DCTAdamW, {"update_proj_gap": 1}),
    Case("dct-gap", DCTAdamW, {"basis": "dct3", "norm_ord": 1}),
    Case("dct-open", DCTAdamW, {"update_proj_gap": 1, "error_feedback": False, "proj_type": "reverse_std"}),
    Case("dct-open-gap", DCTAdamW, {"error_feedback": False, "moment_dtype": "int8"}),
    Case("dct-int8", DCTAdamW, {"update_proj_gap": 1, "moment_dtype": "int8", "error_feedback_dtype": "int8"}),
    Case("dct-auto", DCTAdamW, {"update_proj_gap": 1, "basis": "auto"}),
    Case("dct-auto-gap", DCTAdamW, {"basis": "auto", "moment_dtype": "int8", "error_feedback_dtype": "int8"}),
    Case(
        "dct-auto-open",
        DCTAdamW,
        {"update_proj_gap": 1, "basis": "auto", "error_feedback": False, "proj_type": "reverse_std"},
    ),
    Case("trion", Trion),
    Case("trion-auto", Trion, {"basis": "auto"}),
    Case("trion-identity", Trion, {"basis": "identity", "norm_ord": 1, "proj_type": "reverse_std"}),
    Case("dion2", Dion2, {"fraction": 0.3}, rank_held=4),
    Case("dion2-int8", Dion2, {"fraction": 0.5, "moment_dtype": "int8"}, rank_held=6),
    Case("muon", Muon),
    Case("muon-adjusted", Muon, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw"}),
    Case("scale", SCALE),
    Case("scale-int8", SCALE, {"moment_dtype": "int8", "last": True}),
    Case("sinkgd", SinkGD, {"iterations": 2}),
    Case("coap", CoapAdamW, {"reproject_factor": 2}),
    Case("coap-normalized", CoapAdamW, {"reproject_factor": 2, "eq5": "normalized", "moments": "rotate"}),
    Case("coap-int8", CoapAdamW, {"reproject_factor": 2, "moment_dtype": "int8", "proj_type": "reverse_std"}),
]

# For tests that ask for a rank which no weight is above.
plain_on_purpose = pytest.mark.filterwarnings("ignore:.* nothing is projected at rank:UserWarning")

every_optimizer = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# What draws in a step is for the host alone in this version.
ON_DEVICES = [case for case in CASES if case.moment_dtype == "auto"]
every_optimizer_on_devices = pytest.mark.parametrize("case", ON_DEVICES, ids=lambda case: case.name)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:]
)


class Zoo(nn.Module):
    """A next-token model with tied, convolution, wide, tall, square, 1-D, 0-D, empty and unused parameters."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        state = torch.random.get_rng_state()
        torch.manual_seed(7)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.square = nn.Linear(WIDTH, WIDTH, bias=False)
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.empty = nn.Parameter(torch.empty(0, 5))
        self.unused = nn.Parameter(torch.randn(6, 7))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        torch.random.set_rng_state(state)
        self.to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.conv(x.mT).mT
        x = x + self.down(torch.tanh(self.up(x)))
        x = self.square(x) * self.gain + self.empty.sum()
        return self.head(x)


def batch(number: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets of batch `number`: the target is the token, shifted by one in the alphabet."""
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(number))
    return tokens, (tokens + 1) % VOCABULARY


def loss_of(model: nn.Module, number: int) -> Tensor:
    return loss_on(model, *batch(number))


def loss_on(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1).float(), targets.flatten())


def backward(model: nn.Module, number: int) -> float:
    """Leaves the gradients of batch `number` and returns its loss."""
    model.zero_grad()
    loss = loss_of(model, number)
    loss.backward()
    return loss.item()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: Iterable[int]) -> list[float]:
    losses = []
    for number in numbers:
        losses.append(backward(model, number))
        optimizer.step()
    return losses


@contextmanager
def composed() -> Iterator[None]:
    """Without any fused kernel."""
    kept = dict(fused.FUSED)
    fused.FUSED.clear()
    try:
        yield
    finally:
        fused.FUSED.update(kept)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return copy.deepcopy(dict(model.state_dict())), copy.deepcopy(optimizer.state_dict())


def same(left: Any, right: Any) -> bool:
    """True if two nests of dicts, lists and tensors agree in structure, dtype, shape and every bit."""
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        kind = isinstance(left, Tensor) and isinstance(right, Tensor) and left.dtype == right.dtype
        return kind and left.shape == right.shape and torch.equal(_bits(left), _bits(right))
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return type(left) is type(right) and left == right


def _bits(tensor: Tensor) -> Tensor:
    """The tensor as bytes, so that NaN equals itself and 0 does not equal -0."""
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float32 numbers that depend on `shape` and `seed` alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def query(grad: Tensor, where: Geometry, held: Subspace | None, seed: int) -> Query:
    """Of a projector that asks for nothing but these, before the first step."""
    return Query(grad, where, held, seed, dict, 0, 0, 0, (0, 1))
