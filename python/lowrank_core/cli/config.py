"""Everything that decides what a training run computes: each option once, with its default, help and check."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any

from lowrank_core.cli.errors import CliError

OPTIMIZERS = ("galore", "adamw")
PROJ_TYPES = ("std", "reverse_std", "left", "right", "full")
DEFAULT_LR = {"galore": 1e-2, "adamw": 3e-3}  # the best of docs/results/train_sweep.json
GALORE_DEFAULTS: dict[str, Any] = {
    "update_proj_gap": 50,
    "scale": 0.25,
    "proj_type": "std",
    "projector": "rsvd",
    "moments": "keep",
}


def whole(low: int) -> Callable[[str], int]:
    """Parser of a whole number >= `low`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {low}, got '{text}'")
        return value

    return parse


def real(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Callable[[str], float]:
    """Parser of a finite number from `low` to `high`; `above` and `below` shut out the ends themselves."""
    ends = [f"{'>' if above else '>='} {low:g}"] + ([f"{'<' if below else '<='} {high:g}"] if high < math.inf else [])

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = (value > low if above else value >= low) and (value < high if below else value <= high)
        if not (inside and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"must be a number {' and '.join(ends)}, got '{text}'")
        return value

    return parse


def _option(section: str, default: Any, text: str, *, shown: str | None = None, **parse: Any) -> Any:
    """A field of `TrainConfig`; `shown` replaces the default in the help where it depends on other options."""
    return field(default=default, metadata={"section": section, "text": text, "shown": shown, "parse": parse})


@dataclass(frozen=True)
class TrainConfig:
    """The options of `lowrank-core train` that decide its numbers; `None` stands for "decide by the others"."""

    text: tuple[str, ...] = _option(
        "data", (), "files or folders to train on", shown="the source of Python's standard library", nargs="+", metavar="PATH"
    )
    val_fraction: float = _option(
        "data", 0.1, "share of the text held out for validation", type=real(0, 1, above=True, below=True), metavar="X"
    )
    dim: int = _option("model", 256, "width", type=whole(2), metavar="N")
    layers: int = _option("model", 4, "number of layers", type=whole(1), metavar="N")
    heads: int = _option("model", 4, "attention heads; dim must be a multiple of 2 * heads", type=whole(1), metavar="N")
    ffn: int | None = _option(
        "model", None, "width of the SwiGLU layer", shown="8/3 dim, up to a multiple of 16", type=whole(1), metavar="N"
    )
    seq_len: int = _option("model", 256, "bytes a prediction can look back on", type=whole(2), metavar="N")
    optimizer: str = _option("optimizer", "galore", "optimizer to train with", choices=OPTIMIZERS)
    compare: str | None = _option(
        "optimizer", None, "second optimizer, trained on the same batches", shown="none", choices=OPTIMIZERS
    )
    lr: float | None = _option(
        "optimizer", None, "peak learning rate", shown="tuned per optimizer", type=real(0, above=True), metavar="X"
    )
    compare_lr: float | None = _option(
        "optimizer", None, "the same for --compare", shown="tuned per optimizer", type=real(0, above=True), metavar="X"
    )
    betas: tuple[float, float] = _option(
        "optimizer", (0.9, 0.999), "decay of the two moments", nargs=2, type=real(0, 1, below=True), metavar=("B1", "B2")
    )
    eps: float = _option("optimizer", 1e-8, "Adam's epsilon", type=real(0, above=True), metavar="X")
    weight_decay: float = _option("optimizer", 0.0, "decoupled decay of the matrices", type=real(0), metavar="X")
    rank: int | None = _option("galore", None, "rank of the projection", shown="dim // 4", type=whole(1), metavar="N")
    update_proj_gap: int | None = _option("galore", None, "steps between two refreshes", type=whole(1), metavar="N")
    scale: float | None = _option("galore", None, "factor on the projected update", type=real(0, above=True), metavar="X")
    proj_type: str | None = _option("galore", None, "side that is projected", choices=PROJ_TYPES)
    projector: str | None = _option("galore", None, "factorization of the gradient", choices=("rsvd", "svd"))
    moments: str | None = _option("galore", None, "moments at a refresh", choices=("keep", "rotate"))
    steps: int = _option("schedule", 300, "optimizer steps", type=whole(1), metavar="N")
    batch_size: int = _option("schedule", 8, "windows in one forward pass", type=whole(1), metavar="N")
    accumulation: int = _option("schedule", 1, "forward passes per optimizer step", type=whole(1), metavar="N")
    warmup: int | None = _option("schedule", None, "steps of linear warm-up", shown="steps // 10", type=whole(0), metavar="N")
    min_lr_ratio: float = _option("schedule", 0.1, "where the cosine ends, as a share of lr", type=real(0, 1), metavar="X")
    clip: float = _option("schedule", 1.0, "largest gradient norm; 0 turns clipping off", type=real(0), metavar="X")
    precision: str = _option(
        "schedule", "fp32", "bf16: weights too; amp-*: autocast", choices=("fp32", "bf16", "amp-bf16", "amp-fp16")
    )
    seed: int = _option("schedule", 0, "decides the weights and the batches", type=whole(0), metavar="N")
    eval_every: int | None = _option(
        "schedule", None, "steps between two validations", shown="steps // 10", type=whole(1), metavar="N"
    )
    eval_batches: int = _option("schedule", 8, "validation batches, always the same", type=whole(1), metavar="N")

    @property
    def runs(self) -> tuple[str, ...]:
        """The optimizers to train with, in order."""
        return (self.optimizer,) if self.compare is None else (self.optimizer, self.compare)

    @property
    def window(self) -> int:
        """Bytes of one training example: `seq_len` inputs, each with the byte that follows it."""
        return self.seq_len + 1

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.accumulation * self.seq_len

    def peak_lr(self, run: str) -> float:
        """Peak learning rate of one of `runs`."""
        lr = self.lr if run == self.optimizer else self.compare_lr
        return DEFAULT_LR[run] if lr is None else lr

    def to_json(self) -> dict[str, Any]:
        """Plain values, tuples as lists, so that it equals itself after a round trip through JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def flag(name: str) -> str:
    """The option on the command line of a field: `seq_len` is `--seq-len`."""
    return "--" + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds every field of `TrainConfig`; options that are not given stay out of the namespace."""
    sections: dict[str, Any] = {}
    for item in fields(TrainConfig):
        section = item.metadata["section"]
        if section not in sections:
            sections[section] = parser.add_argument_group(section)
        sections[section].add_argument(
            flag(item.name), default=argparse.SUPPRESS, help=f"{item.metadata['text']} (default: {_shown(item)})",
            **item.metadata["parse"],
        )


def _shown(item: Field[Any]) -> str:
    shown = item.metadata["shown"] or GALORE_DEFAULTS.get(item.name, item.default)
    return " ".join(map(str, shown)) if isinstance(shown, tuple) else str(shown)


def resolve(config: TrainConfig) -> TrainConfig:
    """Fills in what is `None` and checks what no single option can check.

    Raises:
      CliError: the options contradict each other, or one would have no effect.
    """
    _check_runs(config)
    if config.dim % (2 * config.heads):
        raise CliError(f"`--dim` must be a multiple of 2 * heads = {2 * config.heads}, got {config.dim}; change one of them")
    filled = replace(
        config,
        ffn=config.ffn or -(-8 * config.dim // (3 * 16)) * 16,
        lr=config.peak_lr(config.optimizer),
        compare_lr=None if config.compare is None else config.peak_lr(config.compare),
        warmup=config.steps // 10 if config.warmup is None else config.warmup,
        eval_every=config.eval_every or max(1, config.steps // 10),
    )
    if "galore" in config.runs:
        given = {name: default if (v := getattr(config, name)) is None else v for name, default in GALORE_DEFAULTS.items()}
        filled = replace(filled, rank=config.rank or max(1, config.dim // 4), **given)
        _check_rank(filled)
    if filled.warmup > filled.steps:  # type: ignore[operator]
        raise CliError(f"`--warmup` must be at most the number of steps, {filled.steps}, got {filled.warmup}; lower it")
    return filled


def _check_runs(config: TrainConfig) -> None:
    if config.compare == config.optimizer:
        raise CliError(f"`--compare` must be another optimizer than `--optimizer`, got {config.compare} twice")
    if config.compare is None and config.compare_lr is not None:
        raise CliError("`--compare-lr` must come with `--compare`; add `--compare adamw` or leave it out")
    for name in ("rank", *GALORE_DEFAULTS):
        if "galore" not in config.runs and getattr(config, name) is not None:
            raise CliError(f"`{flag(name)}` must come with the optimizer galore, got {' and '.join(config.runs)}; leave it out")


def _check_rank(config: TrainConfig) -> None:
    smallest = min(config.dim, config.ffn or config.dim)
    if config.rank is not None and config.rank >= smallest:
        raise CliError(
            f"`--rank` must be < {smallest}, the smallest side of a projected matrix, got {config.rank}; "
            f"the largest allowed is {smallest - 1}"
        )


def difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first option of `one` whose value in `other` differs: its flag and both values in words."""
    for name, value in one.items():
        if value != other.get(name):
            return flag(name), _words(value), _words(other.get(name))
    return None


def _words(value: Any) -> str:
    return " ".join(map(str, value)) or "unset" if isinstance(value, list) else "unset" if value is None else str(value)
