"""From the options that were given to those of a run: defaults filled in, contradictions refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from lowrank_core.cli.config import TrainConfig, read_settings
from lowrank_core.cli.defaults import OWN, PAIRED, TUNED, WITHOUT_BETAS, check_choices, listed, takers
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.options import flag
from lowrank_core.cli.settings import Key, label, options_of, write
from lowrank_core.memory.methods import METHODS


def resolve(config: TrainConfig) -> TrainConfig:
    """Fills in what is None and checks what no single option can check.

    Raises:
      CliError: two options contradict each other, or one would have no effect.
    """
    _check_runs(config)
    if config.dim % (2 * config.heads):
        raise CliError(f"`--dim` must be a multiple of 2 * heads = {2 * config.heads}, got {config.dim}; change one")
    fields, settings = _decided(config)
    filled = replace(
        config,
        ffn=config.ffn or -(-8 * config.dim // (3 * 16)) * 16,
        **fields,
        set=write(settings),
        warmup=(warmup := config.steps // 10 if config.warmup is None else config.warmup),
        eval_every=config.eval_every or max(1, config.steps // 10),
        monitor_every=max(1, config.steps // 50) if config.monitor_every is None else config.monitor_every,
    )
    if warmup > filled.steps:
        raise CliError(f"`--warmup` must be at most `--steps`, {filled.steps}, got {warmup}; lower it")
    for run in config.runs:
        check_choices(run, config.own(run), partial(_label, config, run))
    if set(config.runs) & set(takers("rank")):
        filled = replace(filled, rank=config.rank or max(1, config.dim // 4))
    if config.active is None and filled.active is not None:
        filled = replace(filled, active=min(filled.active, filled.layers))
    if (active := filled.own("lisa")["active"] if "lisa" in filled.runs else 0) > filled.layers:
        where = _label(config, "lisa", "active")
        raise CliError(f"`{where}` must be at most `--layers`, {filled.layers}, got {active}; lower it")
    _check_rank(filled)
    return filled


def _decided(config: TrainConfig) -> tuple[dict[str, Any], dict[Key, Any]]:
    """What each optimizer of the run trains with: by field, and what `--set` alone can say of one of several."""
    fields: dict[str, Any] = {}
    settings = dict(read_settings(config.set))
    for run in config.runs:
        for name, value in {**config.tuned(run), **config.own(run)}.items():
            if (run, name) in settings:
                continue
            home = config.home(run, name)
            if home is None:
                settings[run, name] = value
            else:
                fields[home] = value
    return fields, settings


def _label(config: TrainConfig, run: str, name: str) -> str:
    """The option that says `name` of one of the runs."""
    home = config.home(run, name)
    return label(run, name) if (run, name) in read_settings(config.set) or home is None else flag(home)


def _check_runs(config: TrainConfig) -> None:
    twice = next((run for number, run in enumerate(config.runs) if run in config.runs[:number]), None)
    if twice is not None:
        raise CliError(
            f"`--compare` must be another optimizer than `--optimizer` and name each once, got {twice} twice; "
            "leave one out"
        )
    _check_compared(config)
    rounding = [] if config.rounding is None else [flag("rounding")]
    rounding += [label(run, name) for run, name in read_settings(config.set) if name == "rounding"]
    if rounding and config.precision != "bf16":
        raise CliError(
            f"`{rounding[0]}` must come with `--precision bf16`, got {config.precision}, whose weights are float32; "
            "leave it out"
        )
    if config.eps != TrainConfig.eps and set(config.runs) <= set(WITHOUT_BETAS):
        raise CliError(
            f"`--eps` must come with an optimizer that has it, got {listed(config.runs)}, which leave it at "
            f"{TrainConfig.eps:g}; leave it out"
        )
    if config.monitor_every is not None and not set(config.runs) & set(METHODS):
        raise CliError(
            f"`--monitor-every` must come with an optimizer other than {listed(config.runs, 'or')}; leave it out"
        )
    for name in ("rank", *dict.fromkeys(name for own in OWN.values() for name in own)):
        if getattr(config, name) is not None and not set(takers(name)) & set(config.runs):
            raise CliError(
                f"`{flag(name)}` must come with the optimizer {listed(takers(name), 'or')}, got "
                f"{listed(config.runs)}; leave it out"
            )
    _check_settings(config)


def _check_compared(config: TrainConfig) -> None:
    """Options that begin with `--compare-` are those of the only optimizer that is compared."""
    for name in dict.fromkeys((*TUNED[config.optimizer], *PAIRED)):
        twin = flag(f"compare_{name}")
        if getattr(config, f"compare_{name}") is None:
            continue
        if not config.compare:
            raise CliError(f"`{twin}` must come with `--compare`; add `--compare adamw` or leave it out")
        if len(config.compare) > 1:
            raise CliError(
                f"`{twin}` must come with one optimizer in `--compare`, got {listed(config.compare)}; say whose, as in "
                f"`{label(config.compare[0], name)}=...`"
            )
        if name in PAIRED and not set(config.runs) <= set(takers(name)):
            raise CliError(
                f"`{twin}` must come with two optimizers that have `{flag(name)}`, got {listed(config.runs)}; "
                f"leave it out, or use `{flag(name)}`"
            )


def _check_settings(config: TrainConfig) -> None:
    """Every setting is of an optimizer of the run, and none leaves another option without effect."""
    settings = read_settings(config.set)
    for run, name in settings:
        if run not in config.runs:
            raise CliError(
                f"`{label(run, name)}` must be of an optimizer of the run, {listed(config.runs, 'or')}; leave it out, "
                f"or add {run} to `--compare`"
            )
    for run, name in settings:
        field = config.home(run, name)
        deciding = {config.source(other, name) for other in config.runs if name in options_of(other)}
        if field is not None and getattr(config, field) is not None and field not in deciding:
            raise CliError(f"`{flag(field)}` must not say what `{label(run, name)}` says; leave one out")


def _check_rank(config: TrainConfig) -> None:
    smallest = min(config.dim, config.ffn or config.dim)
    for run in config.runs:
        rank = config.rank_of(run) if run in takers("rank") else None
        if rank is not None and rank >= smallest:
            raise CliError(
                f"`{_label(config, run, 'rank')}` must be < {smallest}, the smallest side of a projected matrix, got "
                f"{rank}; the largest allowed is {smallest - 1}"
            )
