# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What we start dies with us."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cvmtool.host.mortal import mortal

STARTS_AND_WAITS = """
import subprocess
from cvmtool.host.mortal import mortal
child = subprocess.Popen(mortal(["sleep", "600"]))
print(child.pid, flush=True)
child.wait()
"""


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def awaited(reached) -> bool:
    end = time.monotonic() + 60
    while not reached() and time.monotonic() < end:
        time.sleep(0.02)
    return reached()


def test_a_killed_parent_takes_it_along():
    with subprocess.Popen([sys.executable, "-c", STARTS_AND_WAITS], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert awaited(lambda: command(child).startswith(b"sleep\0"))  # the process is the same
        os.kill(parent.pid, signal.SIGKILL)
    assert awaited(lambda: not command(child))


def test_a_program_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        mortal(["/no/such/program"])
