"""Who is compared, where each search begins, and what is tuned: one row for each.

`lr` is the rate of the matrices of attention and feed-forward, `lr_others` that of embedding, head and norms, which are
AdamW's with everybody. So all have two rates, as AdamW itself: a method's own `scale`, where it has one, stays as
published. "adamw, one rate" is what AdamW loses without that freedom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lowrank_core.cli.study.ladders import Ladder, Point
from lowrank_core.cli.study.sizes import LARGE, THIN, Size
from lowrank_core.cli.study.trial import Trial
from lowrank_core.memory.geometry import FULL
from lowrank_core.memory.methods import METHODS

# The same for everybody. 0.999 and no decay are ends; what is beyond averages or decays nothing in so few steps.
OTHERS = Ladder("lr_others", (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1e-2, 3e-3, 3e-2))
BETA2 = Ladder("beta2", (0.8, 0.9, 0.95, 0.99, 0.999), (0.95, 0.999))
DECAY = Ladder("weight_decay", (0.0, 0.1, 0.3, 1.0), (0.1,))
START: Point = {"lr_others": 1e-2, "beta2": 0.99, "weight_decay": 0.0}


@dataclass(frozen=True)
class Contender:
    """One row of the table. `optimizer` is what `lowrank-core train` knows it as.

    `foreign` names a class of another package in its place; `fixed` are options that are not tuned, `keys` those of the
    class that are no options of the command line.
    """

    name: str
    optimizer: str
    start: Point
    ladders: tuple[Ladder, ...]
    foreign: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)
    beta1: float = 0.9

    def ladder(self, option: str) -> Ladder:
        """The one of `option`."""
        return next(ladder for ladder in self.ladders if ladder.option == option)


def _rates(middle: float) -> Ladder:
    values = tuple(float(f"{middle * 2.0**i:.4g}") for i in range(-7, 8))
    return Ladder("lr", values, values[5:10])


def _row(name: str, lr: float, *own: tuple[str, Any, tuple[Any, ...]], **more: Any) -> Contender:
    """`lr` is the middle of the rates; of `own`, each an option, its first value and its ladder, both neighbours are
    tried."""
    ladders = [Ladder(option, values, ()) for option, _, values in own]
    ladders = [
        Ladder(one.option, one.values, one.neighbours(value)) for one, (_, value, _) in zip(ladders, own, strict=True)
    ]
    start = {"lr": _rates(lr).values[7], **START, **{option: value for option, value, _ in own}}
    common = {"optimizer": name, "start": start, "ladders": (_rates(lr), OTHERS, *ladders, BETA2, DECAY)}
    return Contender(name, **{**common, **more})


_GAP = ("update_proj_gap", 50, (5, 10, 25, 50, 100, 200))
_COMMON = ("lr", "lr_others", "beta2", "weight_decay")
_PUBLISHED = {"scale": 0.25}
_GALORE_TORCH = {**_PUBLISHED, "proj_type": "std"}
_OF_50 = {"update_proj_gap": 50}
_MOMENTUM = ("momentum", 0.95, (0.8, 0.9, 0.95, 0.98))
ADAMW = _row("adamw", 2e-3)
ONE_RATE = Contender(
    "adamw, one rate",
    "adamw",
    {key: value for key, value in ADAMW.start.items() if key != "lr_others"},
    tuple(ladder for ladder in ADAMW.ladders if ladder is not OTHERS),
)
GALORE = _row("galore", 1e-2, _GAP, fixed=_PUBLISHED)
# In the order in which they are run: what is measured first is what stands when the study is stopped.
CONTENDERS: tuple[Contender, ...] = (
    ADAMW,
    ONE_RATE,
    GALORE,
    _row("coap", 2e-3, ("update_proj_gap", 32, (8, 16, 32, 64))),
    _row("frugal", 1e-3, ("sign_scale", 1.0, (0.1, 0.3, 1.0, 3.0)), fixed=_OF_50),
    _row("apollo", 4e-3, _GAP),
    _row("adarankgrad", 1e-2, ("energy", 0.9, (0.7, 0.8, 0.9, 0.95, 0.99)), fixed={**_PUBLISHED, **_OF_50}),
    _row("lisa", 2e-3, ("period", 10, (2, 5, 10, 20, 50)), fixed={"active": 2}),
    _row("galore-torch", 1e-2, _GAP, optimizer="adamw", foreign="galore_torch", keys=_GALORE_TORCH),
    _row("adamw-8bit", 2e-3, optimizer="adamw", foreign="bitsandbytes"),
    _row("muon", 2e-2, _MOMENTUM),
    _row("sinkgd", 2e-2, ("iterations", 5, (1, 2, 5, 10))),
    _row("scale", 1e-3),
    _row("flora", 2e-3, ("kappa", 100, (10, 30, 100, 300, 1000))),
    _row("dct", 2e-3, ("update_proj_gap", 1, (1, 5, 20, 100))),
    _row("qgalore", 1e-2, _GAP, fixed=_PUBLISHED),
    _row("fira", 1e-2, _GAP, fixed=_PUBLISHED),
    _row("ldadam", 2e-3, ("rho", 0.908, (0.5, 0.8, 0.908, 0.95)), beta1=0.908),
    _row("trion", 2e-2, _MOMENTUM),
    _row("dion2", 2e-2, _MOMENTUM),
)  # fmt: skip
Ablation = tuple[
    str, dict[str, Any], dict[str, Any]
]  # name, options, keys: the tuned GaLore with one of them otherwise
ABLATIONS: tuple[Ablation, ...] = (
    ("moments rotate", {"moments": "rotate"}, {}),
    ("no stagger", {}, {"stagger": False}),
    ("bfloat16 moments", {"moment_dtype": "bfloat16"}, {}),
    ("int8 moments", {"moment_dtype": "int8"}, {}),
)


def trial_of(
    row: Contender, size: Size, seed: int, point: Point, keys: Mapping[str, Any] = MappingProxyType({})
) -> Trial:
    """The run of `row` with the options of `point`, and further `keys` of its class."""
    own = {**row.fixed, **{key: value for key, value in point.items() if key not in _COMMON}, **_rank(row, size)}
    options = {
        "optimizer": row.optimizer, **size.options(), "lr": point["lr"],
        "lr_others": point.get("lr_others", point["lr"]), "betas": [row.beta1, point["beta2"]],
        "weight_decay": point["weight_decay"],
    }  # fmt: skip
    name = size.name if has_rank(row) else size.name.removesuffix(THIN)  # the same run at any rank
    if row.foreign is None:
        return Trial(name, seed, {**options, **own}, {**row.keys, **keys})
    return Trial(name, seed, options, {**row.keys, **own, **keys}, row.foreign)


def has_rank(row: Contender) -> bool:
    """Whether the size's rank decides anything."""
    return bool(_rank(row, LARGE))


def _rank(row: Contender, size: Size) -> dict[str, Any]:
    method = METHODS.get(row.name)
    if row.foreign == "galore_torch" or (method is not None and method.rank != FULL):
        return {"rank": size.rank}
    return {"fraction": size.share} if method is not None and "fraction" in method.own else {}
