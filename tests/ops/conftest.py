"""One thread for most tests of this folder: their matrices are small. The tests of threads choose their own number."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from testing import machine


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    with machine.threads(1):
        yield
