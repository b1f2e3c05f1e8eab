"""What is measured: the methods of the package, with their variants, and torch's own optimizers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core import __version__
from lowrank_core.cli.bench.shapes import Shapes
from lowrank_core.memory.geometry import FULL
from lowrank_core.memory.methods import METHODS as TABLE
from lowrank_core.optim import METHODS

Params = list[nn.Parameter]
Build = Callable[[Params, int], torch.optim.Optimizer]  # of weights with their gradients, and a rank

LR = 1e-3
TRIAL, TRIAL_RANK = [(48, 32), (32, 48)], 4  # what everybody steps before anything is measured
SELDOM = 10**9  # steps from one search for subspaces to the next: as good as never
# Keys that say when a method looks for its subspaces, and what they are if it does so at every step. Q-GaLore's gap
# grows where subspaces agree, as they do here: no cosine is 2.
_WHEN = {"update_proj_gap": 1, "kappa": 1}
_HELD = {"cos_threshold": 2.0}
# Ways to call a method that are methods of their own to their users.
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fira, residual code": ("fira", {"residual": "code"}),
    "apollo-mini": ("apollo", {"rank": 1, "scale_type": "tensor", "scale": 128}),
    "apollo, scale_cap 10": ("apollo", {"scale_cap": 10}),
    "dct, every step": ("dct", {"update_proj_gap": 1}),
    "galore, adafactor": ("galore", {"rule": "adafactor"}),
    "galore, lion": ("galore", {"rule": "lion"}),
    "galore, adabelief": ("galore", {"rule": "adabelief"}),
}
ADAMW, GALORE, GALORE_TORCH = "fused AdamW", "galore", "galore_torch"


@dataclass(frozen=True)
class Rival:
    """One optimizer under one name."""

    name: str
    source: str  # the package that it comes from, and its version
    build: Build
    method: str | None = None  # of the package: this is it, or a peer of it
    ours: bool = False
    spoils: bool = False  # changes the gradients, and so needs its own


def parameters(shapes: Shapes, grads: Sequence[Tensor] | None = None) -> Params:
    """Weights with `grads`, or with gradients of their own; the same numbers for everybody."""
    draw = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
    for param, grad in zip(params, gradients(shapes) if grads is None else grads, strict=True):
        param.grad = grad
    return params


def gradients(shapes: Shapes) -> list[Tensor]:
    """One for each weight."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=draw) for shape in shapes]


def ours(methods: Iterable[str]) -> list[Rival]:
    """`methods` with their variants, each with its own defaults besides rate and rank."""
    chosen = {name: (name, dict[str, Any]()) for name in methods}
    chosen |= {name: variant for name, variant in _VARIANTS.items() if variant[0] in chosen}
    source = f"lowrank_core {__version__}"
    return [Rival(name, source, partial(_ours, method, keys), method, True) for name, (method, keys) in chosen.items()]


def torchs(methods: Iterable[str]) -> list[Rival]:
    """AdamW, and Muon beside ours."""
    source = f"torch {torch.__version__}"
    found = [Rival(ADAMW, source, lambda params, rank: torch.optim.AdamW(params, lr=LR, fused=True))]
    if "muon" in methods and hasattr(torch.optim, "Muon"):  # torch has it since 2.9
        found.append(Rival("torch Muon", source, lambda params, rank: torch.optim.Muon(params, lr=LR), "muon"))
    return found


def _ours(method: str, keys: dict[str, Any], params: Params, rank: int) -> torch.optim.Optimizer:
    known = inspect.signature(METHODS[method]).parameters
    marks = TABLE[method].rank == FULL  # a rank says nothing there
    given: dict[str, Any] = {"lr": LR, **dict.fromkeys(_WHEN, SELDOM), **({} if marks else {"rank": rank}), **keys}
    return METHODS[method](params, **{key: value for key, value in given.items() if key in known})


def search_always(optimizer: torch.optim.Optimizer) -> bool:
    """Makes an optimizer of ours look for its subspaces at every step. False: it never looks, or always did."""
    rare = any(group.get(key, 1) != 1 for group in optimizer.param_groups for key in _WHEN)
    for group in optimizer.param_groups:
        group.update({key: value for key, value in {**_WHEN, **_HELD}.items() if key in group})
    return rare


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the storages behind all tensors of the state, those inside of a peer's own objects too."""
    storages = (tensor.untyped_storage() for state in optimizer.state.values() for tensor in _tensors(state))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if hasattr(value, "__tensor_flatten__"):  # a tensor made of others, such as codes and scales
        yield from (tensor for name in value.__tensor_flatten__()[0] for tensor in _tensors(getattr(value, name)))
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for inner in value.values() for tensor in _tensors(inner))
    elif isinstance(value, list | tuple):
        yield from (tensor for inner in value for tensor in _tensors(inner))
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))
