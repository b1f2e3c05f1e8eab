"""What autograd's graph shows of parameters: which of them it reaches, and by which ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import CheckpointFunction

from lowrank_core.adapters.tape import Call

Place = tuple[Any, int]
"""A node and the number of its output."""


class Walk:
    """All that the graph of `outputs` reaches, where a recorded call leads to its input alone."""

    def __init__(self, outputs: Tensor, params: Sequence[Tensor], calls: Sequence[Call]) -> None:
        self.hidden = False  # whether there is a part that the graph does not show
        self.elsewhere: set[int] = set()  # identities of the parameters that are met outside of recorded calls
        self.met: set[int] = set()  # places in `calls` that are met
        self._params = {_place(get_gradient_edge(p)): id(p) for p in params if p.requires_grad}
        self._calls: dict[Place, tuple[int, Call]] = {_place(c.edge): (i, c) for i, c in enumerate(calls)}
        self._follow(_place(get_gradient_edge(outputs)))

    def _follow(self, start: Place) -> None:
        waiting, seen = [start], {start}
        while waiting:
            for place in self._behind(waiting.pop()):
                if place not in seen:
                    seen.add(place)
                    waiting.append(place)

    def _behind(self, place: Place) -> Iterator[Place]:
        if place in self._params:
            self.elsewhere.add(self._params[place])
        if place in self._calls:
            number, call = self._calls[place]
            self.met.add(number)
            if call.source is not None:
                yield _place(call.source)
            return
        node = place[0]
        function = getattr(type(node), "_forward_cls", None)
        self.hidden |= isinstance(function, type) and issubclass(function, CheckpointFunction)
        yield from ((following, number) for following, number in node.next_functions if following is not None)


def _place(edge: Any) -> Place:
    return edge.node, edge.output_nr
