"""What Muon, Dion2 and Trion share: momentum that is fed back, and a step with the nearest orthogonal matrix."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lowrank_core.checks import is_number, require, require_choice
from lowrank_core.memory.storage import MOMENT_DTYPES
from lowrank_core.optim.dtypes import name_of
from lowrank_core.optim.parts import Parts
from lowrank_core.optim.parts.codecs import moment_codec
from lowrank_core.optim.parts.projectors import Projector
from lowrank_core.optim.parts.residuals.feedback import FACTORS, Feedback
from lowrank_core.optim.parts.rules.adam import Adam
from lowrank_core.optim.parts.rules.newton_schulz import NewtonSchulz
from lowrank_core.optim.parts.schedules.never import Never
from lowrank_core.optim.parts.transports import Keep


def orthogonal_parts(
    op: str, group: dict[str, Any], weight: Tensor, projector: Projector, basis: str = "identity"
) -> Parts:
    """The parts of a method that orthogonalizes what `projector` chooses of its momentum, in coordinates of `basis`.

    `eps` is in units of a mean gradient, as torch's; the momentum here is a sum, 1 / (1 - momentum) times as long.
    """
    momentum, eps = group["momentum"], group["eps"]
    require(is_number(momentum, 0.0) and momentum < 1, op, "momentum", "be a number in [0, 1)", momentum)
    require(is_number(eps) and eps > 0, op, "eps", "be a number > 0", eps)
    require_choice(op, "moment_dtype", group["moment_dtype"], MOMENT_DTYPES)
    adjust, nesterov, plain = group["adjust_lr_fn"], group.get("nesterov", False), group["plain_betas"]
    require_choice(op, "adjust_lr_fn", adjust, FACTORS)
    codec = moment_codec(group["moment_dtype"], weight)
    return Parts.of(
        op,
        group,
        weight,
        projector=projector,
        residual=Feedback(momentum, basis, adjust, nesterov, codec, name_of(weight.dtype)),
        rule=NewtonSchulz(group["ns_coefficients"], group["ns_steps"], eps / (1 - momentum)),
        plain=Adam() if plain is None else Adam(plain),
        schedule=Never(),
        transport=Keep(),
    )
