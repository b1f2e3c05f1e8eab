"""Finding what to project: weights by their names and by the names of the modules that hold them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowrank_core.checks import require, words_of
from lowrank_core.memory.geometry import is_matrix
from lowrank_core.memory.plan import numberless

ALL_LINEAR = "all-linear"
_LINEAR_WEIGHTS = ("weight", "weight_v", "weight_orig")  # the latter by weight_norm and spectral_norm of torch.nn.utils
_PARAMETRIZED = re.compile(r"parametrizations\.([^.]+)\.original\d*$")  # what torch makes of the name of a weight

Names = dict[Tensor, list[str]]


def names_of(op: str, model: nn.Module) -> Names:
    """Every parameter of `model` that has a shape, with all of its names, in the order of the first ones.

    The name of a re-parametrized weight stands behind that of its parameter: `fc.weight` behind
    `fc.parametrizations.weight.original1`.

    Raises:
      TypeError: `model` is no module.
      ValueError: a lazy parameter that is to be trained has no shape yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{op}: `model` must be a torch.nn.Module, got {type(model).__name__}; "
            "an optimizer takes parameters and groups as they are"
        )
    names: Names = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        if is_lazy(param):
            rule = f"have no lazy parameter without a shape (there is `{name}`)"
            require(not param.requires_grad, op, "model", rule, type(model).__name__, "run a batch through it first")
            continue
        names.setdefault(param, []).extend(dict.fromkeys((name, _PARAMETRIZED.sub(r"\1", name))))
    return names


def can_be_target(param: Tensor) -> bool:
    """True for a matrix; complex ones are never projected."""
    return is_matrix(tuple(param.shape)) and not param.is_complex()


def find_targets(
    op: str, model: nn.Module, names: Names, target_modules: str | Iterable[str], stacks: set[Tensor]
) -> set[Tensor]:
    """The matrices of `model` that `target_modules` means, and `stacks` of them; see `param_groups`."""
    matrices = {param: known_as for param, known_as in names.items() if can_be_target(param) or param in stacks}
    if target_modules == ALL_LINEAR:
        target_modules = (ALL_LINEAR,)
    if isinstance(target_modules, str):
        try:
            pattern = re.compile(target_modules)
        except re.error as error:
            raise ValueError(f"{op}: `target_modules` must be a regular expression, got {error}") from error
        found = {param for param, known_as in matrices.items() if any(map(pattern.fullmatch, _whole_names(known_as)))}
        _require_match(op, bool(found), target_modules, matrices, "pass a list to look for parts of names")
        return found
    words = words_of(op, "target_modules", target_modules)
    require(bool(words), op, "target_modules", f'name something, or be "{ALL_LINEAR}"', words)
    found = set()
    for word in words:
        linear = word == ALL_LINEAR
        hits = (_linear(model) | stacks) & matrices.keys() if linear else _with_word(matrices, word)
        _require_match(op, bool(hits), word, matrices, "")
        found |= hits
    return found


def _linear(model: nn.Module) -> set[Tensor]:
    """The parameters that hold the weights of `nn.Linear` and of transformers' `Conv1D`, re-parametrized or not."""
    found = set()
    for module in model.modules():
        # A parametrized module is of a class made from its own, so the bases count.
        if isinstance(module, nn.Linear) or any(base.__name__ == "Conv1D" for base in type(module).__mro__):
            found |= set(_held_weights(module))
    return found


def _held_weights(module: nn.Module) -> Iterator[Tensor]:
    yield from (p for name, p in module.named_parameters(recurse=False) if name in _LINEAR_WEIGHTS)
    parametrized = getattr(module, "parametrizations", {})
    if "weight" in parametrized:
        yield from parametrized["weight"].parameters(recurse=False)


def _with_word(matrices: Names, word: str) -> set[Tensor]:
    return {param for param, known_as in matrices.items() if any(word in name for name in known_as)}


def _whole_names(known_as: Iterable[str]) -> Iterator[str]:
    """The names of a parameter and of the modules that hold it themselves."""
    for name in known_as:
        yield name
        yield name.rpartition(".")[0]


def _require_match(op: str, met: bool, target: str, matrices: Names, fix: str) -> None:
    shown = sorted({numberless(known_as[0]) for known_as in matrices.values()})
    there = ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")
    rule = f"match a matrix by its name or its module's (there are: {there or 'none'})"
    require(met, op, "target_modules", rule, target, fix)
