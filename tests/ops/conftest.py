"""One thread for most tests of this folder: their matrices are small. The tests of threads choose their own number."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    from testing import machine  # needs torch, without which the folder is skipped

    with machine.threads(1):
        yield
