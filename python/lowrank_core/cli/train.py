"""`lowrank-core train`: trains with one optimizer, or with several on the same batches, and reports."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_core.cli.config import TrainConfig
from lowrank_core.cli.defaults import ALL, listed
from lowrank_core.cli.environment import environment
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import METRICS_FILE, RUN_FILE, claimed, holds_results, run_files, write_atomic, writing
from lowrank_core.cli.hint import command_line
from lowrank_core.cli.options import flag
from lowrank_core.cli.parser import SAVE_EVERY, STUDY
from lowrank_core.cli.resolve import resolve
from lowrank_core.cli.resume import grow, resumed, stored_run
from lowrank_core.cli.text import Corpus, load_corpus
from lowrank_core.extras import how_to_install

if TYPE_CHECKING:
    from lowrank_core.cli.loop import Run
    from lowrank_core.cli.stop import StopRequest

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
        threads = _set_threads(options.threads, stored)
        if stored is None:
            _begin(folder, config, threads, overwrite=options.overwrite)
        elif grown := grow(folder, config, stored):
            _describe(folder, grown)
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
                _train_one(training, config, folder, stop, save_every)
                steps_taken += training.step
            if training.step < config.steps:
                print(f"{name} stopped at step {training.step} of {config.steps}; go on with: ", end="")
                print(_resume_command(folder, save_every))
                return stop.exit_code
            finished.append(training.summary())
            del training  # its memory, before the next one's is taken
    if not steps_taken:
        print(f"the run was finished: all {config.steps} steps are done; `--steps` with more of them goes on")
    print(write_report(folder, config, finished))
    return 0


def _resume_command(folder: Path, save_every: int) -> str:
    own = () if save_every == SAVE_EVERY else ("--save-every", str(save_every))
    return command_line("train", "--resume", *own, "--out", os.path.abspath(folder))


def _train_one(training: Run, config: TrainConfig, folder: Path, stop: StopRequest, save_every: int) -> None:
    """Takes `training` to its last step or, if asked to stop, to the next one; leaves a checkpoint either way."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    from lowrank_core.cli.layers import recorded
    from lowrank_core.cli.metrics import MetricsLog, cut_back

    new, steps = training.progress["val_loss"] is None, config.steps
    saved = -1 if new else training.step  # the step of the checkpoint
    if lost := cut_back(folder / METRICS_FILE, training.name, saved):
        _say_lost(training, lost)
    layers_of = partial(recorded, training.name, training.optimizer, folder, config.monitor_every)
    if saved == steps:
        with layers_of():  # which says what is lost
            return
    with (
        MetricsLog(folder / METRICS_FILE) as log,
        layers_of() as layers,
        tqdm(total=steps, initial=training.step, desc=training.name, unit="step", disable=None) as bar,
    ):
        if new:
            tqdm.write(_eval_line(training, training.evaluate(log), steps))
        while training.step < steps and stop.signum is None:
            with layers.written():
                loss, speed = training.train_step(log)
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
            bar.update()
            last = training.step == steps
            if last or training.step % (config.eval_every or steps) == 0:
                tqdm.write(f"{_eval_line(training, training.evaluate(log), steps)}  train loss {loss:.4f}")
            if last or training.step % save_every == 0:
                layers.sync()
                saved = training.save(log)
        if saved != training.step:
            layers.sync()
            training.save(log)


def _eval_line(training: Run, val_loss: float, steps: int) -> str:
    return f"{training.name:>8}  step {training.step:>{len(str(steps))}}/{steps}  val loss {val_loss:.4f}"


def _say_lost(training: Run, lost: int) -> None:
    print(
        f"note: {METRICS_FILE} holds no line for {lost} of the {training.step} steps that {training.name} has done (it "
        "was lost or damaged); what is computed stays the same, but the report lacks them",
        file=sys.stderr,
    )


def _set_threads(asked: int | None, stored: dict[str, Any] | None) -> int:
    """The number of threads decides in what order sums are taken, so a run keeps it unless told otherwise."""
    import torch

    torch.set_num_threads(asked or (stored or {}).get("threads") or torch.get_num_threads())
    return torch.get_num_threads()


def _begin(folder: Path, config: TrainConfig, threads: int, *, overwrite: bool) -> None:
    """Writes the run's description into `folder`, where no other run may be unless it is to be deleted.

    One that came to nothing, neither checkpoint nor report, is in nobody's way.
    """
    found = run_files(folder)
    if holds_results(found) and not overwrite:
        raise CliError(
            f"`--out` must not hold a run, but '{folder}' does; "
            "go on with `--resume`, delete it with `--overwrite`, or choose another folder"
        )
    for path in found:
        with writing(path):
            path.unlink()
    command = shlex.join(sys.argv)
    _describe(folder, {"config": config.to_json(), "threads": threads, "command": command, **environment()})


def _describe(folder: Path, facts: dict[str, Any]) -> None:
    write_atomic(folder / RUN_FILE, (json.dumps(facts, indent=1) + "\n").encode())


def _announce(config: TrainConfig, corpus: Corpus, threads: int) -> None:
    skipped = f", {corpus.skipped} empty or binary ones left out" if corpus.skipped else ""
    skipped += f", {corpus.repeated} met again read once" if corpus.repeated else ""
    train, val = len(corpus.train) / 1e6, len(corpus.val) / 1e6
    print(f"text: {corpus.files} files{skipped}; {train:.2f} MB to train on, {val:.2f} MB held out {corpus.split}")
    print(f"plan: {config.steps} steps of {config.bytes_per_step} bytes, {listed(config.runs)}, {threads} threads")
