# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Real machines for scenario tests: one guest image, one container and one prepared job a session, all in a place of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import HostSettings, Settings, load_settings
from cvmtool.flows.images import bring_up_to_date
from cvmtool.flows.prepare import Prepared, prepare
from cvmtool.image.archive import find_archive
from cvmtool.image.bundle import Bundle
from cvmtool.image.container import build_container, pin
from cvmtool.image.store import Store
from tests.fakes.remote_host import RemoteHost, lacking, remote_host

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "digits"


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A directory that another user's QEMU can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="cvmtool-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def settings(place: Path) -> Settings:
    """Settings below the session's own place; kept packages alone are shared with the account's."""
    (place / "state").mkdir(mode=0o700)
    return replace(
        load_settings(),
        host=None,
        state_dir=place / "state",
        data_dir=place / "data",
        machines_dir=place / "machines",
    )


@pytest.fixture(scope="session")
def environment(settings: Settings) -> dict[str, str]:
    """The same settings for a command line in a process of its own."""
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(Path.home()),
        "LC_ALL": "C.UTF-8",
        "CVMTOOL_STATE_DIR": str(settings.state_dir),
        "CVMTOOL_DATA_DIR": str(settings.data_dir),
        "CVMTOOL_CACHE_DIR": str(settings.cache_dir),
        "CVMTOOL_MACHINES_DIR": str(settings.machines_dir),
    }


@pytest.fixture(scope="session")
def bundle(settings: Settings) -> Bundle:
    """The guest image of this checkout."""
    return bring_up_to_date("base", settings, progress=lambda _: None, notice=lambda _: None)


@pytest.fixture(scope="session")
def example(place: Path, settings: Settings) -> Path:
    """The example's job file, with its data made and its container built, in a copy of its own."""
    folder = place / "digits"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("container.oci.tar", "__pycache__", "data"))
    subprocess.run([sys.executable, str(folder / "prepare.py")], check=True, capture_output=True)
    built = build_container(
        folder / "container",
        folder / "container.oci.tar",
        store=Store(folder=settings.packages_dir),
        find_archive=find_archive,
        progress=lambda _: None,
        notice=lambda _: None,
    )
    job = folder / "job.yaml"
    job.write_text(pin(job.read_text(), built.digest))
    return job


@pytest.fixture(scope="session")
def prepared(example: Path, bundle: Bundle, settings: Settings) -> Prepared:
    """The example, sealed."""
    return prepare(example, bundle, settings=settings, reporter=JsonReporter())


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test opened."""
    with ExitStack() as opened:
        yield opened


WORK = (
    "import hashlib, sys; data = open('/inputs/data/file', 'rb').read(); print('begun', flush=True); "
    "[data := hashlib.sha256(data).digest() for _ in range(int(sys.argv[1]))]; open('/outputs/out', 'wb').write(data)"
)
PLAINTEXT = b"what goes in"


def small_job(folder: Path, example: Path, rounds: int) -> Path:
    """Write a job in the example's container that works for a number of rounds; return its file."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "file").write_bytes(PLAINTEXT * 4096)
    head = example.read_text().split("\ncommand:")[0]
    head = head.replace("oci-archive:container.oci.tar", f"oci-archive:{example.parent / 'container.oci.tar'}")
    job = folder / f"job-{rounds}.yaml"
    job.write_text(
        f'{head}\ncommand: [python3, -c, "{WORK}", "{rounds}"]\ninputs: {{data: data}}\n'
        "outputs: {out: {kind: file, max: 1MiB}}\nresources: {vcpus: 1, memory: 768MiB}\n"
    )
    return job


@pytest.fixture(scope="session")
def lab() -> Iterator[RemoteHost]:
    """Another host: its own libvirt, its own files, reached over SSH and through nothing else."""
    if reason := lacking(libvirt=True):
        pytest.skip(reason)
    with remote_host(libvirt=True) as host:
        yield host


@pytest.fixture(scope="session")
def remote(lab: RemoteHost, settings: Settings, place: Path) -> Settings:
    """An owner of his own, with that host by name."""
    target = HostSettings(name="lab", uri=lab.uri, identity=lab.identity, known_hosts=lab.known_hosts)
    state = place / "remote-state"
    state.mkdir(mode=0o700)
    return replace(settings, host="lab", hosts={"lab": target}, state_dir=state)


@pytest.fixture(scope="session")
def sealed(example: Path, bundle: Bundle, remote: Settings, place: Path) -> Callable[[int], Prepared]:
    """Prepare a small job whose container works for a number of rounds."""
    folder = place / "remote-job"
    folder.mkdir()

    def make(rounds: int) -> Prepared:
        return prepare(small_job(folder, example, rounds), bundle, settings=remote, reporter=JsonReporter())

    return make
