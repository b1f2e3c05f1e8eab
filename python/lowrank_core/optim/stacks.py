"""Stacks of layers: finding one in a model, and the parameters of each of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from lowrank_core.checks import require


def find_stack(op: str, model: nn.Module, layers: str | Iterable[nn.Module] | None = None) -> list[nn.Module]:
    """The layers that `layers` means: the name of a module in `model`, modules of it, or None for the longest stack.

    A stack is an `nn.ModuleList` or `nn.Sequential` of two or more modules of one class, with parameters. Of stacks
    that are equally long the first one counts.

    Raises:
      ValueError: there is none.
    """
    if layers is None:
        stacks = [list(module.children()) for module in model.modules() if _is_stack(module)]
        require(bool(stacks), op, "model", "have a stack of like layers", type(model).__name__, "name `layers`")
        return max(stacks, key=len)
    if isinstance(layers, str):
        named = dict(model.named_modules())
        require(layers in named, op, "layers", "be the name of a module of the model", layers)
        found = list(named[layers].children())
    else:
        found = list(layers)
    inside = set(model.modules())
    met = bool(found) and all(isinstance(layer, nn.Module) and layer in inside for layer in found)
    require(met, op, "layers", "be modules of the model, one or more", f"{len(found)} that are not all so")
    return found


def _is_stack(module: nn.Module) -> bool:
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2:
        return False
    alike = len({type(layer) for layer in module}) == 1
    return alike and all(any(True for _ in layer.parameters()) for layer in module)


def parameters_of(
    op: str, model: nn.Module, stack: Sequence[nn.Module], groups: Iterable[dict[str, Any]]
) -> list[list[Tensor]]:
    """The trainable parameters of each layer of `stack`, without those that are also outside of it.

    Raises:
      ValueError: one of them is in none of an optimizer's `groups`.
    """
    inside = {module for layer in stack for module in layer.modules()}
    outside = {p for module in model.modules() if module not in inside for p in module.parameters(recurse=False)}
    has = {param for group in groups for param in group["params"]}
    names: dict[Tensor, str] = {param: name for name, param in model.named_parameters()}
    found: list[list[Tensor]] = [
        [p for p in layer.parameters() if p.requires_grad and p not in outside] for layer in stack
    ]
    missing = [names[param] for layer in found for param in layer if param not in has]
    require(
        not missing, op, "optimizer", "have every parameter of the layers", f"none of {', '.join(missing[:3])}",
        "make it while every layer is trainable",
    )  # fmt: skip
    return found
