"""What the state of one parameter is made of: every entry by its key. Needs no torch.

A dtype is given by its name, such as "bfloat16". `lowrank_core.optim` opens states by these layouts; the estimate sums
their bytes.
"""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from math import prod
from typing import NamedTuple, Protocol

from lowrank_core.memory.geometry import Geometry, Side
from lowrank_core.ops.int4_project.matrix import GROUP_MULTIPLE, LARGEST_GROUP
from lowrank_core.ops.subspace_step.check import BLOCK

FORMAT = 2  # of a state; goes up when a key or its meaning changes
WORK = "work"  # the dtype of a field that a codec will store
AUTO_BASIS = "auto"  # where a basis is named: one of these for each weight, whose number is in its state
AUTO_BASES = ("identity", "dct2")
AUTO_KEY = "proj.auto_basis"

ITEM_SIZES = {
    "complex128": 16, "complex64": 8, "complex32": 4, "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int8": 1, "uint8": 1,
}  # fmt: skip
_COMPLEX = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}


class Role(Enum):
    """What an entry of the state is for."""

    NUMBER = "number"
    COUNT = "count"
    SHARE = "share"
    BASIS = "basis"
    MOMENT = "moment"
    SECOND_MOMENT = "second moment"  # never negative
    RESIDUAL = "residual"


class Field(NamedTuple):
    """One entry of the state: a tensor, or a plain number if `dtype` is int or float."""

    shape: tuple[int, ...]
    dtype: str | type[int] | type[float]
    role: Role
    start: int | float = 0  # what it holds before the first step


Layout = dict[str, Field]


def number(start: int = 0) -> Field:
    """A plain integer."""
    return Field((), int, Role.NUMBER, start)


class Storage(Protocol):
    """How a tensor of the working dtype is stored: under `name`, or under `name.<field>` if it takes several."""

    def layout(self, name: str, field: Field, weight: str) -> Layout:
        """The entries that `field`, whose dtype is `WORK`, occupies for a weight of dtype `weight`."""
        ...


class AsWork:
    """In the working precision: float32, float64 for float64 weights."""

    def layout(self, name: str, field: Field, weight: str) -> Layout:
        return {name: field._replace(dtype=work_dtype(weight))}


class AsBFloat16:
    """In bfloat16."""

    def layout(self, name: str, field: Field, weight: str) -> Layout:
        return {name: field._replace(dtype="bfloat16")}


class AsBlocks8:
    """In 8-bit codes with a float32 scale for each 256 elements; those of a second moment have no sign."""

    def layout(self, name: str, field: Field, weight: str) -> Layout:
        codes = "uint8" if field.role is Role.SECOND_MOMENT else "int8"
        scales = Field((-(-prod(field.shape) // BLOCK),), "float32", field.role)
        return {f"{name}.codes": field._replace(dtype=codes), f"{name}.scales": scales}


STORAGES: dict[str, Storage] = {"float32": AsWork(), "bfloat16": AsBFloat16(), "int8": AsBlocks8()}
MOMENT_DTYPES = ("auto", *STORAGES)
GROUP_SIZES = range(GROUP_MULTIPLE, LARGEST_GROUP + 1, GROUP_MULTIPLE)  # rows of a packed basis that share a scale


def moment_storage(moment_dtype: str, weight: str, host: bool) -> str:
    """Which of `STORAGES` holds the moments of a weight of dtype `weight`, by the key `moment_dtype`.

    "auto" takes no more than the weight's own width: bfloat16 without bias for bfloat16 weights, else the working
    precision. If the device has no kernel for that rounding (`host` is False), "auto" is the working precision too.
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


# ---- what each part of an optimizer keeps ------------------------------------------------------------------------


def adam_fields(shape: tuple[int, ...]) -> Layout:
    """Adam's moments of a gradient of `shape`."""
    return {
        "exp_avg": Field(shape, WORK, Role.MOMENT),
        "exp_avg_sq": Field(shape, WORK, Role.SECOND_MOMENT),
    }


def lion_fields(shape: tuple[int, ...]) -> Layout:
    """Lion's only moment of a gradient of `shape`."""
    return {"exp_avg": Field(shape, WORK, Role.MOMENT)}


def adabelief_fields(shape: tuple[int, ...]) -> Layout:
    """AdaBelief's moments of a gradient of `shape`: the mean, and the variance around it."""
    return {**lion_fields(shape), "exp_avg_var": Field(shape, WORK, Role.SECOND_MOMENT)}


def adafactor_fields(shape: tuple[int, ...]) -> Layout:
    """Adafactor's second moment of a gradient of `shape` [m, n], by its means over columns and over rows."""
    rows, cols = shape
    return {
        "exp_avg_sq_row": Field((rows,), WORK, Role.SECOND_MOMENT),
        "exp_avg_sq_col": Field((cols,), WORK, Role.SECOND_MOMENT),
    }


RULES = {"adam": adam_fields, "adafactor": adafactor_fields, "lion": lion_fields, "adabelief": adabelief_fields}


def subspace_fields(where: Geometry) -> Layout:
    """What the state keeps of every subspace: its side and its rank."""
    return {"proj.side": number(int(where.side)), "proj.rank": number(where.rank)}


def basis_fields(where: Geometry) -> Layout:
    """The orthonormal bases of a subspace, and the share of the gradient that it held when it was found."""
    return {"proj.captured": Field((), "float32", Role.SHARE), **bare_fields(where)}


def bare_fields(where: Geometry) -> Layout:
    """The orthonormal bases of a subspace alone."""
    keys = basis_keys(where)
    return {keys[side]: Field(shape, WORK, Role.BASIS) for side, shape in where.basis_shapes.items()}


def index_fields(where: Geometry) -> Layout:
    """The numbers of the rows or columns that are selected, and the share of the gradient that they held."""
    return {
        "proj.captured": Field((), "float32", Role.SHARE),
        "proj.indices": Field((where.rank,), "int64", Role.BASIS),
    }


@lru_cache(maxsize=4096)
def basis_keys(where: Geometry) -> dict[str, str]:
    """The key of each basis by its side."""
    sides = where.basis_shapes
    return {side: f"proj.basis_{side}" if len(sides) == 2 else "proj.basis" for side in sides}


def packed_fields(where: Geometry, group_size: int) -> Layout:
    """As `basis_fields`, with bases in 4-bit codes, two a byte, and a scale and an offset for each group of rows."""
    entries: Layout = {"proj.captured": Field((), "float32", Role.SHARE)}
    for side, key in basis_keys(where).items():
        rows, rank = where.basis_shapes[side]
        group = packed_group(rows, group_size)
        groups = -(-rows // group)
        entries[f"{key}.codes"] = Field((groups * group // 2, rank), "uint8", Role.BASIS)
        for part in ("scales", "offsets"):
            entries[f"{key}.{part}"] = Field((groups, rank), "bfloat16", Role.BASIS)
    return entries


def packed_group(rows: int, group_size: int) -> int:
    """Rows that share a scale: `group_size`, or fewer where the basis has fewer, in a multiple that kernels take."""
    return min(group_size, -(-rows // GROUP_MULTIPLE) * GROUP_MULTIPLE)


def refresh_fields() -> Layout:
    """What a schedule keeps: how many times a subspace was found, and the counts of steps at the last find and at the
    last search."""
    return {"proj.refreshes": number(), "proj.last_refresh": number(), "proj.last_look": number()}


def lazy_fields(queue_size: int) -> Layout:
    """What a schedule keeps besides that grows its gap: the last cosines, newest first, how many of them
    are there, and how many times the gap has grown."""
    cosines = Field((queue_size,), "float32", Role.SHARE)
    return {"schedule.cosines": cosines, "schedule.count": number(), "schedule.grown": number()}


def convergence_fields() -> Layout:
    """What a schedule keeps that waits for gradients to fade: the norm of the first one in a subspace, and a mean."""
    return {f"convergence.{key}": Field((), "float32", Role.SHARE) for key in ("first", "mean")}


def error_fields(where: Geometry) -> Layout:
    """What a residual keeps that feeds back what a subspace missed."""
    return {"residual.error": Field((where.rows, where.cols), WORK, Role.RESIDUAL)}


def atom_fields(where: Geometry, basis: str) -> Layout:
    """The atoms of the fixed basis called `basis` that span a subspace, by their numbers; and the share of what they
    were chosen from that they hold. The numbers of another basis mean other atoms, so the key names it; a number beside
    them does for `AUTO_BASIS`, which is 0 until there is a subspace."""
    return {
        "proj.captured": Field((), "float32", Role.SHARE),
        f"proj.{basis}": Field((where.rank,), "int64", Role.BASIS),
        **({AUTO_KEY: number()} if basis == AUTO_BASIS else {}),
    }


def count_fields(where: Geometry) -> Layout:
    """A count of steps for each direction of a subspace on one side, in the shape that multiplies a low-rank matrix."""
    shape = (where.rank, 1) if where.side == Side.LEFT else (1, where.rank)
    return {"counts": Field(shape, "int32", Role.COUNT)}


def feedback_fields(where: Geometry) -> Layout:
    """What is fed back to the next gradient: a matrix of the weight's shape."""
    return {"residual.feedback": Field((where.rows, where.cols), WORK, Role.RESIDUAL)}


def whole_means(where: Geometry) -> Layout:
    """Adafactor's means of the square of the whole gradient, beside a subspace."""
    fields = adafactor_fields((where.rows, where.cols))
    return {f"residual.{key}": field._replace(dtype="float32", role=Role.RESIDUAL) for key, field in fields.items()}


def limit_fields() -> Layout:
    """What a limiter of growth keeps: the norm of the last step, before its bias correction."""
    return {"residual.limit": Field((1,), "float32", Role.RESIDUAL)}


# ---- and what they keep together ---------------------------------------------------------------------------------


def stored(fields: Layout, storage: Storage, weight: str) -> Layout:
    """`fields` as the state holds them: `storage` replaces those of dtype `WORK`, for a weight of dtype `weight`."""
    entries: Layout = {}
    for name, field in fields.items():
        entries |= storage.layout(name, field, weight) if field.dtype == WORK else {name: field}
    return entries


def state_layout(*parts: Layout) -> Layout:
    """Every entry in the state of a parameter: the format, the count of steps and the fields of its `parts`."""
    entries: Layout = {"format": number(FORMAT), "step": Field((), "float32", Role.COUNT)}
    for part in parts:
        entries |= part
    return entries


def layout_bytes(layout: Layout) -> int:
    """Bytes of all tensors of `layout`."""
    return sum(prod(field.shape) * ITEM_SIZES[field.dtype] for field in layout.values() if isinstance(field.dtype, str))
