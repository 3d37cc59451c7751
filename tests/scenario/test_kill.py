# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""kill -9 at 20 points of a run: QEMU, libvirtd, cvmtool itself (the SSH connection's eight points are in test_remote.py).

Each case ends with the result, or resumable, or cleanly failed. Nothing is left that `vm list` does not show and `vm destroy` does
not remove, and keys went only into sessions of their own nonce.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.flows.jobs import JobRecord, JobState, load_jobs
from cvmtool.flows.lifeline import Effort
from cvmtool.flows.platform import dry_run
from cvmtool.flows.prepare import Prepared
from cvmtool.flows.records import records
from cvmtool.flows.reporter import Stage
from cvmtool.flows.train import train
from cvmtool.host.embedded import embedded_root
from cvmtool.owner.jobfile import Restart
from tests.fakes.remote_host import RemoteHost
from tests.processes import qemus
from tests.scenario.conftest import PLAINTEXT
from tests.scenario.test_remote import domains, held

pytestmark = [pytest.mark.vm, pytest.mark.image]

POINTS = ("boot", "attest", "unlock", "train", "log", "results")
ROUNDS = 2_000_000  # of the container: long enough to be met at work


class Killing(JsonReporter):
    """Kills something once at each of several points of a run, a moment after it is reached."""

    def __init__(self, points: tuple[str, ...], kill: Callable[[], None]) -> None:
        self.left = list(points)
        self._kill = kill
        self.threads: list[threading.Thread] = []

    @contextmanager
    def stage(self, stage: Stage, text: str) -> Iterator[None]:
        with super().stage(stage, text):
            self._reached(stage.value)
            yield

    def log(self, record: object) -> None:
        self._reached("log")

    def _reached(self, where: str) -> None:
        # One at a time, and in order: a run that begins again passes the earlier points once more.
        if self.left[:1] == [where]:
            del self.left[0]
            thread = threading.Timer(0.3 if where in {"unlock", "attest"} else 0, self._kill)
            self.threads.append(thread)
            thread.start()


def last_job(settings: Settings) -> JobRecord:
    return list(load_jobs(settings.jobs_dir))[-1].record


def require_nothing_left(lab: RemoteHost, remote: Settings, record: JobRecord) -> None:
    assert qemus(record.machine) == []
    assert (held(lab), domains(remote), list(records(remote.records_dir))) == ([], [], [])
    for path in lab.folder.rglob("*"):
        if path.is_file():
            assert PLAINTEXT * 8 not in path.read_bytes(), path


def require_keys_well_kept(record: JobRecord) -> None:
    """No nonce twice; keys in attested sessions alone, and into no boot after it had them."""
    sessions = [session for attempt in record.attempts for session in attempt.sessions]
    assert len({session.nonce for session in sessions}) == len(sessions)
    assert any(session.released for session in sessions)
    for attempt in record.attempts:
        assert len({session.boot for session in attempt.sessions}) <= 1
    boots = {session.boot: attempt for attempt in record.attempts for session in attempt.sessions}
    assert len(boots) == sum(bool(attempt.sessions) for attempt in record.attempts)  # no guest lived in two launches


def test_qemu_killed_at_every_stage(
    lab: RemoteHost, remote: Settings, sealed: Callable[[int], Prepared], tmp_path: Path
) -> None:
    def kill() -> None:
        for number in qemus(last_job(remote).machine):
            os.kill(number, signal.SIGKILL)

    reporter = Killing(POINTS, kill)
    # libvirtd 11.3 itself dies at times when QEMU is killed while a stream to it is written; it is started again as systemd would.
    with lab.kept_alive():
        train(
            sealed(ROUNDS),
            platform=dry_run(remote),
            settings=remote,
            reporter=reporter,
            results=tmp_path / "out",
            effort=Effort(restart=Restart.ON_FAILURE, attempts=len(POINTS) + 1),
        )
    record = last_job(remote)
    assert reporter.left == []
    assert record.state is JobState.DONE
    assert len((tmp_path / "out" / "out").read_bytes()) == 32
    causes = [attempt.cause for attempt in record.attempts]
    assert causes.count("QEMU was killed, or crashed") >= len(POINTS) - 1  # the last may come when all is at home
    require_keys_well_kept(record)
    require_nothing_left(lab, remote, record)


def test_libvirtd_killed_at_every_stage(
    lab: RemoteHost, remote: Settings, sealed: Callable[[int], Prepared], tmp_path: Path
) -> None:
    """The guest lives through all of it: one launch, one boot, and a new nonce for each connection."""
    reporter = Killing(POINTS, lab.restart_libvirtd)
    train(sealed(ROUNDS), platform=dry_run(remote), settings=remote, reporter=reporter, results=tmp_path / "out")
    for thread in reporter.threads:
        thread.join()
    record = last_job(remote)
    assert reporter.left == []
    assert record.state is JobState.DONE
    assert len((tmp_path / "out" / "out").read_bytes()) == 32
    assert len(record.attempts) == 1
    assert len(record.attempts[0].sessions) >= 3
    require_keys_well_kept(record)
    require_nothing_left(lab, remote, record)


class Command:
    """cvmtool in processes of their own, which can be killed."""

    python = (sys.executable, "-m", "cvmtool")

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.python, *words, "--json"],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def killed_at(self, stage: str, delay: float, *words: str) -> None:
        """Run a command and kill it a moment after a stage began."""
        with self.start(*words) as process:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                if (event.get("stage"), event.get("state")) == (stage, "begun"):
                    break
            else:
                pytest.fail(f"{words} never came to {stage}")
            time.sleep(delay)
            process.kill()

    def run(self, *words: str) -> tuple[int, dict]:
        with self.start(*words) as process:
            output, _ = process.communicate(timeout=900)
        lines = output.splitlines()
        return process.returncode, json.loads(lines[-1]) if lines else {}


def test_cvmtool_killed_at_every_stage_of_a_machine(
    settings: Settings, environment: dict[str, str], place: Path
) -> None:
    """Whatever command was killed, the same command again goes on; what is left is listed, and destroyed by name."""
    cvmtool = Command(environment)
    start = ("vm", "start", "operator", "--name", "victim", "--volume", "data:256MiB", "--dry-run")
    assert cvmtool.run("image", "build", "operator")[0] == 0
    for delay in (0.0, 0.3, 1.0):
        cvmtool.killed_at("start", delay, *start)
        _, listed = cvmtool.run("vm", "list")
        assert [machine["name"] for machine in listed["machines"]] in (["victim"], [])
        assert cvmtool.run("vm", "destroy", "victim")[0] == 0
        require_no_machine(settings, "victim")
    assert cvmtool.run(*start)[0] == 0
    for stage, delay in (("boot", 0.0), ("boot", 2.0), ("attest", 0.0), ("unlock", 0.0), ("unlock", 1.0)):
        cvmtool.killed_at(stage, delay, "vm", "unlock", "victim")
    code, unlocked = cvmtool.run("vm", "unlock", "victim")
    assert (code, unlocked["state"], unlocked["ready"]) == (0, "unlocked", True)
    attempts = unlocked["attempts"]
    assert len(attempts) == 1
    sessions = attempts[0]["sessions"]
    assert len({session["nonce"] for session in sessions}) == len(sessions)
    assert len({session["boot"] for session in sessions}) == 1
    assert cvmtool.run("vm", "stop", "victim")[0] == 0
    assert cvmtool.run("vm", "destroy", "victim")[0] == 0
    require_no_machine(settings, "victim")


def require_no_machine(settings: Settings, name: str) -> None:
    assert qemus(name) == []
    assert not (settings.vms_dir / name).exists()
    assert list(records(settings.records_dir)) == []
    assert not (settings.machines_dir / name).exists()
    assert list((settings.machines_dir / ".volumes").glob("*")) == []
    assert list(settings.volumes_dir.glob("*")) == []


def test_cvmtool_killed_in_a_run_is_found_and_removed(
    settings: Settings, environment: dict[str, str], example: Path, prepared: Prepared, tmp_path: Path
) -> None:
    cvmtool = Command(environment)
    cvmtool.killed_at("train", 1.0, "train", str(example), "--dry-run", "--results", str(tmp_path / "out"))
    record = last_job(settings)
    assert record.state is JobState.LOST
    assert [session.released for attempt in record.attempts for session in attempt.sessions] == [True]
    row = next(item for item in cvmtool.run("vm", "list")[1]["machines"] if item["name"] == record.machine)
    assert row["evidence"].endswith("the process that ran its job was killed")
    assert qemus(record.machine)
    assert cvmtool.run("vm", "destroy", record.machine) == (
        0,
        {"schema": "cvmtool/vm-destroy/v1", "machine": record.machine, "found": True},
    )
    assert qemus(record.machine) == []
    assert not (settings.machines_dir / record.machine).exists()
    root = embedded_root(row["uri"])
    assert root is None or not root.exists()
    assert not (tmp_path / "out").exists()
