"""The adapters that are in a model, as PEFT knows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_core.adapters.find import require_module
from lowrank_core.adapters.layers import AdaLoRALinear, LoRALinear, USVLinear
from lowrank_core.adapters.peft_state import PREFIX, Module, PeftAdapter, adapter_of
from lowrank_core.checks import is_count, require, words_of


@torch.no_grad()
def to_peft(
    model: nn.Module, *, rank: int | None = None, modules_to_save: str | Iterable[str] = (), **config: Any
) -> PeftAdapter:
    """The layers of this package in `model` as a plain LoRA adapter, which stock PEFT loads on the model without them.

    Args:
      model: with `USVLinear` (of `GeoLoRA`), `AdaLoRALinear` (of `AdaLoRA`) or `LoRALinear` layers.
      rank: >= 1, the `r` of the configuration; None: the largest rank. Layers of other ranks are named there.
      modules_to_save: names of modules that are saved whole, or ends of their names, as in PEFT's configuration.
      config: further keys of PEFT's `LoraConfig`: `task_type`, `base_model_name_or_path`, `fan_in_fan_out`.

    Returns:
      PeftAdapter(state, config) for `save_adapter` and `merge_adapters`: each layer with the rank it has now, of scale
      1. A layer of rank 0 has a rank of 1 and zeros, because PEFT has none of 0. The state is a copy.

    Raises:
      TypeError: `model` is no module. ValueError: no such layers; something else is trained that is not saved.

    Example:
      >>> import torch
      >>> from lowrank_core import adapters
      >>> model = torch.nn.Sequential(torch.nn.Linear(6, 4))
      >>> optimizer = adapters.GeoLoRA(model, rank=2)
      >>> state, config = adapters.to_peft(model)
      >>> sorted(state), config["r"]
      (['base_model.model.0.lora_A.weight', 'base_model.model.0.lora_B.weight'], 2)
    """
    require_module("to_peft", model)
    require(rank is None or is_count(rank, 1), "to_peft", "rank", "be an int >= 1 or None", rank)
    saved, parts = words_of("to_peft", "modules_to_save", modules_to_save), factors(model)
    require(bool(parts), "to_peft", "model", "have adapters of this package", type(model).__name__)
    modules = {}
    for name, (b, a, scale) in parts.items():
        if not len(a):
            b, a = b.new_zeros(len(b), 1), a.new_zeros(1, a.shape[1])
        modules[PREFIX + name] = Module(scale * b, a.clone(), embedding=False)
    whole = {name: p for name, p in model.named_parameters() if _is_in(name, saved)}
    for name, p in model.named_parameters():
        if p.requires_grad and name not in whole and name.rpartition(".")[0] not in parts:
            raise ValueError(
                f"to_peft: `modules_to_save` must have all that is trained beside the adapters, got nothing for "
                f"`{name}`; add its module, or freeze it"
            )
    largest = max(len(module.a) for module in modules.values())
    state, made = adapter_of(modules, largest if rank is None else rank, config)
    if saved:
        made["modules_to_save"] = list(saved)
        state |= {PREFIX + name: p.detach().clone() for name, p in whole.items()}
    return PeftAdapter(state, made)


def factors(model: nn.Module) -> dict[str, tuple[Tensor, Tensor, float]]:
    """(b [out, r], a [r, in], scale) of each layer of this package, by its name: what is added is scale b a."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, AdaLoRALinear | USVLinear):
            found[name] = (*layer.factors(), layer.scaling)
        elif isinstance(layer, LoRALinear):
            found[name] = (layer.outer.detach(), layer.lora_A.detach(), layer.scaling)
    return found


def _is_in(parameter: str, modules: Iterable[str]) -> bool:
    """Whether a module whose name ends with one of `modules`, letter by letter as in PEFT, holds the parameter."""
    owners = parameter.split(".")[:-1]
    paths = [".".join(owners[: i + 1]) for i in range(len(owners))]
    return any(path.endswith(word) for path in paths for word in modules)
