"""The parts that an optimizer is made of, one on each axis, and the layout of a state that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from lowrank_core.checks import require_choice
from lowrank_core.memory.geometry import ONE_SIDED, Geometry
from lowrank_core.memory.storage import MOMENT_DTYPES, Layout, state_layout, stored, subspace_fields
from lowrank_core.optim.parts.codecs import Codec, basis_codec, moment_codec
from lowrank_core.optim.parts.projectors import Projector
from lowrank_core.optim.parts.projectors.orthonormal import ExactSVD, Orthonormal, RandomizedSVD
from lowrank_core.optim.parts.projectors.selected import Whole
from lowrank_core.optim.parts.residuals import Residual
from lowrank_core.optim.parts.residuals.drop import Drop
from lowrank_core.optim.parts.rules import Rule, check_keys, layout_of
from lowrank_core.optim.parts.rules.adabelief import AdaBelief
from lowrank_core.optim.parts.rules.adafactor import Adafactor
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.parts.rules.lion import Lion
from lowrank_core.optim.parts.schedules import Schedule
from lowrank_core.optim.parts.schedules.fixed_gap import FixedGap
from lowrank_core.optim.parts.schedules.never import Never
from lowrank_core.optim.parts.transports import TRANSPORTS, Keep, Transport

T = TypeVar("T")

RULES: dict[str, Callable[[tuple[float, float], float], Rule]] = {
    "adam": Adam,
    "adafactor": lambda betas, eps: Adafactor(betas[1], eps),
    "lion": lambda betas, eps: Lion(betas),
    "adabelief": AdaBelief,
}


@dataclass(frozen=True)
class Parts:
    """The parts of one optimizer: one choice on each axis."""

    projector: Projector
    residual: Residual
    rule: Rule
    schedule: Schedule
    transport: Transport
    moment_codec: Codec  # of projected weights
    plain: Rule  # of what is not projected
    plain_codec: Codec

    @classmethod
    def of(cls, op: str, group: dict[str, Any], weight: Tensor, **chosen: Any) -> Parts:
        """The parts that are `chosen`, by their names; the keys of `group` give the others, for Adam in a subspace.

        Raises:
          ValueError: a value of `group` is out of its range; the message names `op`.
        """
        moments, plain = group["moment_dtype"], group["plain_moment_dtype"]
        require_choice(op, "moment_dtype", moments, MOMENT_DTYPES)
        require_choice(op, "plain_moment_dtype", plain, (None, *MOMENT_DTYPES))
        adam = chosen.get("plain") or Adam(group["betas"], group["eps"])
        parts = {
            "rule": adam,
            "plain": adam,
            "moment_codec": moment_codec(moments, weight),
            "plain_codec": moment_codec(plain or moments, weight),
        }
        if "schedule" not in chosen:
            parts["schedule"] = FixedGap(group["update_proj_gap"], group["stagger"])
        return cls(**{**parts, **chosen})

    def layout(self, where: Geometry | None, shape: tuple[int, ...], weight: str) -> Layout:
        """Every entry in the state of a weight of `shape` and dtype `weight`, projected at `where`."""
        if where is None:
            return state_layout(stored(self.plain.layout(shape), self.plain_codec, weight))
        return state_layout(
            subspace_fields(where),
            self.schedule.layout(),
            self.projector.layout(where, weight),
            self.residual.layout(where),
            stored(layout_of(self.rule, where), self.moment_codec, weight),
        )


def choose(op: str, group: dict[str, Any], key: str, values: Mapping[str, T]) -> T:
    """The entry of `values` for what `group` has under `key`.

    Raises:
      ValueError: it has none.
    """
    require_choice(op, key, group[key], values)
    return values[group[key]]


def svd_projector(op: str, group: dict[str, Any], weight: Tensor) -> Orthonormal:
    """The leading singular subspace, found as the key `projector` says: "rsvd" or "svd"."""
    codec = basis_codec(weight.dtype)
    randomized = RandomizedSVD(codec, group["oversample"], group["niter"])
    return choose(op, group, "projector", {"rsvd": randomized, "svd": ExactSVD(codec)})


def rule(op: str, group: dict[str, Any]) -> Rule:
    """The rule that the key `rule` names: "adam", "adafactor", "lion" or "adabelief"."""
    check_keys(op, group["betas"], group["eps"])
    return choose(op, group, "rule", RULES)(group["betas"], group["eps"])


def taken_whole(op: str, group: dict[str, Any], weight: Tensor, *, rule: Rule, scale: float = 1.0) -> Parts:
    """The parts of a method that takes matrices whole and steps them by `scale` times what `rule` says."""
    fixed = {"projector": Whole(), "residual": Drop(scale), "schedule": Never(), "transport": Keep()}
    return Parts.of(op, group, weight, rule=rule, **fixed)


def transport(op: str, group: dict[str, Any]) -> Transport:
    """The transport that the key `moments` names: "keep" or "rotate"."""
    return choose(op, group, "moments", TRANSPORTS)


def one_sided(op: str, group: dict[str, Any]) -> dict[str, Any]:
    """`group`, checked for subspaces with a basis on one side: only these have channels.

    Raises:
      ValueError: its `proj_type` is "full".
    """
    require_choice(op, "proj_type", group["proj_type"], ONE_SIDED)
    return group
