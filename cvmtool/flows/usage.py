# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Ask a guest now and then what its container uses, while something else is waited for.

Zone: flows. Spec: docs/protocol.md section 5, `usage`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cvmtool.errors import CvmError
from cvmtool.formats.control import Op
from cvmtool.formats.wire import natural
from cvmtool.host.channel import AgentChannel, GuestError

USED = ("memory_bytes", "memory_peak_bytes", "cpu_microseconds", "outputs_bytes")
EVERY_SECONDS = 10.0
"""Answering costs an emulated guest a tenth of a second."""


@contextmanager
def watching(
    channel: AgentChannel, tell: Callable[[Mapping[str, int]], None], *, every_seconds: float = EVERY_SECONDS
) -> Iterator[None]:
    """Have `tell` told what the container uses, by the names of `USED`, while the block runs.

    That it cannot be asked ends nothing.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_seconds):
            try:
                tell(_ask(channel))
            except GuestError:
                continue  # it does not run yet, or not any more
            except CvmError:
                return  # whoever follows the container meets the same, and says it

    threading.Thread(target=watch, name="usage", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _ask(channel: AgentChannel) -> dict[str, int]:
    answer = channel.request(Op.USAGE)
    return {name: natural(answer, name, what="usage", most=1 << 62) for name in USED}
