"""`lowrank-core train`: trains with one optimizer, or with several on the same batches, and reports."""

from __future__ import annotations

import argparse
import importlib.util
import os
from dataclasses import fields
from pathlib import Path

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.defaults import ALL, listed
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import claimed
from lowrank_core.cli.options import flag
from lowrank_core.cli.parser import STUDY
from lowrank_core.cli.resolve import resolve
from lowrank_core.cli.resume import grow, resumed, stored_run
from lowrank_core.cli.session import begin, describe, set_threads, stopped, train_to_end
from lowrank_core.cli.text import Corpus, load_corpus
from lowrank_core.extras import how_to_install

_PACKAGES = ("torch", "safetensors", "tqdm", "matplotlib")


def run(options: argparse.Namespace) -> int:
    """Trains as `options` say; returns 0, or 129, 130 or 143 if a signal stopped it with a checkpoint.

    Nothing is created or deleted before all options and the text have been found good, and torch is not imported.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise CliError(f"needs {', '.join(missing)}; {how_to_install('train')}")
    if getattr(options, "optimizer", None) == ALL:
        from lowrank_core.cli.study import command

        return command.run(options)
    for name in STUDY:
        if hasattr(options, name):
            raise CliError(f"`{flag(name)}` must come with `--optimizer {ALL}`; leave it out")
    folder = Path(options.out)
    given = {item.name: getattr(options, item.name) for item in fields(TrainConfig) if hasattr(options, item.name)}
    if "text" in given:
        given["text"] = [os.path.abspath(path) for path in given["text"]]  # so that a resume finds it from anywhere
    stored = stored_run(folder) if options.resume else None
    config = resolve(TrainConfig.from_json(given)) if stored is None else resumed(given, stored)
    corpus = load_corpus(config.text, val_fraction=config.val_fraction, window=config.window, out=folder)

    from lowrank_core.cli.memory import check_fits

    check_fits(config)
    with claimed(folder):
        threads = set_threads(options.threads, stored)
        if stored is None:
            begin(folder, "train", config, threads, overwrite=options.overwrite)
        elif grown := grow(folder, config, stored):
            describe(folder, grown)
        _announce(config, corpus, threads)
        return _train_all(config, corpus, folder, options.save_every)


def _train_all(config: TrainConfig, corpus: Corpus, folder: Path, save_every: int) -> int:
    from lowrank_core.cli.loop import Run
    from lowrank_core.cli.memory import watched
    from lowrank_core.cli.report import write_report
    from lowrank_core.cli.stop import StopRequest

    finished, steps_taken = [], 0
    with StopRequest() as stop:
        for name in config.runs:
            with watched(config, name):
                training = Run(name, config, corpus, folder)
                training.restore()
                steps_taken -= training.step
                train_to_end(training, config, folder, stop, save_every)
                steps_taken += training.step
            if training.step < config.steps:
                print(stopped(training, "train", config, folder, save_every))
                return stop.exit_code
            finished.append(training.summary())
            del training  # its memory, before the next one's is taken
    if not steps_taken:
        print(f"the run was finished: all {config.steps} steps are done; `--steps` with more of them goes on")
    print(write_report(folder, config, finished))
    return 0


def _announce(config: TrainConfig, corpus: Corpus, threads: int) -> None:
    skipped = f", {corpus.skipped} empty or binary ones left out" if corpus.skipped else ""
    skipped += f", {corpus.repeated} met again read once" if corpus.repeated else ""
    train, val = len(corpus.train) / 1e6, len(corpus.val) / 1e6
    print(f"text: {corpus.files} files{skipped}; {train:.2f} MB to train on, {val:.2f} MB held out {corpus.split}")
    print(f"plan: {config.steps} steps of {config.bytes_per_step} bytes, {listed(config.runs)}, {threads} threads")
