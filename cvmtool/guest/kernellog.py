# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The kernel's log: where it says of a block that it could not be read, and nowhere else.

Zone: guest (measured).
Spec: the kernel's Documentation/ABI/testing/dev-kmsg.
"""

from __future__ import annotations

import os
from pathlib import Path

KERNEL_LOG = Path("/dev/kmsg")
_MOST_RECORD = 8_192  # bytes; the kernel refuses to give a record to a smaller buffer


def read_log(path: Path) -> list[bytes]:
    """Return the records that the kernel still has, oldest first.

    Raises:
        OSError: the log cannot be read.
    """
    log = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        records: list[bytes] = []
        while True:
            try:
                record = os.read(log, _MOST_RECORD)  # the device hands out one at a time
            except BrokenPipeError:
                continue  # overwritten while we read; the next one is there
            except BlockingIOError:
                return records
            if not record:
                return records
            records.append(record)
    finally:
        os.close(log)
