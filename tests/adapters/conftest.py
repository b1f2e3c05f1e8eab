"""One thread: the models of this folder are small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    from testing import machine  # needs torch, without which the folder is skipped

    with machine.threads(1):
        yield
