"""Stacked experts: which parameters [E, m, n] of a model are E matrices."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from lowrank_core.checks import require, words_of
from lowrank_core.memory.geometry import is_matrix
from lowrank_core.memory.plan import numberless

AUTO = "auto"
_NO_LAYERS = ("torch.nn.modules.module", "torch.nn.modules.container")  # of torch: what holds bare parameters

Stacked = bool | str | Iterable[str]


def find_stacks(op: str, model: nn.Module, names: dict[Tensor, list[str]], stacked: Stacked) -> set[Tensor]:
    """The stacks of matrices in `model` that `stacked` means; see `param_groups`.

    Args:
      names: those of every parameter.

    Raises:
      ValueError: a word matches no parameter that can be a stack.
    """
    there = {param: known_as for param, known_as in names.items() if _can_be_stack(param)}
    if isinstance(stacked, bool):
        return set(there) if stacked else set()
    if stacked == AUTO:
        modules = [module for module in model.modules() if _holds_stacks(module)]
        bare = {param for module in modules for param in module.parameters(recurse=False)}
        return {param for param in there if param in bare and len(param) > 1}
    rule = f'be "{AUTO}", True, False, a word or several'
    require(isinstance(stacked, Iterable), op, "stacked", rule, stacked)
    words = words_of(op, "stacked", stacked)
    require(bool(words), op, "stacked", rule, words)
    found: set[Tensor] = set()
    for word in words:
        hits = {param for param, known_as in there.items() if any(word in name for name in known_as)}
        shown = ", ".join(sorted({numberless(known_as[0]) for known_as in there.values()})[:20])
        rule = f"match a parameter [E, m, n] by its name (there are: {shown or 'none'})"
        require(bool(hits), op, "stacked", rule, word)
        found |= hits
    return found


def _can_be_stack(param: Tensor) -> bool:
    return param.ndim == 3 and len(param) > 0 and is_matrix(tuple(param.shape[1:])) and not param.is_complex()


def _holds_stacks(module: nn.Module) -> bool:
    """True for experts by their name, and for what is neither a convolution nor another layer of torch's."""
    kinds = type(module).__mro__  # a parametrized module is of a class made from its own
    if any("Expert" in kind.__name__ for kind in kinds):
        return True
    return not any("Conv" in kind.__name__ or _is_layer(kind) for kind in kinds)


def _is_layer(kind: type) -> bool:
    return kind.__module__.startswith("torch.nn.") and kind.__module__ not in _NO_LAYERS
