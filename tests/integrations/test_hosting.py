"""Optimizers of this package on what PEFT builds: eight tuners here, all of them by tools/hosting.py."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
from hosting_cases import OPTIMIZERS, TUNERS, UPSTREAM, check, kinds_of
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

pytestmark = pytest.mark.filterwarnings("ignore")  # what the libraries say of their own future
HERE = ("LoRA", "DoRA", "IA3", "VeRA", "OFT", "LoHa", "VB-LoRA", "Prompt tuning")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in HERE for kind in kinds_of(name)])
def test_it_trains_leaves_the_rest_alone_and_resumes(name: str, kind: str, optimizer: str, tmp_path: Path) -> None:
    check(name, kind, optimizer, str(tmp_path))


@pytest.mark.parametrize(("name", "kind"), list(UPSTREAM))
def test_what_cannot_be_built_is_still_said_so_by_others(name: str, kind: str, tmp_path: Path) -> None:
    error, words, _ = UPSTREAM[name, kind]
    with pytest.raises(error, match=words):
        check(name, kind, "GaLoreAdamW", str(tmp_path))


def test_the_matrix_has_every_tuner_of_peft() -> None:
    """A tuner that a later PEFT brings is to be added to the cases."""
    known = {getattr(peft, tuner.config) for tuner in TUNERS.values() if hasattr(peft, tuner.config)}
    assert set(PEFT_TYPE_TO_CONFIG_MAPPING.values()) <= known
