# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""This side's terminal, handed to a program in a guest and taken back as it was.

Zone: cli.
"""

from __future__ import annotations

import shutil
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cvmtool.flows.vmshell import Ends, Window

_TERM = "xterm"  # what every terminal of today understands; the environment is not the guest's business


def standard_ends() -> Ends:
    """Return the standard streams of this process."""
    from cvmtool.flows.vmshell import Ends

    return Ends(stdin=sys.stdin.fileno(), stdout=sys.stdout.fileno(), stderr=sys.stderr.fileno())


def window() -> Window | None:
    """Return the terminal of the standard streams; None if they are not one."""
    from cvmtool.flows.vmshell import Window

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    size = shutil.get_terminal_size()
    return Window(term=_TERM, columns=size.columns, rows=size.lines)


@contextmanager
def raw() -> Iterator[Callable[[], Window | None]]:
    """Pass every key on as it is while the block runs; yields what tells the terminal's new size, once after each change."""
    changed: list[int] = []
    before = signal.signal(signal.SIGWINCH, lambda number, _frame: changed.append(number))
    descriptor = sys.stdin.fileno()
    kept = termios.tcgetattr(descriptor)

    def resized() -> Window | None:
        if not changed:
            return None
        changed.clear()
        return window()

    try:
        tty.setraw(descriptor)
        yield resized
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, kept)
        signal.signal(signal.SIGWINCH, before)
