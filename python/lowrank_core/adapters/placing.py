"""Putting layers with a low-rank part in the place of a model's linear layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from lowrank_core.adapters.find import find_pairs, require_module
from lowrank_core.adapters.layers import USVLinear, check_mergeable
from lowrank_core.adapters.quantized import is_quantized
from lowrank_core.checks import require, words_of
from lowrank_core.optim.targets import find_targets, names_of

Layer = TypeVar("Layer", bound=nn.Module)


def linear_targets(
    op: str, model: nn.Module, target_modules: str | Iterable[str], exclude: str | Iterable[str]
) -> list[str]:
    """The names of the linear layers that are meant, of quantized ones too, whose codes are no matrix.

    Raises:
      TypeError: `model` is no module. ValueError: it has adapters already, or no layer is meant.
    """
    require_module(op, model)
    names, words = names_of(op, model), words_of(op, "exclude", exclude)
    there = [pair.name for pair in find_pairs(model)]
    there += [name for name, module in model.named_modules() if isinstance(module, USVLinear)]
    if there:
        raise ValueError(
            f"{op}: `model` must have no adapters yet, got one with them in `{there[0]}`; pass the model without, as "
            "`unload()` of PEFT returns it"
        )
    codes = {m.weight for m in model.modules() if isinstance(m, nn.Linear) and is_quantized(m.weight)}
    wanted = find_targets(op, model, names, target_modules, codes & names.keys())
    out = {
        id(module)
        for name, module in model.named_modules(remove_duplicate=False)
        if any(word in name for word in words)
    }
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight in wanted and id(module) not in out
    ]
    require(bool(found), op, "target_modules", "mean a linear layer that is not excluded", target_modules)
    rule = "hold the linear layers in whose places others are put"
    require("" not in found, op, "model", rule, type(model).__name__, "wrap it in torch.nn.Sequential")
    return found


def put_in_place(model: nn.Module, names: list[str], make: Callable[[nn.Linear, int], Layer]) -> dict[str, Layer]:
    """A layer in the place of each of those of `names`, by its name; `make` gets the layer and its number."""
    layers = {name: make(cast(nn.Linear, model.get_submodule(name)), number) for number, name in enumerate(names)}
    for name, layer in layers.items():
        set_module(model, name, layer)
    return layers


def saved_words(op: str, model: nn.Module, given: str | Iterable[str]) -> tuple[str, ...]:
    """The words of `modules_to_save`, each of which must be in the name of a parameter."""
    require_module(op, model)
    words, names = words_of(op, "modules_to_save", given), [name for name, _ in model.named_parameters()]
    for word in words:
        rule = "have words that are in the name of a parameter"
        require(any(word in name for name in names), op, "modules_to_save", rule, word)
    return words


def train_only(model: nn.Module, layers: Iterable[nn.Module], words: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    """Freezes all but the parts of `layers` and what has one of `words` in its name, which it returns.

    Names are those from before layers were put in place.
    """
    parts = {p for layer in layers for _, p in layer.named_parameters(recurse=False)}
    kept: list[tuple[str, Tensor]] = []
    for name, p in model.named_parameters():
        if p in parts:
            continue
        trained = any(word in name.replace("base_layer.", "") for word in words)
        p.requires_grad_(trained)
        kept += [(name, p)] if trained else []
    return kept


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Makes `module` the one of that name in `model`, and of every other name that the one before has there."""
    before = model.get_submodule(name)
    for other, found in list(model.named_modules(remove_duplicate=False)):
        if found is before:
            parent, _, last = other.rpartition(".")
            setattr(model.get_submodule(parent), last, module)


def put_back(model: nn.Module | None, layers: Mapping[str, Any]) -> nn.Module:
    """Merges each of `layers` and puts what it gives in its place in `model`, which it returns.

    Raises:
      ValueError: no model. TypeError: a weight is quantized; nothing has changed then.
    """
    if model is None:
        raise ValueError("merge: `model` must be given to an optimizer that was copied or loaded, got None; pass it")
    for name, layer in layers.items():
        check_mergeable("merge", layer.base_layer, name)
    for name, layer in layers.items():
        set_module(model, name, layer.merge())
    return model
