"""Windows of the text: which bytes a step sees is decided by (seed, step) alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def training_batch(text: NDArray[np.uint8], *, seed: int, step: int, size: int, window: int) -> Tensor:
    """`[size, window]` int64 windows of `text` `[n]`; a function of its arguments: a resume needs no state."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))
    return _windows(text, random.integers(0, len(text) - window + 1, size), window)


def validation_windows(text: NDArray[np.uint8], *, count: int, window: int) -> Tensor:
    """`[count, window]` int64 windows, evenly spread over `text` `[n]`, always the same."""
    return _windows(text, np.linspace(0, len(text) - window, count).astype(np.int64), window)


def _windows(text: NDArray[np.uint8], starts: NDArray[np.int64], window: int) -> Tensor:
    return torch.from_numpy(np.lib.stride_tricks.sliding_window_view(text, window)[starts]).long()
