"""The report's colors: seen on their paper, and told apart, also with a color deficiency."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from lowrank_core.cli.defaults import OPTIMIZERS
from lowrank_core.cli.palette import DARK, HUES, LIGHT, NEUTRAL, looks

BOTH = pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
# Linear sRGB as a person without one kind of cones sees it.
# Source: Machado, Oliveira & Fernandes (2009), doi:10.1109/TVCG.2009.113, table 1, severity 1.
SEEN = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(color: str) -> np.ndarray:
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (1976) of linear sRGB under D65."""
    x = TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(1)
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's ratio of two colors."""
    dark, light = sorted(float(TO_XYZ[1] @ linear(color)) for color in (one, other))
    return (light + 0.05) / (dark + 0.05)


@BOTH
def test_everything_is_seen_on_its_paper(scheme):
    """WCAG 2.1: 3 to 1 for graphics (1.4.11), 4.5 to 1 for text (1.4.3)."""
    assert all(contrast(scheme[role], scheme["paper"]) >= 3 for role in (NEUTRAL, *HUES))
    assert all(
        contrast(scheme[role], scheme[paper]) >= 4.5 for role in ("ink", "faint") for paper in ("paper", "shade")
    )


@BOTH
@pytest.mark.parametrize("cones", SEEN)
def test_colors_are_told_apart(scheme, cones):
    """By five times what is just noticed, a distance of 2.3 in CIELAB (Mahy et al., 1994)."""
    found = [lab(np.array(SEEN[cones]) @ linear(scheme[role])) for role in (NEUTRAL, *HUES)]
    assert min(np.linalg.norm(a - b) for a, b in combinations(found, 2)) >= 5 * 2.3


def test_each_optimizer_has_a_look_of_its_own():
    for runs in (OPTIMIZERS, ("adamw",), ("fira", "adamw"), ("adamw", "fira")):
        found = looks(runs)
        assert tuple(found) == runs and len(set(found.values())) == len(runs)
        assert found["adamw"] == (NEUTRAL, ())
    assert looks(("adamw", "fira"))["fira"] == looks(("fira",))["fira"] == (HUES[0], ())
