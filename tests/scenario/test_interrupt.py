# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C at any stage: exit 130, and no process, socket, file of the host or plaintext is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cvmtool.config import Settings
from cvmtool.flows.jobs import JobState, load_jobs
from cvmtool.flows.prepare import Prepared
from cvmtool.host.embedded import EMBEDDED_DIR
from tests.processes import naming

pytestmark = [pytest.mark.vm, pytest.mark.image]


@pytest.mark.parametrize(
    ("stop", "times"),
    [(signal.SIGINT, 1), (signal.SIGINT, 8), (signal.SIGTERM, 1), (signal.SIGHUP, 1)],
    ids=["ctrl-c", "impatient", "terminated", "terminal-gone"],
)
@pytest.mark.parametrize("stage", ["start", "boot", "unlock", "train"])
def test_interrupt_leaves_nothing_behind(
    stage: str,
    stop: signal.Signals,
    times: int,
    example: Path,
    prepared: Prepared,
    settings: Settings,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    command = [
        sys.executable,
        "-m",
        "cvmtool",
        "train",
        str(example),
        "--dry-run",
        "--results",
        str(tmp_path),
        "--json",
    ]
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has them started with the signal ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event.get("stage") == stage:
                break
        for _ in range(times):
            process.send_signal(stop)
            time.sleep(0.1)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    job = list(load_jobs(settings.jobs_dir))[-1]
    assert job.record.state is JobState.INTERRUPTED
    assert not (settings.machines_dir / job.record.machine).exists()
    assert not (EMBEDDED_DIR / str(process.pid)).exists()
    assert list(tmp_path.rglob("*")) == []
    assert naming(job.record.machine) == []
