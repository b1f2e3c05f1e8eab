"""Ctrl-C, SIGTERM, SIGHUP: the first asks the loop to stop after its step, the second ends the process at once."""

from __future__ import annotations

import errno
import os
import signal
import termios
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOTE = b"\nstopping after this step; once more to stop at once, back to the last checkpoint\n"


class StopRequest:
    """Context in which `signum` is None until a signal asks to stop. Only one at a time, in the main thread.

    `note` is written to stderr when one comes. A signal that was ignored before (by `nohup`, or by a shell for what
    runs in the background) stays ignored.
    """

    def __init__(self, note: bytes = _NOTE) -> None:
        self._note = note
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """What shells report for a process ended by the signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + (self.signum or 0)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            _let_go_of_terminal()
            if self.signum is not None:
                return  # sent twice when a terminal closes: by the kernel and by the shell
        if self.signum is not None:
            # Not an exception, which could surface inside a write. Checkpoints are replaced whole: the old one stands.
            os._exit(128 + signum)
        self.signum = signum
        # Not print: a handler may interrupt a print.
        with suppress(OSError):
            os.write(2, self._note)


def _let_go_of_terminal() -> None:
    """Sends to nowhere what would be written to a terminal that has gone: each write would fail."""
    for handle in (1, 2):
        try:
            termios.tcgetattr(handle)
        except termios.error as failure:
            if failure.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, handle)
                os.close(nowhere)
