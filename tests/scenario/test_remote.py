# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs on another host: its own libvirt, its own files, reached over SSH and through nothing else."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.errors import HostError
from cvmtool.flows.hosts import open_host
from cvmtool.flows.jobs import JobState, load_jobs
from cvmtool.flows.machine import Machine, destroy_machine, start_machine
from cvmtool.flows.platform import dry_run
from cvmtool.flows.prepare import Prepared
from cvmtool.flows.records import records
from cvmtool.flows.reporter import Stage
from cvmtool.flows.train import train
from cvmtool.flows.vmlist import list_machines
from cvmtool.flows.vmstate import VmState
from cvmtool.formats.manifest import Mode
from tests.fakes.pki import write_pki
from tests.fakes.remote_host import RemoteHost

pytestmark = [pytest.mark.vm, pytest.mark.image]


def held(lab: RemoteHost) -> list[str]:
    """What the host holds besides its store, and the folder of volumes when nothing is in it."""
    kept = {".store"} | {".volumes" for folder in lab.machines.glob(".volumes") if not any(folder.iterdir())}
    return [path.name for path in lab.machines.iterdir() if path.name not in kept] if lab.machines.exists() else []


def domains(settings: Settings) -> list[str]:
    host = open_host(settings)
    try:
        return [machine.name for machine in host.hypervisor.machines()]
    finally:
        host.close()


def test_a_run_on_another_host_ends_with_the_same_result(
    lab: RemoteHost, remote: Settings, settings: Settings, sealed: Callable[[int], Prepared], tmp_path: Path
) -> None:
    prepared, before = sealed(10), len(load_states(remote))  # other tests of this session have left jobs
    train(prepared, platform=dry_run(remote), settings=remote, reporter=JsonReporter(), results=tmp_path / "there")
    here = replace(remote, host=settings.host)
    train(prepared, platform=dry_run(here), settings=here, reporter=JsonReporter(), results=tmp_path / "here")
    assert (tmp_path / "there" / "out").read_bytes() == (tmp_path / "here" / "out").read_bytes()
    assert (held(lab), domains(remote), list(records(remote.records_dir))) == ([], [], [])
    objects = list((lab.machines / ".store/sha256").iterdir())
    assert len(objects) >= 6  # firmware, kernel, initrd, root disk, container, data
    assert {path.stat().st_nlink for path in objects} == {1}
    # Where the owner's machine keeps what a local host gets, nothing of the remote run ever was.
    assert load_states(remote)[before:] == [JobState.DONE, JobState.DONE]


def load_states(settings: Settings) -> list[JobState]:
    return [job.record.state for job in load_jobs(settings.jobs_dir)]


@dataclass
class Sending(JsonReporter):
    """Counts what is sent."""

    sent: int = 0

    def progress(self, done: int, total: int) -> None:
        self.sent = max(self.sent, done)


def test_two_machines_at_once_share_what_was_sent_once(
    lab: RemoteHost, remote: Settings, sealed: Callable[[int], Prepared]
) -> None:
    prepared = sealed(10)
    launch = prepared.launch(Mode.DRYRUN)
    subprocess.run(["rm", "-rf", str(lab.machines / ".store")], check=True)
    names = [f"twin-{secrets.token_hex(4)}" for _ in range(2)]
    machines: dict[str, Machine] = {}

    def start(name: str) -> None:
        machines[name] = start_machine(name, launch, settings=remote, reporter=JsonReporter())

    threads = [threading.Thread(target=start, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert set(machines) == set(names)
        for file in ("firmware.fd", "vmlinuz", "initrd", "rootfs.img", "pack-container.img", "pack-data.img"):
            numbers = {(lab.machines / name / file).stat().st_ino for name in names}
            assert len(numbers) == 1, file
            assert (lab.machines / names[0] / file).stat().st_nlink == 3
        assert {item.name for item in list_machines(remote)} == set(names)
        assert {item.standing.state for item in list_machines(remote)} <= {VmState.STARTING, VmState.BOOTED}
        assert not [path for path in (lab.machines / ".store/sha256").iterdir() if path.suffix == ".part"]
    finally:
        for machine in machines.values():
            machine.remove()
    assert (held(lab), domains(remote)) == ([], [])
    again = Sending()
    start_machine(names[0], launch, settings=remote, reporter=again).remove()
    assert again.sent == 0


@dataclass
class Cutting(JsonReporter):
    """Cuts every connection to the host when a stage begins, or when the container speaks."""

    lab: RemoteHost
    when: str
    cuts: int = 0

    @contextmanager
    def stage(self, stage: Stage, text: str) -> Iterator[None]:
        with super().stage(stage, text):
            self._reached(stage.value)
            yield

    def step(self, text: str) -> None:
        self._reached(text)

    def log(self, record: object) -> None:
        self._reached("log")

    def _reached(self, where: str) -> None:
        if where == self.when and not self.cuts:
            self.cuts += 1
            self.lab.cut()


@pytest.mark.parametrize("when", ["rootfs.img to the host", "defining and starting it"])
def test_a_connection_cut_at_the_start_fails_cleanly(
    when: str, lab: RemoteHost, remote: Settings, sealed: Callable[[int], Prepared], tmp_path: Path
) -> None:
    """The host is at fault (8), nobody is called a forger, and no machine is left: the next connection removes it."""
    reporter = Cutting(lab, when)
    with pytest.raises(HostError):
        train(sealed(10), platform=dry_run(remote), settings=remote, reporter=reporter, results=tmp_path / "out")
    assert reporter.cuts == 1
    assert (held(lab), domains(remote), list(records(remote.records_dir))) == ([], [], [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "when",
    [
        "boot",
        *(pytest.param(when, marks=pytest.mark.soak) for when in ("attest", "unlock", "log", "results")),
        "train",
    ],
)
def test_a_connection_cut_under_a_running_guest_is_mended(
    when: str, lab: RemoteHost, remote: Settings, sealed: Callable[[int], Prepared], tmp_path: Path
) -> None:
    reporter = Cutting(lab, when)
    train(sealed(1_000_000), platform=dry_run(remote), settings=remote, reporter=reporter, results=tmp_path / "out")
    assert reporter.cuts == 1
    assert len((tmp_path / "out" / "out").read_bytes()) == 32
    assert (held(lab), domains(remote), list(records(remote.records_dir))) == ([], [], [])


def test_a_machine_on_a_host_that_is_gone_is_found_again(
    lab: RemoteHost, remote: Settings, sealed: Callable[[int], Prepared]
) -> None:
    name = f"gone-{secrets.token_hex(4)}"
    machine = start_machine(name, sealed(10).launch(Mode.DRYRUN), settings=remote, reporter=JsonReporter())
    with lab.unreachable():
        machine.remove()
        assert [(item.name, item.standing.evidence) for item in list_machines(remote)] == [
            (name, "its host does not answer")
        ]
        with pytest.raises(HostError):
            destroy_machine(name, remote)
    assert domains(remote) == [name]
    assert destroy_machine(name, remote)
    assert (held(lab), domains(remote), list_machines(remote)) == ([], [], [])


@pytest.mark.parametrize("known", ["", "changed"])
def test_a_host_with_another_key_gets_nothing(
    known: str, lab: RemoteHost, remote: Settings, sealed: Callable[[int], Prepared], tmp_path: Path
) -> None:
    file = tmp_path / "known_hosts"
    other = lab.identity.with_suffix(".pub").read_text().split()[1]
    file.write_text(f"[127.0.0.1]:{lab.port} ssh-ed25519 {other}\n" if known else "")
    target = replace(remote.hosts["lab"], known_hosts=file)
    settings = replace(remote, hosts={"lab": target})
    with pytest.raises(HostError, match=re.escape(lab.fingerprint())):
        start_machine("never", sealed(10).launch(Mode.DRYRUN), settings=settings, reporter=JsonReporter())
    assert (held(lab), list(records(settings.records_dir))) == ([], [])


@pytest.mark.parametrize("transport", ["ssh", "libssh", "libssh2"])
@pytest.mark.parametrize("known", ["", "changed"])
def test_libvirts_own_connection_refuses_another_key_too(
    transport: str, known: str, lab: RemoteHost, remote: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and libvirt are two connections: the second is held to the same keys as the first."""
    from cvmtool.flows import hosts

    file = tmp_path / "known_hosts"
    other = lab.identity.with_suffix(".pub").read_text().split()[1]
    file.write_text(f"[127.0.0.1]:{lab.port} ssh-ed25519 {other}\n" if known else "")
    uri = lab.uri.replace("+ssh", f"+{transport}")
    trusting = replace(remote.hosts["lab"], uri=uri)
    open_host(replace(remote, hosts={"lab": trusting})).close()
    access = hosts.ssh_access

    def strict(*arguments: object) -> object:
        given = access(*arguments)  # type: ignore[arg-type]
        return replace(given, known_hosts=file)

    import cvmtool.host.remote as module

    real = module.RemoteFiles
    monkeypatch.setattr(module, "RemoteFiles", lambda given: real(replace(given, known_hosts=lab.known_hosts)))
    monkeypatch.setattr(hosts, "ssh_access", strict)
    with pytest.raises(HostError, match="libvirt does not answer"):
        open_host(replace(remote, hosts={"lab": trusting}))


def test_libvirt_over_tls_with_files_over_ssh(lab: RemoteHost, remote: Settings, tmp_path: Path) -> None:
    """The same host, as it is reached with certificates; one whose authority we do not know gets nothing."""
    over_tls = replace(remote.hosts["lab"], uri=lab.tls_uri, files=f"sftp://{lab.user}@127.0.0.1:{lab.port}")
    host = open_host(replace(remote, hosts={"lab": over_tls}))
    try:
        assert host.hypervisor.capabilities().emulator
        directory = host.directory("over-tls")
        directory.create()
        assert (lab.machines / "over-tls").is_dir()
        directory.remove()
    finally:
        host.close()
    write_pki(tmp_path / "pki")
    unknown = replace(over_tls, uri=lab.tls_uri.replace(str(lab.folder / "pki"), str(tmp_path / "pki")))
    with pytest.raises(HostError, match="libvirt does not answer"):
        open_host(replace(remote, hosts={"lab": unknown}))


def test_the_command_line_adds_uses_and_empties_a_host(
    lab: RemoteHost, remote: Settings, place: Path, tmp_path: Path
) -> None:
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
        "CVMTOOL_STATE_DIR": str(tmp_path / "state"),
    }

    def cvmtool(*words: str) -> tuple[int, dict]:
        done = subprocess.run(
            [sys.executable, "-m", "cvmtool", "host", *words, "--json"],
            env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        with suppress(ValueError):
            return done.returncode, json.loads(done.stdout)
        return done.returncode, {}

    words = ("add", "far", lab.uri, "--identity", str(lab.identity))
    assert cvmtool(*words)[0] == 3
    assert cvmtool(*words, "--host-key", "SHA256:" + "a" * 43)[0] == 8
    code, added = cvmtool(*words, "--host-key", lab.fingerprint())
    assert (code, added.get("fingerprint")) == (0, lab.fingerprint())
    code, listed = cvmtool("list")
    assert [host["name"] for host in listed["hosts"]] == ["far"]
    code, swept = cvmtool("gc", "far")
    assert code == 0
    assert {item["why"] for item in swept["objects"]} <= {"no machine uses it"}
    assert list((lab.machines / ".store/sha256").glob("*")) == []
    assert cvmtool("remove", "far")[0] == 0
    assert cvmtool("gc", "far")[0] == 3
