"""Calls of every public operator: some shapes, every dtype, every option that takes another way through the code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import dense
import lowrank_core as lc
import state
import torch
from source import DTYPES, Run, Source

TABLES = (
    *(dense.searches, dense.factors, dense.products, dense.chains, dense.attention),
    *(state.transforms, state.codes, state.filters, state.steps),
)


def calls() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(operator, what, function); none of operators that the package does not have."""
    for table in TABLES:
        for op, what, run in table():
            if hasattr(lc, op):
                for dtype in DTYPES:
                    yield op, f"{str(dtype)[6:]} {what}", partial(fresh, run, dtype)


def fresh(run: Run, dtype: torch.dtype) -> Any:
    return run(Source(dtype))
