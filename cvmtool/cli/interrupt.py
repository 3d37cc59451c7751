# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, termination, a terminal that goes away: the first ends the command, those after it let it clean up.

Zone: cli.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from types import FrameType

PATIENCE_SECONDS = 20.0
"""For so long after the first signal further ones are ignored; then they end even a clean-up, if a host hangs."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAID = b"\ncvmtool: removing what was started; a moment\n"
_AGAIN_SECONDS = 0.01


class Interrupted(KeyboardInterrupt):
    """The command is to end.

    A type of its own, for CPython looks out for the plain one: after that has passed through exec(), by which each dataclass is
    made, the process kills itself with SIGINT at its end, whatever exit code it was given meanwhile.
    """


class Interruption:
    """A signal handler that raises `Interrupted` once, and again only after `PATIENCE_SECONDS`."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._said = False
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle one signal."""
        if number == signal.SIGHUP:
            self._forget_terminal()
        now = time.monotonic()
        if self._first is None or now - self._first > PATIENCE_SECONDS:
            if _is_in_hook(frame):
                self._raise_later()
                return
            self._first = now
            raise Interrupted
        if not self._said:
            self._said = True
            with suppress(OSError):
                os.write(2, _SAID)

    def lost(self, unraisable: UnraisableHookArgs) -> None:
        """Be told of an exception that Python could only ignore; raise an interruption again that came in such a place.

        A finalizer is one, and what a lock of the import system does at its end.
        """
        if not isinstance(unraisable.exc_value, Interrupted):
            sys.__unraisablehook__(unraisable)
            return
        self._first = None
        self._raise_later()  # here it would be lost as well

    def _raise_later(self) -> None:
        signal.signal(signal.SIGALRM, self)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)

    def _forget_terminal(self) -> None:
        # Writing to a terminal that is gone fails, and would fail in the middle of cleaning up.
        with suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor is all that is wanted
            for descriptor in self._terminals:
                os.dup2(nowhere.fileno(), descriptor)


def _is_in_hook(frame: FrameType | None) -> bool:
    """Say whether an exception, if it were raised now, would be lost once more."""
    while frame is not None and frame.f_code is not Interruption.lost.__code__:
        frame = frame.f_back
    return frame is not None


def install() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end the command in order. Whoever started it with one ignored (nohup) has it so."""
    interruption = Interruption()
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interruption)
    sys.unraisablehook = interruption.lost
    atexit.register(_ignore)


def _ignore() -> None:
    # The command is over, and its exit code is decided. Python's own end gives these signals their default action back, which
    # would kill it and take that code away.
    for number in (*_SIGNALS, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
