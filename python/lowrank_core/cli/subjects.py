"""What `estimate` is asked about: shapes with counts, or a model that has no weights in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lowrank_core.cli.errors import CliError
from lowrank_core.cli.presets import Parts
from lowrank_core.memory.estimate import Weight, keys_of
from lowrank_core.memory.geometry import shorter_side
from lowrank_core.memory.methods import METHODS
from lowrank_core.memory.plan import EXCLUDED
from lowrank_core.memory.training import TrainingBytes, training_bytes

if TYPE_CHECKING:
    from torch import nn


class Subject(Protocol):
    """Something whose training takes memory."""

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        ...

    @property
    def width(self) -> int:
        """That the default rank is a quarter of."""
        ...

    @property
    def largest(self) -> int:
        """The largest min(m, n) of its matrices: ranks are below."""
        ...

    def bytes(self, optimizer: str, dtype: str, keys: Mapping[str, Any], int8: bool) -> TrainingBytes:
        """What training by `optimizer` with `keys` holds; `dtype` is a name, such as "bfloat16"."""
        ...


class Listed(NamedTuple):
    """Shapes, and how often each occurs. Needs no torch."""

    parts: Parts
    width: int

    @property
    def parameters(self) -> int:
        return sum(count * sum(map(prod, shapes.values())) for shapes, count in self.parts)

    @property
    def largest(self) -> int:
        return max(min(shape) for shapes, _ in self.parts for shape in shapes.values() if len(shape) == 2)

    def bytes(self, optimizer: str, dtype: str, keys: Mapping[str, Any], int8: bool) -> TrainingBytes:
        # By counts, so that a thousand layers cost what one does.
        named = [(_name(i, key), shape, n) for i, (shapes, n) in enumerate(self.parts) for key, shape in shapes.items()]
        plain = [any(word in name for word in EXCLUDED) for name, _, _ in named]
        weights = [
            (name, Weight(shape, dtype, int8=int8 and len(shape) == 2 and not left), n)
            for (name, shape, n), left in zip(named, plain, strict=True)
        ]
        if optimizer not in METHODS:
            return training_bytes(optimizer, weights, [], keys)
        asked = keys_of(optimizer, **{"rank": None, **keys})
        return training_bytes(optimizer, weights, [asked.plain(None) if left else asked for left in plain], {})


def _name(part: int, key: str) -> str:
    """The name of a parameter: the first part of a decoder is what is outside of its layers, all others are stacks."""
    return f"part{part}.{key}" if part == 0 and key != "shape" else f"part{part}.0.{key}"


class Built(NamedTuple):
    """A model on the meta device, split as `param_groups` does."""

    model: nn.Module

    @property
    def parameters(self) -> int:
        return sum(param.numel() for param in self.model.parameters())

    @property
    def width(self) -> int:
        return self.largest

    @property
    def largest(self) -> int:
        from lowrank_core.optim.estimate import targets_of

        with _sentences():
            return max(shorter_side(shape) for shape in targets_of(self.model).values())

    def bytes(self, optimizer: str, dtype: str, keys: Mapping[str, Any], int8: bool) -> TrainingBytes:
        from lowrank_core.optim.estimate import training_bytes_of

        with _sentences():
            return training_bytes_of(self.model, optimizer, dtype, int8_weights=int8, **keys)


@contextmanager
def _sentences() -> Iterator[None]:
    """Turns what the optimizers refuse, such as a model with nothing to project, into a sentence of the program."""
    try:
        yield
    except ValueError as refusal:
        raise CliError(str(refusal)) from refusal
