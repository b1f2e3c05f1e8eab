"""What the state of one parameter is made of: shape and dtype of every tensor, by key. Needs no torch.

A dtype is its name, such as "bfloat16": `lowrank_core.optim` allocates by these layouts, the estimate sums them.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Protocol

from lowrank_core.memory.geometry import Geometry
from lowrank_core.ops.subspace_step.check import BLOCK

Layout = dict[str, tuple[tuple[int, ...], str]]  # state key -> shape and dtype of its tensor

ITEM_SIZES = {
    "complex128": 16, "complex64": 8, "complex32": 4, "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int8": 1, "uint8": 1,
}  # fmt: skip
_COMPLEX = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}
ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


class Storage(Protocol):
    """How a tensor of the working dtype is stored: under `name`, or under `name.<field>` if it takes several."""

    def layout(self, name: str, shape: tuple[int, ...], weight: str) -> Layout:
        """The entries that a tensor of `shape` occupies, for a weight of dtype `weight`."""
        ...


class AsWork:
    """In the working precision: float32, float64 for float64 weights."""

    def layout(self, name: str, shape: tuple[int, ...], weight: str) -> Layout:
        return {name: (shape, work_dtype(weight))}


class AsBFloat16:
    """In bfloat16."""

    def layout(self, name: str, shape: tuple[int, ...], weight: str) -> Layout:
        return {name: (shape, "bfloat16")}


class AsBlocks8:
    """In 8-bit codes with a float32 scale for each 256 elements; those of a second moment have no sign."""

    def layout(self, name: str, shape: tuple[int, ...], weight: str) -> Layout:
        codes, blocks = "uint8" if is_second(name) else "int8", -(-prod(shape) // BLOCK)
        return {f"{name}.codes": (shape, codes), f"{name}.scales": ((blocks,), "float32")}


STORAGES: dict[str, Storage] = {"float32": AsWork(), "bfloat16": AsBFloat16(), "int8": AsBlocks8()}
MOMENT_DTYPES = ("auto", *STORAGES)


def moment_storage(moment_dtype: str, weight: str, host: bool) -> str:
    """Which of `STORAGES` holds the moments of a weight of dtype `weight`, by the key `moment_dtype`.

    "auto" takes no more than the weight's own width: bfloat16 without bias for bfloat16 weights, else the working
    precision. It is the working precision also where a device (`host` is False) has no kernel for the other.
    """
    if moment_dtype != "auto":
        return moment_dtype
    return "bfloat16" if weight == "bfloat16" and host else "float32"


def basis_storage(weight: str) -> str:
    """Which of `STORAGES` holds a basis: bfloat16 for bfloat16 weights, else the working precision."""
    return "bfloat16" if weight == "bfloat16" else "float32"


def work_dtype(weight: str) -> str:
    """The dtype that a weight's update is computed in: float64 for float64, else float32."""
    return "float64" if weight == "float64" else "float32"


def real_view(shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of what is stepped: the real view [..., 2] of a complex weight, else the weight."""
    return ((*shape, 2), _COMPLEX[dtype]) if dtype in _COMPLEX else (shape, dtype)


def is_second(name: str) -> bool:
    """True for the name of a second moment."""
    return name == "exp_avg_sq"


def state_layout(
    geometry: Geometry | None,
    shape: tuple[int, ...],
    weight: str,
    *,
    moments: Iterable[str],
    moment: Storage,
    basis: Storage,
    residual: Layout,
) -> Layout:
    """Every tensor in the state of a parameter that has its moments, by key.

    Args:
      geometry: where it is projected; None on the plain path.
      shape, weight: of what is stepped (`real_view`): shape and dtype.
      moments: their names; each has the shape of the projected gradient, or `shape`.
      moment, basis: how they are stored.
      residual: what the residual of a projected weight keeps besides.
    """
    entries: Layout = {"step": ((), "float32")}
    if geometry is not None:
        entries["proj.captured"] = ((), "float32")
        for key, _, size in geometry.bases():
            entries |= basis.layout(key, size, weight)
        entries |= residual
    for name in moments:
        entries |= moment.layout(name, shape if geometry is None else geometry.low_shape, weight)
    return entries


def layout_bytes(layout: Layout) -> int:
    """Bytes of all tensors of `layout`."""
    return sum(prod(shape) * ITEM_SIZES[dtype] for shape, dtype in layout.values())
