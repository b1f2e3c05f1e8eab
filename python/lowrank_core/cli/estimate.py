"""`lowrank-core estimate`: bytes of weights, gradients and optimizer state before you run."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from math import prod
from typing import Any

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.defaults import takers
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.options import flag
from lowrank_core.cli.presets import DTYPES, PRESETS, Parts, Sizes
from lowrank_core.cli.resolve import resolve
from lowrank_core.cli.table import megabytes, table
from lowrank_core.memory import estimate_state_bytes
from lowrank_core.memory.methods import FACADES, METHODS
from lowrank_core.memory.storage import ITEM_SIZES

BYTE_VALUES = 256
STORED = ("proj_type", "projector", "moment_dtype", "plain_moment_dtype")  # keys of the optimizer that decide its bytes
OWNED = {"density": "frugal", "subspace": "frugal", "active": "lisa"}  # keys of one optimizer that decide its bytes


def run(options: argparse.Namespace) -> int:
    """Prints the table, or the same as JSON."""
    parts, width = _parts(options)
    result = estimate(parts, options.optimizer, options.dtype, _keys(options, parts, width))
    print(json.dumps(result, indent=1) if options.json else _text(result))
    return 0


def estimate(parts: Parts, optimizer: str, dtype: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Bytes for AdamW and, if it is another, for `optimizer` with `keys`; `dtype` is a key of `DTYPES`."""
    kind = DTYPES[dtype]
    parameters = sum(count * sum(map(prod, shapes.values())) for shapes, count in parts)
    weights = parameters * ITEM_SIZES[kind]
    named = {_name(i, key): (shape, n) for i, (shapes, n) in enumerate(parts) for key, shape in shapes.items()}
    shapes = {key: shape for key, (shape, _) in named.items()}
    counts = {key: count for key, (_, count) in named.items()}
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(("adamw", optimizer)):
        own = {} if name == "adamw" else keys
        # By counts, so that a thousand layers cost what one does.
        state = estimate_state_bytes(shapes, name, dtype=kind, counts=counts, **own)
        rows.append(
            {
                "optimizer": name,
                "weights": weights,
                "gradients": weights,
                "state": state,
                "total": 2 * weights + state,
            }
        )
    said = {name: keys.get(name) for name in ("rank", *STORED)}
    return {"parameters": parameters, "dtype": dtype, **said, "bytes": rows}


def _name(part: int, key: str) -> str:
    """The name of a parameter: the first part of a decoder is what is outside of its layers, all others are stacks."""
    return f"part{part}.{key}" if part == 0 and key != "shape" else f"part{part}.0.{key}"


def decoder(dim: int, ffn: int, layers: int) -> Parts:
    """The decoder that `train` trains."""
    return Sizes(dim, ffn, layers, BYTE_VALUES).parts()


def _parts(options: argparse.Namespace) -> tuple[Parts, int]:
    """The parameters' shapes, and the width that the default rank is a quarter of."""
    own = {name: getattr(options, name) for name in ("dim", "layers", "ffn") if hasattr(options, name)}
    if own and (options.preset or options.shape):
        other = "--preset" if options.preset else "--shape"
        raise CliError(f"`{flag(next(iter(own)))}` must not come with `{other}`, which says all sizes; leave one out")
    if options.shape:
        given: list[tuple[int, int, int]] = options.shape
        return [({"shape": (m, n)}, count) for m, n, count in given], min(min(m, n) for m, n, _ in given)
    if options.preset:
        return PRESETS[options.preset].parts(), PRESETS[options.preset].dim
    config = resolve(replace(TrainConfig(), optimizer="adamw", **{"heads": 1, **own}))
    return decoder(config.dim, config.ffn or 0, config.layers), config.dim


def _keys(options: argparse.Namespace, parts: Parts, width: int) -> dict[str, Any]:
    """The keys of the optimizer that decide its bytes; those that are not given stay out."""
    given = {name: getattr(options, name) for name in ("rank", *STORED, *OWNED) if getattr(options, name) is not None}
    if options.optimizer == "adamw":
        for name in given:
            raise CliError(f"`{flag(name)}` must come with one of {', '.join(METHODS)}, got adamw; leave it out")
        return {}
    for name, owner in OWNED.items():
        if name in given and options.optimizer != owner:
            raise CliError(f"`{flag(name)}` must come with {owner}, got {options.optimizer}; leave it out")
    if options.optimizer in FACADES:
        if wrong := [name for name in given if name not in OWNED]:
            raise CliError(f"`{flag(wrong[0])}` must be left out for {options.optimizer}, which has AdamW inside")
        return given
    method = METHODS[options.optimizer]
    for name, known in (("proj_type", method.proj_types), ("projector", method.projectors)):
        if name in given and given[name] not in known:
            rule = f"be one of {', '.join(known)}" if known else "be left out"
            raise CliError(f"`{flag(name)}` must {rule} for {options.optimizer}, got {given[name]}")
    if options.optimizer not in takers("rank"):
        if "rank" in given:
            raise CliError(
                f"`--rank` must be left out for {options.optimizer}, which takes matrices whole, got {given['rank']}"
            )
        return given
    rank: int = given.get("rank", max(1, width // 4))
    largest = max(min(shape) for shapes, _ in parts for shape in shapes.values() if len(shape) == 2)
    if rank >= largest:
        raise CliError(f"`--rank` must be < {largest}, the largest min(m, n) of a matrix, got {rank}; lower it")
    return {**given, "rank": rank}


def _text(result: dict[str, Any]) -> str:
    rows = result["bytes"]
    base = rows[0]["state"]
    cells = [
        (
            row["optimizer"],
            *(megabytes(row[k]) for k in ("weights", "gradients", "state", "total")),
            f"{row['state'] / base:.3f}",
        )
        for row in rows
    ]
    rank = f", rank {result['rank']}" if result["rank"] else ""
    head = ("optimizer", "weights", "gradients", "optimizer state", "total", "state of AdamW's")
    size = f"{result['parameters']:,} parameters, {result['dtype']}{rank}"
    notes = ["Activations are not counted."]
    if len(rows) > 1:
        moment = result["moment_dtype"] or METHODS[rows[1]["optimizer"]].moment_dtype
        plain = result["plain_moment_dtype"] or moment
        kept = moment if plain == moment else f"{moment}, {plain} where nothing is projected"
        notes.append(f"Moments of {rows[1]['optimizer']}: {kept}.")
        if "auto" in (moment, plain):
            on_device = "" if result["dtype"] == "fp32" else ", on an accelerator float32 in this version"
            notes.append(f"auto: the dtype of the weights{on_device}.")
    return f"{size}\n\n{table(head, cells)}\n\n{' '.join(notes)}"
