# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The end that a running container is asked for: a signal first, and no mercy once its grace is over.

Zone: guest (measured).
"""

from __future__ import annotations

import os
import threading
import time


class Ending:
    """One container's end. Whoever waits for the container waits for `descriptor`, too: it is readable once the end is wanted."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._deadline: float | None = None
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def ask(self, grace_seconds: float) -> bool:
        """Ask for the end within `grace_seconds`; say whether nobody had before. The first word counts."""
        with self._changing:
            if self._deadline is not None:
                return False
            self._deadline = time.monotonic() + grace_seconds
            os.eventfd_write(self.descriptor, 1)
            return True

    @property
    def wanted(self) -> bool:
        """Whether anybody has asked."""
        return self._deadline is not None

    def limit(self, deadline: float) -> float:
        """Return when the container must be gone: at `deadline`, or earlier. Both are times of `time.monotonic`."""
        return deadline if self._deadline is None else min(deadline, self._deadline)
