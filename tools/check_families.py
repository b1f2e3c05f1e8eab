"""Checks that every kernel family has one stem in every layer, and that no layer holds a file of no family.

A family may have further files beside each of these: in its folder, or named `<stem>_*` where it has none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path, PurePath

from report import finish, root_argument

FAMILIES = ("chain_lr", "dct_select", "int4_project", "kalman_diag", "rsvd", "subspace_step")
# Families whose .cu is still to come.
WITHOUT_CUDA: tuple[str, ...] = ("chain_lr", "dct_select", "kalman_diag", "subspace_step")

PLACES = (
    "cpp/include/lowrank_core/{}.h",
    "cpp/src/{}/*.cpp",
    "cuda/{}.cu",
    "cpp/bindings/{}.cpp",
    "python/lowrank_core/ops/{}/__init__.py",
    "python/lowrank_core/ops/{}/autograd.py",
    "python/lowrank_core/reference/{}.py",
    "tests/ops/{0}/test_{0}[._]*py",  # one file, or one for each aspect; no two tests share a name
    "bench/bench_{}.py",
)
# Layers that hold families and, besides, only these.
SHARED = {
    "cuda/*.cu": (),
    "cpp/bindings/*.cpp": ("caster", "core", "exchange", "gemm", "kernel", "module", "placement"),
    "python/lowrank_core/reference/*.py": ("__init__", "philox"),
}
# Layers where a family is a folder, and the files that stand beside the folders.
FOLDERS = {
    "python/lowrank_core/ops": (
        "__init__",
        "arrays",
        "declare",
        "device",
        "normal",
        "operators",
        "products",
        "torch_*",
    ),
    "tests/ops": ("*",),
}


def family_of(stem: str) -> str | None:
    """The family that a file of this stem belongs to; the longest one, should one name begin another."""
    owners = [family for family in FAMILIES if stem == family or stem.startswith(f"{family}_")]
    return max(owners, key=len, default=None)


def owner_of(path: PurePath) -> str | None:
    """The family whose folder a file lies in, or whose stem it has."""
    return next((part for part in path.parts[:-1] if part in FAMILIES), None) or family_of(path.stem)


def problems(root: Path) -> Iterator[str]:
    for family in FAMILIES:
        for place in PLACES:
            if place.endswith(".cu") and family in WITHOUT_CUDA:
                continue
            if not any(root.glob(place.format(family))):
                yield f"family {family} lacks {place.format(family)}"
    for family in WITHOUT_CUDA:
        if (root / f"cuda/{family}.cu").exists():
            yield f"cuda/{family}.cu exists; take {family} off WITHOUT_CUDA"
    for path in sorted((root / "cpp/src").glob("*")):
        if path.name not in ("core", *FAMILIES):
            yield f"{path.relative_to(root)} is no family's folder; move it into one, or into cpp/src/core"
    for pattern, shared in SHARED.items():
        for path in root.glob(pattern):
            if path.stem not in shared and family_of(path.stem) is None:
                yield f"{path.relative_to(root)} belongs to no family; rename it, or add the family to FAMILIES"
    for folder, beside in FOLDERS.items():
        yield from _misplaced(root, folder, beside)


def _misplaced(root: Path, folder: str, beside: tuple[str, ...]) -> Iterator[str]:
    for path in (root / folder).glob("*/*.py"):
        if path.parent.name not in FAMILIES:
            yield f"{path.relative_to(root)} belongs to no family; rename its folder, or add the family to FAMILIES"
    for path in (root / folder).glob("*.py"):
        owner = family_of(path.stem.removeprefix("test_"))
        if owner is not None:
            yield f"{path.relative_to(root)} is not in its family's folder; move it to {folder}/{owner}"
        elif not any(path.match(f"{name}.py") for name in beside):
            yield f"{path.relative_to(root)} belongs to no family; move it to the folder of one"


if __name__ == "__main__":
    sys.exit(finish(problems(root_argument()), f"{len(FAMILIES)} families in {len(PLACES)} layers"))
