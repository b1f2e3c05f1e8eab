"""What a folder says about the run in it, and which of its options a resume may change."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lowrank_core.cli.config import TrainConfig, modern, read_settings
from lowrank_core.cli.defaults import ALL
from lowrank_core.cli.environment import versions
from lowrank_core.cli.errors import CliError
from lowrank_core.cli.files import CHECKPOINT_SUFFIX, RUN_FILE, reading
from lowrank_core.cli.options import check_values, difference
from lowrank_core.cli.parser import MAX_THREADS
from lowrank_core.cli.settings import changed

Values = dict[str, Any]
_REMEDY = "put it right, or start anew with `--overwrite`"


class Course(Protocol):
    """Options that decide the learning rate of a step."""

    @property
    def runs(self) -> tuple[str, ...]:
        """The optimizers."""
        ...

    @property
    def steps(self) -> int:
        """Of the whole run."""
        ...

    @property
    def warmup(self) -> int | None:
        """Steps of linear warm-up."""
        ...

    @property
    def min_lr_ratio(self) -> float | None:
        """Where the cosine ends; None: at zero."""
        ...

    def to_json(self) -> Values:
        """Plain values."""
        ...


def stored_run(folder: Path, kind: str = "train", check: Callable[[Any], Values] | None = None) -> dict[str, Any]:
    """What the run in `folder` wrote about itself when it began, checked.

    Args:
      kind: the command that it must be of.
      check: takes its options and returns them as this version would have written them; None: those of `train`.

    Raises:
      CliError: there is no run, it is one of another command, or its description is damaged.
    """
    path = folder / RUN_FILE
    if not path.exists():
        raise CliError(f"`--resume` needs a run, but there is none in '{folder}'; leave `--resume` out")
    with reading(path):
        data = path.read_bytes()
    try:
        stored: dict[str, Any] = json.loads(data)
        found = stored.get("kind", "train")
        if found == kind:
            stored["config"] = (check or _checked)(stored["config"])
        threads = stored["threads"]
        if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads is {threads!r}")
    except KeyError as failure:
        raise CliError(f"'{path}' is damaged ({failure} is missing); {_REMEDY}") from failure
    except (ValueError, TypeError, AttributeError, RecursionError, CliError) as failure:
        raise CliError(f"'{path}' is damaged ({failure}); {_REMEDY}") from failure
    if found != kind:
        raise CliError(f"`--resume` needs a run of `{kind}`, but '{folder}' has one of `{found}`; name another `--out`")
    return stored


def _checked(given: Any) -> Values:
    """Options of `train`. Raises ValueError, TypeError or CliError if they could not be."""
    values: Values = modern(given)
    check_values(config := TrainConfig.from_json(values))
    if config.optimizer == ALL:
        raise ValueError(f"optimizer is {ALL!r}")
    read_settings(config.set)
    return values


def resumed(given: dict[str, Any], stored: dict[str, Any]) -> TrainConfig:
    """The stored options. Those given again must be the same, but `steps` may have grown."""
    before = TrainConfig.from_json(stored["config"])
    settings = changed(read_settings(tuple(given.get("set", ()))), read_settings(before.set))
    others = {name: value for name, value in given.items() if name != "set"}
    return replace(before, steps=steps_of(others, stored, settings))


def steps_of(given: dict[str, Any], stored: dict[str, Any], apart: tuple[str, str, str] | None = None) -> int:
    """How many steps a resumed run has: they may have grown. All else that is given must be as it is stored.

    `apart` is an option that differs, as `difference` has it, and is no field.
    """
    before: int = stored["config"]["steps"]
    steps: int = given.get("steps", before)
    if steps < before:
        raise CliError(f"`--steps` may only grow when a run is resumed, from {before}, got {steps}; leave it out")
    if found := difference({**given, "steps": before}, stored["config"]) or apart:
        option, here, there = found
        raise CliError(
            f"`{option}` must stay {there} as in the run being resumed, got {here}; "
            "leave it out, or start a new run in another `--out`"
        )
    if stored.get("versions") != versions():
        print("note: the run began with other versions; it goes on, but not bit for bit", file=sys.stderr)
    return steps


def grow(folder: Path, config: Course, stored: dict[str, Any]) -> dict[str, Any] | None:
    """The run's new description if `config` has more steps than `stored`, else None.

    Optimizers that are compared follow one schedule, so all must have come to the end of the old one.

    Raises:
      CliError: one has not, or its checkpoint is damaged.
    """
    from lowrank_core.cli import checkpoint
    from lowrank_core.cli.loop import lr_at

    before = stored["config"]["steps"]
    if config.steps == before:
        return None
    paths = [folder / (name + CHECKPOINT_SUFFIX) for name in config.runs]
    done = [checkpoint.load(path)["progress"]["step"] if path.exists() else 0 for path in paths]
    if len(done) > 1 and min(done) < before:
        name, all_of_them = config.runs[done.index(min(done))], "both" if len(done) == 2 else "all"
        raise CliError(
            f"`--steps` of a comparison may grow once {all_of_them} optimizers have done {before} steps, got "
            f"{min(done)} of {name}; resume without `--steps` first"
        )
    share = partial(lr_at, peak=1.0, warmup=config.warmup or 0, min_ratio=config.min_lr_ratio or 0.0)
    now = share(done[0] + 1, steps=config.steps)
    last = share(done[0], steps=before) if done[0] else 0.0
    print(
        f"steps: {config.steps} instead of {before}; from step {done[0] + 1} on the learning rate is that of a run of "
        f"{config.steps} steps: {now:.3g} of its peak there, {last:.3g} in the step before"
    )
    return {**stored, "config": config.to_json()}
