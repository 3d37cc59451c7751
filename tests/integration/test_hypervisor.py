# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""libvirt itself, inside this process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cvmtool.host.embedded import embedded_dir

pytestmark = pytest.mark.vm

SCRIPT = """
import os, sys
from pathlib import Path
from cvmtool.host.embedded import embedded_root, embedded_uri
from cvmtool.host.hypervisor import Hypervisor

uri = embedded_uri(uid=os.geteuid(), pid=os.getpid())
for _ in range(40):
    hypervisor = Hypervisor.open(uri, log=Path(sys.argv[1]))
    assert hypervisor.machines() == []
    hypervisor.close()
assert embedded_root(uri).is_dir()
print(os.getpid())
"""


def test_the_embedded_driver_opens_as_often_as_it_takes_and_leaves_nothing(tmp_path: Path) -> None:
    """libvirt registers a driver each time and stops at some fifteen; one process may start any number of machines."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "log")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not (embedded_dir(os.geteuid()) / done.stdout.strip()).exists()
