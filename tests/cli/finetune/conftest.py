"""What the tests of `finetune` share: two tiny models and a table."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_cases import TINY, save_model, texts, write_csv


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("encoder"), "bert")


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("decoder"), "llama")


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("table") / "rows.csv", texts(60))


@pytest.fixture
def tiny(encoder: Path, table: Path) -> list[str]:
    """Options of a run that takes a fraction of a second."""
    return ["finetune", "--model", str(encoder), "--data", str(table), *TINY]
