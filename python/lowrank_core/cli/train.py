"""`lowrank-core train`: trains with one optimizer, or with two on the same batches, and reports."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_core.cli.config import TrainConfig, difference, resolve
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import METRICS_FILE, RUN_FILE, claimed, run_files, write_atomic

if TYPE_CHECKING:
    from lowrank_core.cli.data import Corpus
    from lowrank_core.cli.loop import Run
    from lowrank_core.cli.stop import StopRequest

_PACKAGES = ("torch", "safetensors", "tqdm", "matplotlib")


def run(options: argparse.Namespace) -> int:
    """Trains as `options` say; returns 0, or 130 or 143 if a signal stopped it with a checkpoint."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise CliError(f"needs {', '.join(missing)}; install with `pip install 'lowrank_core[train]'`")
    folder = Path(options.out)
    given = {item.name: getattr(options, item.name) for item in fields(TrainConfig) if hasattr(options, item.name)}
    stored = _stored_run(folder) if options.resume else None
    config = resolve(TrainConfig.from_json(given)) if stored is None else _resumed(given, stored)
    with claimed(folder):
        if stored is None:
            _clear(folder, overwrite=options.overwrite)
        return _train_all(config, folder, options, stored)


def _train_all(config: TrainConfig, folder: Path, options: argparse.Namespace, stored: dict[str, Any] | None) -> int:
    import torch

    from lowrank_core.cli.data import load_corpus
    from lowrank_core.cli.loop import Run
    from lowrank_core.cli.report import environment, write_report
    from lowrank_core.cli.stop import StopRequest

    corpus = load_corpus(config.text, val_fraction=config.val_fraction, window=config.window)
    # The number of threads decides how sums are parted, so a run keeps it for its last bit's sake.
    torch.set_num_threads(options.threads or (stored or {}).get("threads") or torch.get_num_threads())
    if stored is None:
        facts = {"config": config.to_json(), "threads": torch.get_num_threads(), "command": shlex.join(sys.argv), **environment()}
        write_atomic(folder / RUN_FILE, (json.dumps(facts, indent=1) + "\n").encode())
    elif stored["versions"] != environment()["versions"]:
        print("resuming under other versions than the run began with: it continues, but not bit for bit", file=sys.stderr)
    _announce(config, corpus, torch.get_num_threads())
    finished = []
    with StopRequest() as stop:
        for name in config.runs:
            training = Run(name, config, corpus, folder)
            training.restore()
            _train_one(training, config, folder, stop, options.save_every)
            if training.step < config.steps:
                return _stopped(training, config, folder, stop)
            finished.append(training.summary())
            del training  # before the next model is built
    print(write_report(folder, config, finished))
    return 0


def _train_one(training: Run, config: TrainConfig, folder: Path, stop: StopRequest, save_every: int) -> None:
    """Takes `training` to its last step, or to the first step after a stop request; leaves a checkpoint either way."""
    from tqdm import tqdm

    from lowrank_core.cli.metrics import MetricsLog, cut_back

    saved = training.step
    if saved == config.steps:
        return
    cut_back(folder / METRICS_FILE, training.name, saved)
    with (
        MetricsLog(folder / METRICS_FILE) as log,
        tqdm(total=config.steps, initial=saved, desc=training.name, unit="step", disable=None) as bar,
    ):
        if training.progress["val_loss"] is None:
            tqdm.write(_eval_line(training, config, training.evaluate(log)))
        while training.step < config.steps and stop.signum is None:
            line = training.train_step(log)
            bar.set_postfix_str(f"loss {line['train_loss']:.3f}, {line['tokens_per_s']:,.0f} tokens/s", refresh=False)
            bar.update()
            last = training.step == config.steps
            if last or training.step % (config.eval_every or 1) == 0:
                tqdm.write(_eval_line(training, config, training.evaluate(log), line))
            if last or training.step % save_every == 0:
                saved = training.save(log)
        if saved != training.step or stop.signum is not None:
            training.save(log)


def _stored_run(folder: Path) -> dict[str, Any]:
    """What the run in `folder` wrote about itself when it began."""
    path = folder / RUN_FILE
    try:
        stored: dict[str, Any] = json.loads(path.read_bytes())
        TrainConfig.from_json(stored["config"])
    except FileNotFoundError as failure:
        raise CliError(f"`--resume` needs a run in '{folder}', but there is none; start one without `--resume`") from failure
    except (OSError, ValueError, KeyError, TypeError) as failure:
        raise CliError(f"'{path}' is not readable as the description of a run ({failure}); start anew with `--overwrite`") from failure
    return stored


def _resumed(given: dict[str, Any], stored: dict[str, Any]) -> TrainConfig:
    if found := difference(given, stored["config"]):
        option, here, there = found
        raise CliError(
            f"`{option}` must stay {there} as in the run being resumed, got {here}; "
            "leave it out, or start a new run in another `--out`"
        )
    return TrainConfig.from_json(stored["config"])


def _clear(folder: Path, *, overwrite: bool) -> None:
    """Makes sure that no earlier run is in `folder`; deletes one only if told so."""
    found = run_files(folder)
    if found and not overwrite:
        raise CliError(f"`--out` already holds a run, '{folder}'; go on with `--resume`, delete it with `--overwrite`, "
                       "or choose another folder")  # fmt: skip
    for path in found:
        path.unlink()


def _announce(config: TrainConfig, corpus: Corpus, threads: int) -> None:
    skipped = f", {corpus.skipped} empty or binary files left out" if corpus.skipped else ""
    print(
        f"text: {corpus.files} files, {len(corpus.train) / 1e6:.1f} MB to train on, {len(corpus.val) / 1e6:.1f} MB "
        f"for validation, split {corpus.split}{skipped}\n"
        f"plan: {config.steps} steps of {config.tokens_per_step} bytes with {' and '.join(config.runs)} on {threads} threads"
    )


def _eval_line(training: Run, config: TrainConfig, val_loss: float, line: dict[str, Any] | None = None) -> str:
    train = f"  train loss {line['train_loss']:.4f}" if line else ""
    return f"{training.name:>8}  step {training.step:>{len(str(config.steps))}}/{config.steps}  val loss {val_loss:.4f}{train}"


def _stopped(training: Run, config: TrainConfig, folder: Path, stop: StopRequest) -> int:
    resume: Sequence[str] = ("lowrank-core", "train", "--resume", "--out", str(folder))
    print(f"stopped at step {training.step} of {config.steps} of {training.name}; go on with: {shlex.join(resume)}")
    return stop.exit_code
