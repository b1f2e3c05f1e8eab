"""Who is compared, where each search begins, and what is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lowrank_core.cli.study.ladders import Ladder, Point

from adapters_compared.places import Place
from adapters_compared.stream import RANK

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Contender:
    """One row of the tables. `method`, `start` and `fixed` are a trial's; without ladders nothing is tuned.

    `of`: the row whose options are taken, at a rate that is `rungs` further on its ladder; of the digits alone.
    """

    name: str
    method: str
    point: Point = field(default_factory=dict)
    ladders: tuple[Ladder, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    single: bool = True  # whether it means anything for steps of one sample
    several: bool = True  # and for steps of more
    stacked: bool = False  # whether a step has a backward pass for each sample and class
    of: str | None = None
    rungs: int = 0

    def takes_part(self, place: Place) -> bool:
        """Whether it is run there."""
        if (self.of or (self.stacked and place.batch > 1)) and not place.task.startswith("digits"):
            return False
        return self.single if place.batch == 1 else self.several


def _row(name: str, method: str, lr: float, *own: tuple[str, Any, tuple[Any, ...]], **more: Any) -> Contender:
    """`lr`: the middle of the first three rates. `own`: each an option, its first value and its ladder, of which both
    neighbours are tried."""
    tuned = [("lr", lr, RATES), *own]
    ladders = tuple(
        Ladder(option, values, Ladder(option, values, ()).neighbours(value)) for option, value, values in tuned
    )
    return Contender(name, method, {option: value for option, value, _ in tuned}, ladders, **more)


_P0 = Ladder("p0", (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0), (0.03, 0.1, 0.3))
_LIMIT = Ladder("kl_limit", (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), (0.03, 0.1, 0.3))
_TOL = ("tol", 0.03, (0.001, 0.003, 0.01, 0.03, 0.1, 0.3))
_STARTS = ("pissa", "olora", "lora_ga", "eva", "lora_xs", "lora_sb")
PEER, EQUAL = "LoRA, AdamW", "GeoLoRA, LoRA's rank at most"
_HELD = {"max_rank": RANK}
# In the order in which they are run.
CONTENDERS: tuple[Contender, ...] = (
    _row(PEER, "adamw", 1e-3),
    Contender(f"{PEER}, a third of its rate", "adamw", of=PEER, rungs=-1),
    Contender(f"{PEER}, three times its rate", "adamw", of=PEER, rungs=1),
    _row("LoRA, AdaGrad", "adagrad", 1e-2),
    _row("LoRA, SGD", "sgd", 0.1),
    Contender("LoKO, one setting", "loko", stacked=True),
    Contender("LoKO, tuned", "loko", {"p0": 0.1, "kl_limit": 0.1}, (_P0, _LIMIT), stacked=True),
    Contender("LoKO, mean of a batch", "loko", fixed={"batch": "mean"}, single=False),
    Contender("LoKO, one after the other", "loko", fixed={"batch": "sequential"}, single=False, stacked=True),
    Contender("LoKO, estimated noise", "loko", {"p0": 0.3}, (_P0,), {"policy": "ema_pre"}, several=False),
    Contender("LoKO, one gradient", "loko, one gradient", {"p0": 0.1}, (_P0,)),
    _row("GeoLoRA", "geolora", 3e-3, _TOL),
    _row(EQUAL, "geolora", 3e-3, _TOL, fixed=_HELD),
    Contender(f"{EQUAL}, a third of its rate", "geolora", fixed=_HELD, of=EQUAL, rungs=-1),
    Contender(f"{EQUAL}, three times its rate", "geolora", fixed=_HELD, of=EQUAL, rungs=1),
    _row("AdaLoRA", "adalora", 3e-3),
    _row("AdaLoRA, LoRA's size at the start", "adalora", 3e-3, fixed={"rank": RANK // 2, "init_rank": RANK}),
    _row("LoRA-Pro", "lora-pro", 1e-3, ("moments", "factors", ("factors", "full"))),
    _row("LoRA+", "lora+", 3e-4, ("ratio", 16.0, (4.0, 16.0, 64.0))),
    _row("ALLoRA", "allora", 1e-3, ("eta", 10.0, (1.0, 3.0, 10.0, 30.0, 100.0, 300.0))),
    _row("Riemannian", "scaled", 1e-3, ("reg", 1e-2, (1e-4, 1e-3, 1e-2, 0.1, 1.0))),
    *(_row(f"start: {name}", "adamw", 1e-3, start=name) for name in _STARTS),
)
