"""A run in its folder: how it begins, goes to its last step, and is told where it stopped."""

from __future__ import annotations

import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lowrank_core.cli.environment import environment
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import METRICS_FILE, RUN_FILE, holds_results, run_files, write_atomic, writing
from lowrank_core.cli.hint import command_line
from lowrank_core.cli.parser import SAVE_EVERY

if TYPE_CHECKING:
    from lowrank_core.cli.loop import Run
    from lowrank_core.cli.stop import StopRequest


class Config(Protocol):
    """What a run's options say of its course."""

    @property
    def steps(self) -> int:
        """Of the whole run."""
        ...

    @property
    def eval_every(self) -> int | None:
        """Steps between two validations."""
        ...

    @property
    def monitor_every(self) -> int | None:
        """Steps between two records of layers; None: never."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        ...


def stopped(training: Run, command: str, config: Config, folder: Path, save_every: int) -> str:
    """Where `training` stands, and the command that goes on."""
    own = () if save_every == SAVE_EVERY else ("--save-every", str(save_every))
    again = command_line(command, "--resume", *own, "--out", os.path.abspath(folder))
    return f"{training.name} stopped at step {training.step} of {config.steps}; go on with: {again}"


def train_to_end(
    training: Run, config: Config, folder: Path, stop: StopRequest, save_every: int, unit: str = "tokens"
) -> None:
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
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} {unit}/s", refresh=False)
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
    accuracy = training.progress.get("accuracy")
    right = "" if accuracy is None else f"  accuracy {accuracy:.4f}"
    return f"{training.name:>8}  step {training.step:>{len(str(steps))}}/{steps}  val loss {val_loss:.4f}{right}"


def _say_lost(training: Run, lost: int) -> None:
    print(
        f"note: {METRICS_FILE} holds no line for {lost} of the {training.step} steps that {training.name} has done (it "
        "was lost or damaged); what is computed stays the same, but the report lacks them",
        file=sys.stderr,
    )


def set_threads(asked: int | None, stored: dict[str, Any] | None) -> int:
    """The number of threads decides in what order sums are taken, so a run keeps it unless told otherwise."""
    import torch

    torch.set_num_threads(asked or (stored or {}).get("threads") or torch.get_num_threads())
    return torch.get_num_threads()


def begin(folder: Path, kind: str, config: Config, threads: int, *, overwrite: bool) -> None:
    """Describes a run of the command `kind` in `folder`, where no other run may be unless it is to be deleted.

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
    facts = {"kind": kind, "config": config.to_json(), "threads": threads, "command": command, **environment()}
    describe(folder, facts)


def describe(folder: Path, facts: dict[str, Any]) -> None:
    """Writes the run's description."""
    write_atomic(folder / RUN_FILE, (json.dumps(facts, indent=1) + "\n").encode())
