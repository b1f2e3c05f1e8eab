"""What the functions of the family exchange: an array as 4-bit codes, and the contract of its parts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lowrank_core.ops.arrays import Array, check_dense, check_int, check_same, dtype_name, is_cupy, is_torch

SCHEMES = ("affine", "affine_zp", "symmetric", "nf4")
GROUP_MULTIPLE, LARGEST_GROUP = 32, 256


class Int4Matrix(NamedTuple):
    """An array as 4-bit codes with a scale, and for two schemes an offset, for every group along `dim`.

    Element i of a line along `dim`, of code c (the lower half of byte i // 2 for even i, else the upper one), in group
    i // group_size, is scale * c + offset ("affine"), scale * (c - offset) ("affine_zp"), scale * (c - 8)
    ("symmetric") or scale * level[c] ("nf4"), in float32.

    Attributes:
      packed: uint8, shaped like the array with `dim` -> groups * group_size / 2; a last group that is not full has
        codes 0 at its end.
      scales: `dim` -> groups; bfloat16, for NumPy and CuPy float32 with bfloat16's values. 0 where a group has no
        range.
      offsets: like `scales`; None for "symmetric" and "nf4". Integers from 0 to 15 for "affine_zp".
      shape: of the array. dim: >= 0. group_size, scheme: as given.
    """

    packed: Array
    scales: Array
    offsets: Array | None
    shape: tuple[int, ...]
    dim: int
    group_size: int
    scheme: str


def has_offsets(scheme: str) -> bool:
    """Whether groups of the scheme have an offset beside their scale."""
    return scheme in ("affine", "affine_zp")


def check_choice(op: str, argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuses a value that is none of `choices`."""
    if value not in choices:
        named = ", ".join(repr(choice) for choice in choices[:-1])
        raise ValueError(f"{op}: `{argument}` must be {named} or {choices[-1]!r}, got {value!r}")


def check_group_size(op: str, group_size: int) -> None:
    """Refuses a size that groups cannot have."""
    check_int(op, "group_size", group_size, GROUP_MULTIPLE, LARGEST_GROUP)
    if group_size % GROUP_MULTIPLE:
        raise ValueError(f"{op}: `group_size` must be a multiple of {GROUP_MULTIPLE}, got {group_size}; take 64 or 128")


def check_codes(op: str, q: Int4Matrix) -> None:
    """Refuses what is no Int4Matrix whose parts fit together."""
    if not isinstance(q, Int4Matrix):
        raise TypeError(f"{op}: `q` must be an Int4Matrix, got {type(q).__name__}; quantize_int4 makes one")
    if not isinstance(q.packed, np.ndarray) and not is_torch(q.packed) and not is_cupy(q.packed):
        raise TypeError(f"{op}: `q.packed` must be an array, got {type(q.packed).__name__}")
    check_choice(op, "q.scheme", q.scheme, SCHEMES)
    check_group_size(op, q.group_size)
    check_int(op, "q.dim", q.dim, 0, len(q.shape) - 1, f" for shape {list(q.shape)}")
    if (q.offsets is not None) != has_offsets(q.scheme):
        wanted = "given" if has_offsets(q.scheme) else "None"
        raise ValueError(f"{op}: `q.offsets` must be {wanted} for scheme {q.scheme!r}, got the opposite")
    _check_part(op, "packed", q.packed, q, groups_of(q.shape[q.dim], q.group_size) * q.group_size // 2, ("uint8",))
    for name, part in (("scales", q.scales), ("offsets", q.offsets)):
        if part is not None:
            check_same(op, f"q.{name}", part, q.packed)
            _check_part(op, name, part, q, groups_of(q.shape[q.dim], q.group_size), ("bfloat16", "float32"))


def _check_part(op: str, name: str, part: Array, q: Int4Matrix, along: int, dtypes: tuple[str, ...]) -> None:
    check_dense(op, f"q.{name}", part)
    expected = with_size(q.shape, q.dim, along)
    if dtype_name(part) not in dtypes:
        raise TypeError(f"{op}: `q.{name}` must be {' or '.join(dtypes)}, got {dtype_name(part)}")
    if tuple(part.shape) != expected:
        raise ValueError(
            f"{op}: `q.{name}` must have shape {list(expected)} for an array {list(q.shape)} in groups of "
            f"{q.group_size} along {q.dim}, got {list(part.shape)}"
        )
    if not (part.is_contiguous() if is_torch(part) else part.flags.c_contiguous):
        raise ValueError(f"{op}: `q.{name}` must be contiguous, got other strides; make it contiguous")


def groups_of(length: int, group_size: int) -> int:
    """Groups in a line of `length` elements."""
    return (length + group_size - 1) // group_size


def with_size(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    """`shape` with another size of dimension `dim`."""
    return (*shape[:dim], size, *shape[dim + 1 :])
