"""Adapters as PEFT saves them: tensors by name beside a configuration. Nothing here needs PEFT."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lowrank_core.extras import how_to_install

PREFIX = "base_model.model."
_LINEAR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])(\.[^.]+)?\.weight")
_EMBEDDING = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<factor>[AB])(\.[^.]+)?")
_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"


class PeftAdapter(NamedTuple):
    """An adapter without its model.

    `state` has the names of `peft.get_peft_model_state_dict`. `config` has keyword arguments of `peft.LoraConfig`.
    """

    state: dict[str, Tensor]
    config: dict[str, Any]


@dataclass(frozen=True)
class Module:
    """The adapter of one module, its scale taken into `b`: b [m, r], a [r, n], and what it is to PEFT."""

    b: Tensor
    a: Tensor
    embedding: bool
    kernel: tuple[int, ...] = ()  # of a convolution: the shape of its `a` beyond the rank


def modules_of(op: str, adapter: object) -> dict[str, Module]:
    """The adapters in (state, config) by the names of their modules.

    Raises:
      TypeError: not such a pair. ValueError: tensors that are no factors of LoRA, or one factor without the other.
    """
    state, config = _pair(op, adapter)
    if config.get("use_dora") or config.get("target_parameters"):
        option = "use_dora" if config.get("use_dora") else "target_parameters"
        raise ValueError(f"{op}: `pairs` must have plain LoRA adapters, got one with {option}")
    halves: dict[str, dict[str, Tensor]] = {}
    embeddings = set()
    for key, tensor in state.items():
        match = _LINEAR.fullmatch(key) or _EMBEDDING.fullmatch(key)
        if match is None:
            raise ValueError(f"{op}: `pairs` must have factors of LoRA alone, got {key!r}; leave it out")
        halves.setdefault(match["module"], {})[match["factor"]] = tensor
        embeddings |= {match["module"]} if "lora_embedding_" in key else set()
    return {name: _module(op, name, found, config, name in embeddings) for name, found in halves.items()}


def adapter_of(modules: Mapping[str, Module], rank: int, config: Mapping[str, Any]) -> PeftAdapter:
    """An adapter of scale 1; modules of another rank than `rank` are named in the patterns of the configuration."""
    state: dict[str, Tensor] = {}
    for name, module in modules.items():
        a, b = module.a.contiguous(), module.b.contiguous()
        if module.embedding:
            state |= {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
            continue
        if module.kernel:
            a, b = a.reshape(-1, *module.kernel), b.reshape(*b.shape, *(1 for _ in module.kernel[1:]))
        state |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    ranks = {name.removeprefix(PREFIX): module.a.shape[0] for name, module in modules.items()}
    others = {name: found for name, found in ranks.items() if found != rank}
    kept = {key: config.get(key) for key in ("task_type", "base_model_name_or_path", "fan_in_fan_out")}
    made = {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        **{key: value for key, value in kept.items() if value is not None},
    }
    return PeftAdapter(state, made)


def save_adapter(folder: str | Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes an adapter as PEFT does: what `PeftModel.from_pretrained(model, folder)` loads.

    Args:
      folder: made if it is not there.
      state, config: as `merge_adapters` and `extract_lora` return them.

    Raises:
      ModuleNotFoundError: safetensors is not installed.

    Example:
      >>> import tempfile, torch
      >>> from lowrank_core import adapters
      >>> state, config = adapters.extract_lora({"up.weight": torch.zeros(4, 6)}, {"up.weight": torch.ones(4, 6)}, 1)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     adapters.save_adapter(folder, state, config)
      ...     read = adapters.read_adapter(folder)
      >>> sorted(read.state), read.config["r"]
      (['base_model.model.up.lora_A.weight', 'base_model.model.up.lora_B.weight'], 1)
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    values = {key: list(x) if isinstance(x, set | tuple) else x for key, x in config.items()}
    _safetensors("save_adapter").save_file(
        {key: x.detach().cpu().contiguous() for key, x in state.items()}, place / _TENSORS, metadata={"format": "pt"}
    )
    text = json.dumps({"peft_type": "LORA", **values}, indent=2, sort_keys=True, default=str)
    (place / _CONFIG).write_text(text + "\n", encoding="utf-8")


def read_adapter(folder: str | Path) -> PeftAdapter:
    """The adapter in a folder that PEFT's `save_pretrained` or `save_adapter` has written.

    Raises:
      FileNotFoundError: a file of it is missing. ValueError: one cannot be read. ModuleNotFoundError: safetensors is
        not installed.

    Example:
      >>> import tempfile, torch
      >>> from lowrank_core import adapters
      >>> folder = tempfile.mkdtemp()
      >>> adapters.save_adapter(folder, {"m.lora_A.weight": torch.ones(1, 6)}, {"r": 1})
      >>> state, config = adapters.read_adapter(folder)
      >>> state["m.lora_A.weight"].shape, config
      (torch.Size([1, 6]), {'peft_type': 'LORA', 'r': 1})
    """
    place = Path(folder)
    text, library = (place / _CONFIG).read_text(encoding="utf-8"), _safetensors("read_adapter")
    broken = import_module("safetensors").SafetensorError
    try:
        config = json.loads(text)
        state = library.load_file(place / _TENSORS)
    except (json.JSONDecodeError, broken) as error:
        name = _CONFIG if isinstance(error, json.JSONDecodeError) else _TENSORS
        raise ValueError(f"read_adapter: `folder` must hold what PEFT saves, got {place / name}: {error}") from None
    return PeftAdapter(state, config)


def _pair(op: str, adapter: object) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    state, config = adapter if isinstance(adapter, tuple) and len(adapter) == 2 else (None, None)
    config = cast(Any, config).to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(state, Mapping) or not isinstance(config, Mapping):
        raise TypeError(
            f"{op}: `pairs` must be tuples of two tensors or of a state dict and its configuration, got "
            f"{type(adapter).__name__}"
        )
    return state, config


def _module(op: str, name: str, found: Mapping[str, Tensor], config: Mapping[str, Any], embedding: bool) -> Module:
    if set(found) != {"A", "B"}:
        raise ValueError(f"{op}: `pairs` must have both factors of each module, got lora_{min(found)} alone of {name}")
    a, b = found["A"].flatten(1), found["B"].flatten(1)
    rank = a.shape[0]
    if b.shape[1] != rank:
        raise ValueError(
            f"{op}: `pairs` must have factors that chain, got {list(b.shape)} and {list(a.shape)} of {name}"
        )
    alpha = _pattern(config.get("alpha_pattern"), name.removeprefix(PREFIX), config.get("lora_alpha", rank))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    kernel = tuple(found["A"].shape[1:]) if found["A"].ndim > 2 else ()
    return Module(scale * b.to(torch.promote_types(b.dtype, torch.float32)), a, embedding, kernel)


def _pattern(patterns: Mapping[str, Any] | None, name: str, default: float) -> float:
    """As PEFT looks up a module's alpha."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return float(value)
    return float(default)


def _safetensors(op: str) -> Any:
    try:
        return import_module("safetensors.torch")
    except ModuleNotFoundError as missing:
        if missing.name != "safetensors":
            raise
        sentence = f"{op}: needs safetensors, which is not installed; {how_to_install('train')}"
        raise ModuleNotFoundError(sentence, name="safetensors") from None
