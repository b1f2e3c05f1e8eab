"""From the options of `finetune` that were given to those of a run: defaults filled in, contradictions refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lowrank_core.cli.defaults import listed
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.finetune.config import ADAM, FILTERS, METHODS, FinetuneConfig, takers_of
from lowrank_core.cli.options import check_values, flag

_OF_GRADIENTS = ("weight_decay", "clip", *ADAM)
_COLUMNS = ("text_column", "label_column")


def resolve(config: FinetuneConfig) -> FinetuneConfig:
    """Fills in what is None and checks what no single option can check.

    Raises:
      CliError: the model is missing, two options contradict each other, or one would have no effect.
    """
    if config.model is None:
        raise CliError("`--model` is missing; name a folder with a pretrained model, or go on with a run by `--resume`")
    _check_method(config)
    for name in _COLUMNS:
        if not config.data and getattr(config, name) != getattr(FinetuneConfig, name):
            raise CliError(f"`{flag(name)}` must come with `--data`; leave it out, or name files")
    filters = config.method in FILTERS
    filled = replace(
        config,
        alpha=2.0 * config.rank if config.alpha is None else config.alpha,
        lr=config.peak_lrs(config.method)[0],
        warmup=(0 if filters else config.steps // 10) if config.warmup is None else config.warmup,
        min_lr_ratio=(1.0 if filters else 0.1) if config.min_lr_ratio is None else config.min_lr_ratio,
        eval_every=config.eval_every or max(1, config.steps // 10),
        weight_decay=None if filters else config.weight_decay or 0.0,
        **({} if filters else config.adam()),
        clip=None if filters else 1.0 if config.clip is None else config.clip,
        **{name: value for name, value in _ranks(config).items()},
    )
    if (filled.warmup or 0) > filled.steps:
        raise CliError(f"`--warmup` must be at most `--steps`, {filled.steps}, got {filled.warmup}; lower it")
    return filled


def checked(values: Any) -> dict[str, Any]:
    """Stored options. Raises ValueError or TypeError if they could not have come from the command line."""
    config = FinetuneConfig.from_json(values)
    check_values(config)
    if config.model is None:
        raise ValueError("model is None")
    return dict(values)


def _check_method(config: FinetuneConfig) -> None:
    for name in dict.fromkeys(name for _, own in METHODS.values() for name in own):
        if getattr(config, name) is not None and config.method not in takers_of(name):
            raise CliError(
                f"`{flag(name)}` must come with the method {listed(takers_of(name), 'or')}, got {config.method}; "
                "leave it out"
            )
    for name in _OF_GRADIENTS:
        if config.method in FILTERS and getattr(config, name) is not None:
            raise CliError(
                f"`{flag(name)}` must come with a method that takes gradients, got {config.method}; leave it out"
            )
    if config.method in FILTERS and config.accumulation > 1:
        raise CliError(
            f"`--accumulation` must come with a method that takes gradients, which add up, got {config.method}; leave "
            "it out"
        )
    if config.method in FILTERS and config.precision == "amp-fp16":
        raise CliError(
            f"`--precision amp-fp16` must come with a method that takes gradients, whose loss is scaled, got "
            f"{config.method}; use amp-bf16"
        )
    for name in ("init_rank", "max_rank"):
        given = getattr(config, name)
        if given is not None and given < config.rank:
            raise CliError(f"`{flag(name)}` must be at least `--rank`, {config.rank}, got {given}; raise it")


def _ranks(config: FinetuneConfig) -> dict[str, Any]:
    """The method's own options, with the ranks that follow from `rank`."""
    own = config.own()
    if "init_rank" in own:
        own["init_rank"] = own["init_rank"] or -(-3 * config.rank // 2)
    if "max_rank" in own:
        own["max_rank"] = own["max_rank"] or 2 * config.rank
    return own
