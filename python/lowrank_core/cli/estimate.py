"""`lowrank-core estimate`: bytes of weights, gradients and optimizer state before you run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.defaults import ALL, takers
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.options import flag
from lowrank_core.cli.presets import DTYPES, PRESETS, Parts, Sizes
from lowrank_core.cli.resolve import resolve
from lowrank_core.cli.subjects import Built, Listed, Subject
from lowrank_core.cli.table import megabytes, table
from lowrank_core.memory.gradients import GradientBytes
from lowrank_core.memory.methods import FACADES, METHODS
from lowrank_core.memory.training import TrainingBytes

BYTE_VALUES = 256
STORED = ("proj_type", "projector", "moment_dtype", "plain_moment_dtype")  # keys of the optimizer that decide its bytes
OWNED = {"density": "frugal", "subspace": "frugal", "active": "lisa"}  # keys of one optimizer that decide its bytes
_WAYS = {"at_once": "at once", "added": "added up", "compressed": "in sketches"}  # of layer-wise updates
_OF_ONE = ("proj_type", "projector")  # keys whose values differ from optimizer to optimizer


def run(options: argparse.Namespace) -> int:
    """Prints the table, or the same as JSON."""
    subject = _subject(options)
    names = (*METHODS, *FACADES) if options.optimizer == ALL else (options.optimizer,)
    _check(options, names)
    keys = {name: _keys(options, name, subject) for name in names if name != "adamw"}
    result = estimate(subject, keys, options.dtype, int8_weights=options.int8_weights)
    print(json.dumps(result, indent=1) if options.json else _text(result))
    return 0


def estimate(
    subject: Subject, keys: Mapping[str, Mapping[str, Any]], dtype: str, *, int8_weights: bool = False
) -> dict[str, Any]:
    """Bytes for AdamW and for each optimizer in `keys`, with those; `dtype` is a key of `DTYPES`.

    Weights in 8 bits are for those optimizers that can train them: all but AdamW, and what has AdamW inside.
    """
    kind = DTYPES[dtype]
    base = subject.bytes("adamw", kind, {}, False)
    rows = [_row("adamw", None, base, base.state)]
    for name, own in keys.items():
        held = subject.bytes(name, kind, own, int8_weights and name in METHODS)
        rows.append(_row(name, own.get("rank"), held, base.state))
    said = {name: _common(keys, name) for name in ("rank", *STORED)}
    head = {"parameters": subject.parameters, "dtype": dtype, "int8_weights": int8_weights}
    return {**head, **said, "bytes": rows}


def _common(keys: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    """What every optimizer that has the key `name` is given under it."""
    return next((own[name] for own in keys.values() if own.get(name) is not None), None)


def _row(name: str, rank: int | None, held: TrainingBytes, base: int) -> dict[str, Any]:
    kept = held.weights + held.state
    layerwise = one = None
    if name in METHODS:
        one = {"gradients": held.passing, "total": kept + held.passing}
        layerwise = {"at_once": one, "added": _held(held.added, kept), "compressed": _held(held.compressed, kept)}
    return {
        "optimizer": name,
        "rank": rank,
        "weights": held.weights,
        "gradients": held.gradients,
        "layerwise": layerwise,
        "state": held.state,
        "state_of_adamw": held.state / base,
        "total": kept + held.gradients,
    }


def _held(planned: GradientBytes | None, kept: int) -> dict[str, int] | None:
    """What is there at the peak where backward passes are added up, beside weights and state."""
    if planned is None:
        return None
    peak = planned.held + planned.passing
    return {"gradients": peak, "total": kept + peak, **planned._asdict()}


def decoder(dim: int, ffn: int, layers: int) -> Parts:
    """The decoder that `train` trains."""
    return Sizes(dim, ffn, layers, BYTE_VALUES).parts()


def _subject(options: argparse.Namespace) -> Subject:
    own = {name: getattr(options, name) for name in ("dim", "layers", "ffn") if hasattr(options, name)}
    given = next((name for name in ("model", "preset", "shape") if getattr(options, name)), None)
    if own and given:
        raise CliError(
            f"`{flag(next(iter(own)))}` must not come with `{flag(given)}`, which says all sizes; leave one out"
        )
    if options.model:
        from lowrank_core.cli.model_config import build_model

        return Built(build_model(options.model))
    if options.shape:
        shapes: list[tuple[int, int, int]] = options.shape
        return Listed([({"shape": (m, n)}, count) for m, n, count in shapes], min(min(m, n) for m, n, _ in shapes))
    if options.preset:
        return Listed(PRESETS[options.preset].parts(), PRESETS[options.preset].dim)
    config = resolve(replace(TrainConfig(), optimizer="adamw", **{"heads": 1, **own}))
    return Listed(decoder(config.dim, config.ffn or 0, config.layers), config.dim)


def _check(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuses an option that none of the optimizers `names` takes, or that acts on each of them otherwise."""
    given = [name for name in ("rank", *STORED, *OWNED) if getattr(options, name) is not None]
    if options.int8_weights:
        given.append("int8_weights")
    chosen = options.optimizer
    for name in given:
        owner = OWNED.get(name)
        if owner and owner not in names:
            raise CliError(f"`{flag(name)}` must come with {owner}, got {chosen}; leave it out")
        if chosen == "adamw":
            raise CliError(f"`{flag(name)}` must come with one of {', '.join(METHODS)}, got adamw; leave it out")
        if chosen in FACADES and not owner:
            raise CliError(f"`{flag(name)}` must be left out for {chosen}, which has AdamW inside")
        if chosen == ALL and name in _OF_ONE:
            raise CliError(f"`{flag(name)}` must come with one `--optimizer`, got all; name the one that it is for")
    if "rank" in given and chosen in METHODS and chosen not in takers("rank"):
        raise CliError(f"`--rank` must be left out for {chosen}, which takes matrices whole, got {options.rank}")


def _keys(options: argparse.Namespace, optimizer: str, subject: Subject) -> dict[str, Any]:
    """The keys of the optimizer that decide its bytes; those that are not given stay out."""
    names = (*(() if optimizer in FACADES else STORED), *(name for name in OWNED if OWNED[name] == optimizer))
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if optimizer in FACADES:
        return given
    method = METHODS[optimizer]
    for name, known in (("proj_type", method.proj_types), ("projector", method.projectors)):
        if name in given and given[name] not in known:
            rule = f"be one of {', '.join(known)}" if known else "be left out"
            raise CliError(f"`{flag(name)}` must {rule} for {optimizer}, got {given[name]}")
    if optimizer not in takers("rank"):
        return given
    rank: int = options.rank or max(1, subject.width // 4)
    if rank >= subject.largest:
        raise CliError(f"`--rank` must be < {subject.largest}, the largest min(m, n) of a matrix, got {rank}; lower it")
    return {**given, "rank": rank}


def _text(result: dict[str, Any]) -> str:
    rank = f", rank {result['rank']}" if result["rank"] else ""
    size = f"{result['parameters']:,} parameters, {result['dtype']}{rank}; in MB (10^6 bytes)"
    head = ["optimizer", "weights", "state", "of AdamW's", "gradients", "total"]
    ways = [way for way in _WAYS if way != "compressed" or _compresses(result)]
    head += [name for way in ways for name in (f"{_WAYS[way]}: gradients", "total")]
    rows = [_cells(row, ways) for row in result["bytes"]]
    return f"{size}\n\n{table(head, rows)}\n\n" + "\n".join(_notes(result))


def _found(row: dict[str, Any], way: str) -> dict[str, int] | None:
    return (row["layerwise"] or {}).get(way)


def _compresses(result: dict[str, Any]) -> bool:
    return any(_found(row, "compressed") for row in result["bytes"])


def _cells(row: dict[str, Any], ways: Sequence[str]) -> tuple[str, ...]:
    def in_mb(count: int) -> str:
        return megabytes(count).removesuffix(" MB")

    ordinary = [in_mb(row[key]) for key in ("weights", "state", "gradients", "total")]
    ordinary.insert(2, f"{row['state_of_adamw']:.3f}")
    cells = [row["optimizer"], *ordinary]
    for way in ways:
        found = _found(row, way)
        cells += [in_mb(found[key]) for key in ("gradients", "total")] if found else ["-", "-"]
    return tuple(cells)


def _notes(result: dict[str, Any]) -> list[str]:
    notes = ["Activations are not counted."]
    names = [row["optimizer"] for row in result["bytes"] if row["optimizer"] in METHODS]
    if not names:
        return notes
    notes += [
        "Layer-wise updates (`fused_backward`), at the peak: `at once`, one backward a step, at_once=True; `added up`,",
        "any number of them, in steps in which no subspace is looked for (--json has those in which all are: `due`).",
    ]
    if _compresses(result):
        notes.append("`in sketches`: those added up with compressed=True, in every step.")
    if result["int8_weights"]:
        notes.append("Weights of linear layers in 8 bits (Int8Linear), but for AdamW, which cannot train them.")
    kept = {name: _moments(result, name) for name in names}
    usual = kept[names[0]]
    others = [f" Of {name}: {value}." for name, value in kept.items() if value != usual]
    notes.append(f"Moments{f' of {names[0]}' if len(names) == 1 else ''}: {usual}.{''.join(others)}")
    if any("auto" in value for value in kept.values()):
        on_device = "" if result["dtype"] == "fp32" else ", on an accelerator float32 in this version"
        notes[-1] += f" auto: the dtype of the weights{on_device}."
    return notes


def _moments(result: dict[str, Any], name: str) -> str:
    moment = result["moment_dtype"] or METHODS[name].moment_dtype
    plain = result["plain_moment_dtype"] or moment
    return moment if plain == moment else f"{moment}, {plain} where nothing is projected"
