# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A job whose machine dies goes on from its last checkpoint; one whose host gives back an older disk does not."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.errors import FreshnessError
from cvmtool.flows.hosts import open_host
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import load_job, load_jobs
from cvmtool.flows.lifeline import Effort
from cvmtool.flows.platform import dry_run
from cvmtool.flows.prepare import prepare
from cvmtool.flows.train import train
from cvmtool.flows.volumes import Volumes, remove_volumes
from cvmtool.formats.control import LogReader, LogRecord
from cvmtool.formats.jobterms import CHECKPOINT
from cvmtool.image.bundle import Bundle
from cvmtool.owner.jobfile import Restart
from tests.processes import commands, qemus
from tests.scenario.conftest import PLAINTEXT
from tests.scenario.test_kill import Command

pytestmark = [pytest.mark.vm, pytest.mark.image]

WORK = """
import hashlib, os, pathlib, signal, sys
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
kept, last = pathlib.Path("/checkpoint/state"), int(sys.argv[1])
step, state = 0, open("/inputs/data/file", "rb").read()
if kept.exists():
    data = kept.read_bytes()
    step, state = int(data[:8]), data[8:]
print("from", step, flush=True)
while step < last:
    for _ in range(int(sys.argv[2])):
        state = hashlib.sha256(state).digest()
    step += 1
    new = kept.with_suffix(".new")
    with new.open("wb") as file:
        file.write(b"%08d" % step + state)
        file.flush()
        os.fsync(file.fileno())
    new.replace(kept)
    print("at", step, state.hex(), flush=True)
    if asked:
        print("asked", step, flush=True)
        sys.exit(1)
open("/outputs/out", "wb").write(state)
"""


def state_at(step: int, rounds: int) -> bytes:
    state = PLAINTEXT * 4096
    for _ in range(step * rounds):
        state = hashlib.sha256(state).digest()
    return state


@pytest.fixture(autouse=True)
def swept(settings: Settings) -> Iterator[None]:
    """What a run keeps for another try is dropped: it would be in the way of other tests' machines."""
    yield
    volumes = Volumes(settings.volumes_dir)
    remove_volumes([record for record in volumes.all() if record.name == CHECKPOINT], volumes, settings, open_host)


@pytest.fixture(scope="module")
def counting(example: Path, bundle: Bundle, place: Path) -> Callable[..., Path]:
    """A job file: a job of so many steps of so many rounds each, that keeps where it is."""
    folder = place / "checkpoints"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "file").write_bytes(PLAINTEXT * 4096)
    head = example.read_text().split("\ncommand:")[0]
    head = head.replace("oci-archive:container.oci.tar", f"oci-archive:{example.parent / 'container.oci.tar'}")

    def make(steps: int, rounds: int, every: str = "1s") -> Path:
        job = folder / "job.yaml"
        program = WORK.replace("\n", "\n    ")
        job.write_text(
            f"{head}\ncommand:\n- python3\n- -c\n- |{program}\n- '{steps}'\n- '{rounds}'\ninputs: {{data: data}}\n"
            "outputs: {out: {kind: file, max: 1MiB}}\nresources: {vcpus: 1, memory: 768MiB}\n"
            f"checkpoint: {{size: 256MiB, every: {every}}}\n"
        )
        return job

    return make


class Watching(JsonReporter):
    """Reads what the container says, and does something at each of several steps, once."""

    def __init__(self, at: dict[int, Callable[[], None]]) -> None:
        self.left = at
        self._line = ""

    def log(self, record: object) -> None:
        assert isinstance(record, LogRecord)
        *lines, self._line = (self._line + record.data.decode("ascii")).split("\n")
        for line in lines:
            word, step, *_ = line.split()
            if word == "at" and int(step) in self.left:
                self.left.pop(int(step))()


def machine_of(settings: Settings) -> str:
    return list(load_jobs(settings.jobs_dir))[-1].record.machine


def kill(settings: Settings) -> None:
    for number in qemus(machine_of(settings)):
        os.kill(number, signal.SIGKILL)
        while any(commands().get(number, ())):
            time.sleep(0.02)


def said(settings: Settings) -> list[list[list[str]]]:
    """What the container printed in each of its lives, word by word."""
    folder = list(load_jobs(settings.jobs_dir))[-1].path
    logs = sorted(folder.glob("log*"), key=lambda path: (path.suffix == "", path.suffix))
    lives = []
    for path in logs:
        text = b"".join(record.data for record in LogReader().feed(path.read_bytes())).decode("ascii")
        lives.append([line.split() for line in text.splitlines()])
    return lives


def disk(settings: Settings) -> Path:
    (record,) = [record for record in Volumes(settings.volumes_dir).all() if record.name == CHECKPOINT]
    return Path(record.path)


def test_a_killed_job_goes_on_from_its_checkpoint_and_an_old_disk_is_refused(
    counting: Callable[..., Path], bundle: Bundle, settings: Settings, tmp_path: Path
) -> None:
    rounds = 60_000
    prepared = prepare(counting(40, rounds), bundle, settings=settings, reporter=JsonReporter())
    old = tmp_path / "old"

    def keep_the_disk() -> None:
        shutil.copyfile(disk(settings), old)

    def kill_and_turn_back() -> None:
        kill(settings)
        shutil.copyfile(old, disk(settings))

    reporter = Watching({1: keep_the_disk, 5: lambda: kill(settings), 10: kill_and_turn_back})
    with pytest.raises(FreshnessError, match="checkpoint: the host gave back an earlier state"):
        train(
            prepared,
            platform=dry_run(settings),
            settings=settings,
            reporter=reporter,
            results=tmp_path / "out",
            effort=Effort(restart=Restart.ON_FAILURE),
        )
    assert reporter.left == {}
    first, second = said(settings)
    assert first[0] == ["from", "0"]
    assert second[0][0] == "from"
    resumed = int(second[0][1])
    assert 1 <= resumed <= 6  # what was marked, or written since
    expected = state_at(resumed + 1, rounds)
    assert second[1] == ["at", str(resumed + 1), expected.hex()]
    assert not (tmp_path / "out").exists()
    # Nothing of what it keeps can be read by the host, and it is kept for another try.
    assert expected.hex().encode() not in disk(settings).read_bytes()
    assert expected not in disk(settings).read_bytes()


@pytest.mark.soak
def test_killed_at_ten_moments_it_ends_as_if_undisturbed(
    counting: Callable[..., Path], bundle: Bundle, settings: Settings, tmp_path: Path
) -> None:
    rounds, steps = 60_000, 80
    prepared = prepare(counting(steps, rounds), bundle, settings=settings, reporter=JsonReporter())
    moments = sorted(random.SystemRandom().sample(range(2, steps - 2), 10))
    reporter = Watching(dict.fromkeys(moments, lambda: kill(settings)))
    train(
        prepared,
        platform=dry_run(settings),
        settings=settings,
        reporter=reporter,
        results=tmp_path / "out",
        effort=Effort(restart=Restart.ON_FAILURE, attempts=len(moments) + 1),
    )
    assert (reporter.left, len(said(settings))) == ({}, 11)
    assert (tmp_path / "out" / "out").read_bytes() == state_at(steps, rounds)
    assert list(Volumes(settings.volumes_dir).all()) == []


@pytest.mark.soak
def test_a_cancelled_job_ends_in_its_grace_and_goes_on_from_there(
    counting: Callable[..., Path], settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    """No state is marked on the way: what it goes on from is what its container wrote when it was asked to end."""
    rounds, steps = 60_000, 40
    cvmtool = Command(environment)
    job_file = counting(steps, rounds, every="1h")
    code, began = cvmtool.run("train", str(job_file), "--dry-run", "-d", "--results", str(tmp_path / "out"))
    assert code == 0
    job = load_job(settings.jobs_dir, began["job"])
    end = time.monotonic() + 200
    while not (job.path / "log").exists() or not any(words[0] == "at" for words in said(settings)[-1]):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert cvmtool.run("jobs", "cancel", job.record.id)[1]["state"] == JobState.INTERRUPTED
    assert qemus(job.record.machine) == []
    (word, asked) = said(settings)[-1][-1]
    assert word == "asked"
    assert len(disk(settings).read_bytes()) == 256 << 20

    code, done = cvmtool.run("jobs", "resume", job.record.id)
    assert (code, done["schema"]) == (0, "cvmtool/train/v1")
    assert said(settings)[-1][0] == ["from", asked]
    assert (tmp_path / "out" / "out").read_bytes() == state_at(steps, rounds)
    assert list(Volumes(settings.volumes_dir).all()) == []
