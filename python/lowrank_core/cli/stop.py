"""Ctrl-C and SIGTERM: the first asks the loop to stop after its step, the second ends the process at once."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Context in which `signum` is None until a signal asks to stop. Only one at a time, in the main thread."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """What shells report for a process ended by the signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.signum or 0)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            # Not an exception, which could surface inside a write. Checkpoints are replaced whole: the old one stands.
            os._exit(128 + signum)
        self.signum = signum
        # Not print: a handler may interrupt a print.
        os.write(2, b"\nstopping after this step; once more to stop at once, back to the last checkpoint\n")
