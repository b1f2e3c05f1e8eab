"""One thread: the models of this folder are small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from testing import machine


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    with machine.threads(1):
        yield
