"""LISA's memory: the state of a few layers of a stack, and of all that is outside of it. Needs no torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from lowrank_core.checks import is_count, require

ACTIVE = 2  # layers at a time, by default
_LAYER = re.compile(r"(?:(.*?)\.)?(\d+)\.")  # what comes before the number of a layer, and that number


def lisa_bytes(op: str, weights: Iterable[tuple[str, int, int]], active: int) -> int:
    """Bytes of state where the `active` largest layers of the longest stack are trained, and all outside of it.

    Args:
      op: whom a refusal names.
      weights: name, bytes of its state and how many there are. A number in a name is that of a layer, as torch's
        containers have it; several of one name are in as many layers, with those whose names start alike.
      active: as in `LISA`.

    Raises:
      ValueError: `active` is no int >= 1, or no name tells of layers.
    """
    require(is_count(active, 1), op, "active", "be an int >= 1", active)
    numbered: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    alike: dict[str, list[int]] = defaultdict(lambda: [0, 0])  # bytes of one layer, how many layers
    outside = 0
    for name, held, count in weights:
        if (layer := _LAYER.match(name)) and count == 1:
            numbered[layer[1] or ""][int(layer[2])] += held
        elif count > 1:
            one = alike[layer[1] or "" if layer else name.partition(".")[0]]
            one[0], one[1] = one[0] + held, count
        else:
            outside += held
    stacks = [(len(layers), sum(layers.values()), _largest(layers.values(), active)) for layers in numbered.values()]
    stacks += [(count, count * held, min(count, active) * held) for held, count in alike.values()]
    require(bool(stacks), op, "shapes", "have numbers of layers in their names", "none")
    longest = max(stacks, key=lambda stack: stack[0])
    return outside + sum(whole for _, whole, _ in stacks) - longest[1] + longest[2]


def _largest(sizes: Iterable[int], count: int) -> int:
    return sum(sorted(sizes, reverse=True)[:count])
