"""What tests of torch.compile share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def nothing_compiled_twice() -> Iterator[None]:
    """Starts without compiled code, and raises where a frame would be compiled again."""
    import torch._dynamo.config

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def frames() -> int:
    """How many were compiled since then."""
    return int(torch._dynamo.utils.counters["frames"]["total"])
