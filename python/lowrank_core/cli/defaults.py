"""The optimizers of `lowrank-core train`: which options each takes, and with what defaults. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lowrank_core.cli.errors import CliError
from lowrank_core.memory.geometry import FULL
from lowrank_core.memory.methods import FACADES, METHODS

OPTIMIZERS = (*METHODS, *FACADES, "adamw")
ALL = "all"  # in the place of one: the comparison of `study`
# For galore and adamw the best found by bench/train_sweep.py; `lr` is that of the matrices of attention and
# feed-forward. The others have the rate that `--optimizer all` found at this size (docs/results/optimizers.md), for the
# `scale` of their class; the rest is galore's, and of lisa, which has AdamW inside, adamw's.
_FOUND: dict[str, dict[str, Any]] = {
    "galore": {"lr": 0.01, "lr_others": 0.01, "betas": (0.9, 0.999), "weight_decay": 0.0},
    "adamw": {"lr": 0.001, "lr_others": 0.03, "betas": (0.9, 0.99), "weight_decay": 0.1},
}
_RATES = {
    "qgalore": 0.01, "fira": 0.01, "apollo": 0.008, "coap": 0.002, "frugal": 0.001, "flora": 0.001, "adarankgrad": 0.02,
    "ldadam": 0.002, "scale": 0.001, "sinkgd": 0.01, "dct": 0.002, "trion": 0.02, "dion2": 0.02, "muon": 0.01,
    "lisa": 0.001,
}  # fmt: skip
TUNED = {
    name: _FOUND.get(name) or {**_FOUND["adamw" if name in FACADES else "galore"], "lr": _RATES[name]}
    for name in OPTIMIZERS
}
TUNED["ldadam"] = {**TUNED["ldadam"], "betas": METHODS["ldadam"].own["betas"]}  # which its step was published with
BY_RATE = tuple(name for name in OPTIMIZERS if name in _RATES)  # of which the rate alone was tuned

_GALORE: dict[str, Any] = {
    "update_proj_gap": 100,
    "scale": 0.25,
    "proj_type": "std",
    "projector": "rsvd",
    "moments": "keep",
    "moment_dtype": "auto",
    "plain_moment_dtype": None,
    "rounding": "nearest",
}
# Keys that are no options: those that would act on nothing (SCALE's last layer is the head, which has AdamW's moments),
# of searches, and what other options say.
IDLE = {"scale": ("momentum", "last"), "adarankgrad": ("niter", "max_rank"), "ldadam": ("betas",)}
# Keys that have an option of their own, or for which groups stand: what is no matrix has its rate and betas there.
_ELSEWHERE = ("lr", "weight_decay", "eps", "plain_lr", "plain_betas")
# The options that belong to a method, `rank` aside, which every method has: those that its constructor takes.
OWN: dict[str, dict[str, Any]] = {
    name: {
        key: value
        for key, value in {**_GALORE, **({"scale": 0.125} if name == "galore" else {}), **method.own}.items()
        if key not in (*method.lacks, *_ELSEWHERE, *IDLE.get(name, ()))
    }
    for name, method in METHODS.items()
} | {"lisa": {"active": 2, "period": 20}, "adamw": {}}
# Those of TUNED that hold for all optimizers of a run where nothing is said of one.
SHARED = ("betas", "weight_decay")
# Those whose defaults differ from method to method: they are of the first optimizer of a run that has them. A single
# compared one has its own, `compare_...`; of several each has `--set`.
PAIRED = ("update_proj_gap", "scale", "projector", "moment_dtype", "norm_ord")
# Those that have no moments of their own: `betas` and `eps` are of AdamW, for what is no matrix.
WITHOUT_BETAS = tuple(name for name, method in METHODS.items() if "betas" in method.lacks)


def takers(name: str) -> tuple[str, ...]:
    """The optimizers that take the option of the field `name`; a rank that is full by default decides nothing."""
    if name == "rank":
        return tuple(run for run, method in METHODS.items() if method.rank != FULL)
    return tuple(run for run in OPTIMIZERS if name in OWN[run])


def listed(names: tuple[str, ...], last: str = "and") -> str:
    """`a, b and c`."""
    return f" {last} ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def default_in_words(name: str) -> str:
    """The default of an option of methods, for the help; those of methods that have another one follow."""
    first, *others = takers(name)
    usual = OWN[first][name]
    apart = [f", for {run} {OWN[run][name]}" for run in others if OWN[run][name] != usual]
    return f"{'none' if usual is None else usual}{''.join(apart)}"


def check_choices(run: str, own: dict[str, Any], label: Callable[[str], str]) -> None:
    """Refuses a value that only other methods than `run` have; `own` has its options, `label` says how they are named.

    Raises:
      CliError: naming it.
    """
    if run not in METHODS:
        return
    allowed = {"projector": METHODS[run].projectors, "proj_type": METHODS[run].proj_types}
    for name, value in own.items():
        choices = allowed.get(name)
        if choices is not None and value not in choices:
            raise CliError(
                f"`{label(name)}` must be {listed(choices, 'or')} with the optimizer {run}, got {value}; "
                "choose one of them"
            )
