"""Keys that the house of optimizers reads from a group, and that have one value for an optimizer of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank_core.checks import require

UNPROJECTED: Mapping[str, Any] = {"rank": None, "stacked": False, "plain_moment_dtype": None}
IN_FLOAT32: Mapping[str, Any] = {**UNPROJECTED, "moment_dtype": "float32", "rounding": "nearest"}


def check_fixed(op: str, group: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raises ValueError if `group` has another value than that of `fixed`."""
    for key, value in fixed.items():
        require(group[key] == value, op, key, "be left out of its groups", group[key])
