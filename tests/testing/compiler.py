"""What the installed torch's compiler can do: old ones trace less and hide sentences."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor


def _fails(x: Tensor) -> Tensor:
    _refuse()  # through a call, as refusals come
    return x


def _refuse() -> None:
    raise ValueError("a sentence of ours")


def _decides(x: Tensor) -> bool:
    return bool(x.sum() > 0)


@lru_cache(maxsize=1)
def _shows_sentences() -> bool:
    torch._dynamo.reset()
    try:
        torch.compile(_fails, fullgraph=True, backend="eager")(torch.ones(2))
    except Exception as error:
        return "a sentence of ours" in str(error)
    raise AssertionError("the compiler has lost an error")


@lru_cache(maxsize=1)
def _takes_bools() -> bool:
    torch._dynamo.reset()
    try:
        return torch.compile(_decides, fullgraph=True, backend="eager")(torch.ones(2))
    except torch._dynamo.exc.Unsupported:
        return False


def needs_sentences() -> None:
    """Skips the test where the compiler hides what traced code says; the same refusals are tested without it."""
    if not _shows_sentences():
        pytest.skip(f"the compiler of torch {torch.__version__} hides the words of errors in traced code")


def needs_bools() -> None:
    """Skips the test where the compiler cannot trace a function that returns a tensor as a bool."""
    if not _takes_bools():
        pytest.skip(f"the compiler of torch {torch.__version__} traces no bool of a tensor")
