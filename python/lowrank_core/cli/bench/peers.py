"""Optimizers of other packages, where they are installed: one adapter for each, set up as ours are."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from lowrank_core.cli.bench.rivals import GALORE_TORCH, LR, SELDOM, TRIAL, TRIAL_RANK, Params, Rival, parameters
from lowrank_core.cli.environment import version

_SCALE = 0.25  # GaLore's, whoever has one


@dataclass(frozen=True)
class Peer:
    """How an optimizer of another package is made."""

    name: str
    package: str  # as it is installed
    module: str
    build: Callable[[Any, Params, int], torch.optim.Optimizer]  # with that module
    method: str | None  # ours that it is a peer of; None: of none, an AdamW

    def rival(self, module: Any, spoils: bool) -> Rival:
        source = f"{self.package} {version(self.package) or '(version unknown)'}"
        return Rival(
            self.name, source, lambda params, rank: self.build(module, params, rank), self.method, False, spoils
        )


def _group(params: Params, rank: int, **keys: Any) -> list[dict[str, Any]]:
    shared = {"rank": rank, "update_proj_gap": SELDOM, "scale": _SCALE, "proj_type": "std"}
    return [{"params": params, **shared, **keys}]


def _galore_torch(module: Any, params: Params, rank: int) -> torch.optim.Optimizer:
    return module.GaLoreAdamW(_group(params, rank), lr=LR, no_deprecation_warning=True)  # type: ignore[no-any-return]


def _q_galore(module: Any, params: Params, rank: int) -> torch.optim.Optimizer:
    quantized = {"quant": True, "quant_n_bit": 4, "quant_group_size": 128}
    lazy = {"cos_threshold": 0.4, "gamma_proj": 2, "queue_size": 5}
    return module.QGaLoreAdamW8bit(_group(params, rank, **quantized, **lazy), lr=LR)  # type: ignore[no-any-return]


def _apollo(module: Any, params: Params, rank: int) -> torch.optim.Optimizer:
    return module.APOLLOAdamW(  # type: ignore[no-any-return]
        _group(params, rank, proj="random", scale_type="channel", scale=1.0), lr=LR
    )


def _apollo_mini(module: Any, params: Params, rank: int) -> torch.optim.Optimizer:
    return module.APOLLOAdamW(  # type: ignore[no-any-return]
        _group(params, 1, proj="random", scale_type="tensor", scale=128), lr=LR
    )


def _fira(module: Any, params: Params, rank: int) -> torch.optim.Optimizer:
    return module.FiraAdamW(_group(params, rank, alpha=_SCALE), lr=LR, no_deprecation_warning=True)  # type: ignore


def _collected(name: str, scale: float = _SCALE, **keys: Any) -> Callable[[Any, Params, int], torch.optim.Optimizer]:
    """Of pytorch_optimizer, whose groups have their own word for the side."""

    def build(module: Any, params: Params, rank: int) -> torch.optim.Optimizer:
        group = _group(params, rank, projection_type="std", scale=scale)
        return getattr(module, name)(group, lr=LR, **keys)  # type: ignore[no-any-return]

    return build


def _collected_muon(module: Any, params: Params, rank: int) -> torch.optim.Optimizer:
    return module.Muon([{"params": params, "use_muon": True}], lr=LR)  # type: ignore[no-any-return]


def _adamw8bit(module: Any, params: Params, rank: int) -> torch.optim.Optimizer:
    return module.AdamW8bit(params, lr=LR)  # type: ignore[no-any-return]


PEERS = (
    Peer(GALORE_TORCH, "galore-torch", "galore_torch", _galore_torch, "galore"),
    Peer("q_galore_torch", "q-galore-torch", "q_galore_torch", _q_galore, "qgalore"),
    Peer("apollo_torch", "apollo-torch", "apollo_torch", _apollo, "apollo"),
    Peer("apollo_torch, mini", "apollo-torch", "apollo_torch", _apollo_mini, "apollo"),
    Peer("fira (package)", "fira", "fira", _fira, "fira"),
    Peer("pytorch_optimizer GaLore", "pytorch_optimizer", "pytorch_optimizer", _collected("GaLore"), "galore"),
    Peer("pytorch_optimizer Fira", "pytorch_optimizer", "pytorch_optimizer", _collected("Fira"), "fira"),
    Peer("pytorch_optimizer APOLLO", "pytorch_optimizer", "pytorch_optimizer",
         _collected("APOLLO", 1.0, scale_type="channel"), "apollo"),
    Peer("pytorch_optimizer Muon", "pytorch_optimizer", "pytorch_optimizer", _collected_muon, "muon"),
    Peer("bitsandbytes AdamW8bit", "bitsandbytes", "bitsandbytes.optim", _adamw8bit, None),
)  # fmt: skip


def peers(methods: Collection[str]) -> tuple[list[Rival], dict[str, str]]:
    """Those of `methods` and of none that can step here, and why the others cannot, by name."""
    found: list[Rival] = []
    absent: dict[str, str] = {}
    for peer in PEERS:
        if peer.method is None or peer.method in methods:
            tried = tried_out(peer)
            if isinstance(tried, Rival):
                found.append(tried)
            else:
                absent[peer.name] = tried
    return found, absent


def tried_out(peer: Peer) -> Rival | str:
    """The rival, once it has stepped two small matrices twice; a few words, if it cannot be imported or does not."""
    with quiet():
        try:
            module = import_module(peer.module)
        except ModuleNotFoundError as missing:
            top = peer.module.partition(".")[0]
            return "not installed" if missing.name == top else f"not importable: {_words(missing)}"
        except Exception as failure:  # whatever a broken installation raises
            return f"not importable: {_words(failure)}"
        params = parameters(TRIAL)
        before = [param.grad.clone() for param in params if param.grad is not None]
        try:
            optimizer = peer.build(module, params, TRIAL_RANK)
            for _ in range(2):
                optimizer.step()
        except Exception as failure:  # theirs, of a version that fits no longer, or for want of a device
            return f"cannot step here: {_words(failure)}"
    kept = all(
        param.grad is not None and torch.equal(param.grad, old) for param, old in zip(params, before, strict=True)
    )
    return peer.rival(module, not kept)


def _words(failure: Exception) -> str:
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[:120]}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what others print or warn of."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)
