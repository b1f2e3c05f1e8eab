"""Trains an adapter of a pretrained model, and reports."""

from __future__ import annotations

import argparse
import importlib.util
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import claimed
from lowrank_core.cli.finetune.config import CLASSIFICATION, FinetuneConfig
from lowrank_core.cli.finetune.place import Place, find
from lowrank_core.cli.finetune.resolve import checked, resolve
from lowrank_core.cli.finetune.rows import Parted
from lowrank_core.cli.finetune.source import load
from lowrank_core.cli.resume import grow, steps_of, stored_run
from lowrank_core.cli.session import begin, describe, set_threads, stopped, train_to_end
from lowrank_core.extras import how_to_install

if TYPE_CHECKING:
    from lowrank_core.cli.finetune.pretrained import Pretrained
    from lowrank_core.cli.finetune.tasks import Task

KIND = "finetune"
_PACKAGES = ("torch", "safetensors", "tqdm", "matplotlib")
_PATHS = ("model", "data")


def run(options: argparse.Namespace) -> int:
    """Trains as `options` say; returns 0, or 129, 130 or 143 if a signal stopped it with a checkpoint.

    Nothing is created or deleted before all options, the data and the model have been found good.
    """
    for names, extra in ((_PACKAGES, "train"), (("transformers",), "integrations")):
        if missing := [name for name in names if importlib.util.find_spec(name) is None]:
            raise CliError(f"needs {', '.join(missing)}; {how_to_install(extra)}")
    folder = Path(options.out)
    given = {item.name: getattr(options, item.name) for item in fields(FinetuneConfig) if hasattr(options, item.name)}
    given |= {name: _absolute(given[name]) for name in _PATHS if name in given}  # so that a resume finds them
    stored = stored_run(folder, KIND, checked) if options.resume else None
    config = resolve(FinetuneConfig.from_json(given)) if stored is None else _resumed(given, stored)
    place = find(str(config.model))
    data = load(config, folder)
    if stored is None and not options.overwrite and (folder / "adapter_config.json").exists():
        raise CliError(f"`--out` must not hold another adapter, but '{folder}' does; choose another folder")

    from lowrank_core.cli.finetune import pretrained
    from lowrank_core.cli.finetune.tasks import task_of

    found = pretrained.load(place, config, data.labels)
    _check_length(config, found)
    task = task_of(config, data, found.tokenizer)
    if task.largest >= (words := found.model.get_input_embeddings().num_embeddings):
        raise CliError(
            f"the tokenizer in '{place.folder}' must fit its model, which has {words} tokens, got number "
            f"{task.largest}; name a folder whose files belong together"
        )
    with claimed(folder):
        threads = set_threads(options.threads, stored)
        if stored is None:
            begin(folder, KIND, config, threads, overwrite=options.overwrite)
        elif grown := grow(folder, config, stored):
            describe(folder, grown)
        _announce(config, data, place, threads)
        return _train(config, data, found, task, folder, options.save_every)


def _train(
    config: FinetuneConfig, data: Parted, pretrained: Pretrained, task: Task, folder: Path, save_every: int
) -> int:
    from lowrank_core.cli.finetune.export import export
    from lowrank_core.cli.finetune.report import write_report
    from lowrank_core.cli.finetune.tuning import Tuning
    from lowrank_core.cli.memory import is_out_of_memory
    from lowrank_core.cli.stop import StopRequest

    try:
        with StopRequest() as stop:
            tuning = Tuning(config, data, pretrained, task, folder)
            tuning.restore()
            before = tuning.step
            train_to_end(tuning, config, folder, stop, save_every, "samples")
    except (MemoryError, RuntimeError) as failure:
        if not is_out_of_memory(failure):
            raise
        raise CliError(
            f"out of memory with {config.method}; lower `--batch-size`, `--seq-len` or `--rank`, or free memory and go "
            "on with `--resume`"
        ) from failure
    export(folder, tuning.inner, config, pretrained.heads)
    if tuning.step < config.steps:
        print(stopped(tuning, KIND, config, folder, save_every))
        return stop.exit_code
    if before == config.steps:
        print(f"the run was finished: all {config.steps} steps are done; `--steps` with more of them goes on")
    print(write_report(folder, config, tuning.summary()))
    return 0


def _absolute(given: Any) -> Any:
    return os.path.abspath(given) if isinstance(given, str) else [os.path.abspath(path) for path in given]


def _resumed(given: dict[str, Any], stored: dict[str, Any]) -> FinetuneConfig:
    """The stored options, with more steps where they have grown."""
    before = FinetuneConfig.from_json(stored["config"])
    steps = steps_of(given, stored)
    if before.method == "adalora" and steps != before.steps:
        raise CliError(
            f"`--steps` of adalora must stay {before.steps} when a run is resumed, for its ranks fall until the end, "
            f"got {steps}; leave it out"
        )
    return replace(before, steps=steps)


def _check_length(config: FinetuneConfig, pretrained: Pretrained) -> None:
    from lowrank_core.cli.finetune.pretrained import longest

    limit = longest(pretrained.model)
    if limit is not None and config.seq_len > limit:
        raise CliError(f"`--seq-len` must be at most {limit}, the model's positions, got {config.seq_len}; lower it")


def _announce(config: FinetuneConfig, data: Parted, place: Place, threads: int) -> None:
    kinds = f" of {len(data.labels)} labels" if config.task == CLASSIFICATION else ""
    skipped = f", {data.skipped} without text left out" if data.skipped else ""
    print(f"model: {place}")
    print(f"data: {len(data.train)} texts{kinds} to train on, {len(data.val)} held out{skipped}")
    print(f"plan: {config.steps} steps of {config.bytes_per_step} samples, {config.method}, {threads} threads")
