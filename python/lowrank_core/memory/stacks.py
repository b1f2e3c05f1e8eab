"""Stacks of matrices [E, m, n] among shapes: each counts as E weights [m, n]. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lowrank_core.checks import require, words_of
from lowrank_core.memory.geometry import check_stack

Stacked = bool | str | Iterable[str]


def stack_sizes(op: str, shapes: Mapping[str, tuple[int, ...]], stacked: Stacked) -> dict[str, int]:
    """E of each stack in `shapes`, by its name.

    Args:
      op: whom a refusal names.
      shapes: by name.
      stacked: True: every [E, m, n] is a stack; False: none is; or a word or several: those with one of them in their
        names.

    Raises:
      ValueError: a word is in no name, or in that of a shape that is no stack.
    """
    if isinstance(stacked, bool):
        return {name: shape[0] for name, shape in shapes.items() if stacked and len(shape) == 3 and shape[0] > 0}
    rule = "be True, False, a word or several"
    require(isinstance(stacked, Iterable), op, "stacked", rule, stacked)
    sizes = {}
    for word in words_of(op, "stacked", stacked):
        hits = [name for name in shapes if word in name]
        require(bool(hits), op, "stacked", "be in the name of a shape", word)
        for name in hits:
            check_stack(op, name, shapes[name])
            sizes[name] = shapes[name][0]
    return sizes
