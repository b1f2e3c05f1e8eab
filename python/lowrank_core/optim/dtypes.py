"""torch's dtypes, and the names that layouts use for them."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import torch

from lowrank_core.memory import storage


def name_of(dtype: torch.dtype) -> str:
    """The name of `dtype` in layouts: "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """The dtype with that name."""
    return cast(torch.dtype, getattr(torch, name))


@lru_cache
def work_dtype(weight: torch.dtype) -> torch.dtype:
    """The dtype that a weight's update is computed in: float64 for float64, else float32."""
    return dtype_of(storage.work_dtype(name_of(weight)))
