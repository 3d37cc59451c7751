# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A machine without a job through its whole life, each step in a process of its own; and what goes wrong on a real host."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows.guard import guarded
from cvmtool.flows.hosts import Host, open_host
from cvmtool.flows.images import bring_up_to_date
from cvmtool.flows.vmrecords import load_vm
from cvmtool.flows.vms import Wanted, open_vm, start_vm
from cvmtool.flows.vmsession import stop
from cvmtool.flows.vmwatch import watch_all
from cvmtool.formats.job import Resources
from cvmtool.host.hypervisor import MachineState
from cvmtool.image.bundle import Bundle
from cvmtool.owner.jobfile import Restart
from tests.fakes.remote_host import RemoteHost
from tests.processes import qemus
from tests.scenario.test_kill import Command, require_no_machine

pytestmark = [pytest.mark.vm, pytest.mark.image]


@pytest.fixture(scope="module")
def operator(settings: Settings) -> Bundle:
    return bring_up_to_date("operator", settings, progress=lambda _: None, notice=lambda _: None)


@pytest.fixture(scope="module")
def cvmtool(environment: dict[str, str]) -> Command:
    return Command(environment)


def ssh(cvmtool: Command, name: str, command: str, data: bytes = b"") -> tuple[int, bytes]:
    words = [*cvmtool.python, "vm", "ssh", name, "--", command]
    done = subprocess.run(words, env=cvmtool.environment, input=data, capture_output=True, check=False, timeout=600)
    return done.returncode, done.stdout


@pytest.fixture
def swept(cvmtool: Command) -> Iterator[None]:
    """Nothing of the machine is left, however its test ended."""
    yield
    cvmtool.run("vm", "destroy", "life")


@pytest.mark.usefixtures("swept", "operator")
def test_a_machine_from_its_start_to_its_end(cvmtool: Command, settings: Settings) -> None:
    code, document = cvmtool.run(
        "vm", "start", "operator", "--name", "life", "--volume", "data:256MiB", "--shell", "--dry-run"
    )
    assert (code, document["ready"]) == (0, False)
    assert document["state"] in {"starting", "booted"}
    code, document = cvmtool.run("vm", "start", "operator", "--name", "life", "--dry-run")
    assert (code, len(document["attempts"])) == (0, 1)  # it ran already
    code, document = cvmtool.run("vm", "attest", "life")
    assert (code, document["state"], document["ready"]) == (0, "attested", False)
    assert ssh(cvmtool, "life", "id")[0] == 8  # locked: no shell yet
    code, document = cvmtool.run("vm", "unlock", "life")
    assert (code, document["state"], document["ready"]) == (0, "unlocked", True)
    code, document = cvmtool.run("vm", "unlock", "life")
    assert [session["released"] for session in document["attempts"][0]["sessions"]] == [False, False, True, False]
    data = bytes(range(256)) * 4096
    assert ssh(cvmtool, "life", "cat >/volumes/data/rows", data) == (0, b"")
    assert ssh(cvmtool, "life", "cat /volumes/data/rows; exit 5") == (5, data)
    code, document = cvmtool.run("vm", "status", "life")
    assert (code, document["state"], document["ready"], document["error"]) == (0, "unlocked", True, None)
    assert document["agent"]["volumes"][0]["name"] == "data"
    code, document = cvmtool.run("vm", "stop", "life")
    assert (code, document["state"]) == (0, "defined")
    assert cvmtool.run("vm", "stop", "life")[0] == 0
    code, document = cvmtool.run("vm", "start", "life")
    assert (code, len(document["attempts"])) == (0, 2)
    code, document = cvmtool.run("vm", "unlock", "life")
    assert (code, document["state"]) == (0, "unlocked")
    assert ssh(cvmtool, "life", "cat /volumes/data/rows") == (0, data)
    assert cvmtool.run("vm", "stop", "--force", "life")[0] == 0
    assert cvmtool.run("vm", "destroy", "--keep-volumes", "life")[0] == 0
    _, document = cvmtool.run("vm", "volumes")
    (kept,) = document["volumes"]
    assert (kept["name"], kept["machine"]) == ("data", "")
    plain = data[:256]
    assert plain not in Path(kept["path"]).read_bytes()
    assert cvmtool.run("vm", "volumes", "--remove", kept["uuid"])[0] == 0
    require_no_machine(settings, "life")


def wanted(bundle: Bundle, name: str, **changes: object) -> Wanted:
    values: dict[str, object] = {
        "name": name,
        "bundle": bundle,
        "resources": Resources(vcpus=1, memory_mib=768, cpu="EPYC-Genoa"),
        "shell": False,
        "restart": Restart.NEVER,
        "simulated": True,
    }
    return Wanted(**{**values, **changes})  # type: ignore[arg-type]


def test_no_shell_from_an_image_that_gives_none(bundle: Bundle, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="gives no shell"):
        start_vm(wanted(bundle, "mute", shell=True), settings, JsonReporter())
    assert not (settings.vms_dir / "mute").exists()


@contextmanager
def started(bundle: Bundle, remote: Settings, name: str, **changes: object) -> Iterator[Host]:
    """A machine on the other host, whose libvirt is a daemon."""
    from cvmtool.flows.vms import destroy_vm

    start_vm(wanted(bundle, name, **changes), remote, JsonReporter())
    host = open_host(remote)
    try:
        yield host
    finally:
        host.close()
        destroy_vm(name, remote)


def test_a_name_is_given_once(bundle: Bundle, remote: Settings) -> None:
    with started(bundle, remote, "clash"), pytest.raises(HostError, match="exists already"):
        start_vm(wanted(bundle, "clash"), remote, JsonReporter())


def test_a_volume_is_in_one_machine_at_a_time(bundle: Bundle, remote: Settings) -> None:
    with started(bundle, remote, "first", volumes=(("shared", 256 << 20),)) as host:
        with pytest.raises(HostError, match="belongs to the machine first"):
            start_vm(wanted(bundle, "second", disks=("shared",)), remote, JsonReporter())
        assert [machine.name for machine in host.hypervisor.machines()] == ["first"]


def test_a_volume_that_another_qemu_writes_is_named(bundle: Bundle, remote: Settings, lab: RemoteHost) -> None:
    """Somebody on the host has the image open: QEMU's lock holds, and the message says what it is about."""
    from cvmtool.flows.volumes import Volumes

    with started(bundle, remote, "first", volumes=(("locked", 256 << 20),)):
        volumes = Volumes(remote.volumes_dir)
        record = next(item for item in volumes.all() if item.name == "locked")
        volumes.save(replace(record, luks_uuid=f"f{record.luks_uuid[1:]}", name="twin", machine=""))  # the same file
        with pytest.raises(HostError) as failure:
            start_vm(wanted(bundle, "second", disks=("twin",)), remote, JsonReporter())
        assert "lock" in f"{failure.value.detail} {failure.value.hint}"
        volumes.forget(f"f{record.luks_uuid[1:]}")
    assert list(volumes.all()) == []


class Listening(JsonReporter):
    """Hears what is said in passing."""

    def __init__(self) -> None:
        self.heard: queue.SimpleQueue[str] = queue.SimpleQueue()

    def notice(self, text: str) -> None:
        self.heard.put(text)

    def wait_for(self, words: str) -> None:
        while words not in self.heard.get(timeout=600):
            continue


def test_a_watched_machine_that_dies_is_started_attested_and_unlocked_again(
    bundle: Bundle, remote: Settings, lab: RemoteHost
) -> None:
    volumes = (("data", 256 << 20),)
    with lab.kept_alive(), started(bundle, remote, "watched", restart=Restart.ON_FAILURE, volumes=volumes):
        folder, reporter = load_vm(remote.vms_dir, "watched"), Listening()
        watching = threading.Thread(target=watch_all, args=([folder], remote, lambda: reporter))
        watching.start()
        reporter.wait_for("standing by")
        for number in qemus("watched"):
            os.kill(number, signal.SIGKILL)
        reporter.wait_for("Starting it again")
        reporter.wait_for("standing by")
        lab.restart_libvirtd()
        reporter.wait_for("standing by")
        vm = open_vm(load_vm(remote.vms_dir, "watched"), remote, JsonReporter())
        stop(vm, stage=lambda _stage, _text: nullcontext())
        vm.close()
        watching.join(120)
        assert not watching.is_alive()  # its owner stopped it: nothing is started again
        record = load_vm(remote.vms_dir, "watched").record
        assert [attempt.cause for attempt in record.attempts] == ["QEMU was killed, or crashed", "stopped by its owner"]
        assert [[note.released for note in attempt.sessions].count(True) for attempt in record.attempts] == [1, 1]
        assert qemus("watched") == []


# At 7C00h: write 64 sectors of the second disk, the next 64, and so on (INT 13h, AH=43h); at 7C20h the packet that says which.
_CODE = bytes.fromhex("31c0 8ed8 8ed0 bc007c be207c b443 b000 b281 cd13 668306287c40 ebed")
_PACKET = bytes.fromhex("1000 4000 0000 0010 0000000000000000")
WRITER = (_CODE.ljust(0x20, b"\0") + _PACKET).ljust(510, b"\0") + b"\x55\xaa"
FILLER = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{boot}'/><target dev='vda' bus='virtio'/><boot order='1'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/><source file='{disk}'/><target dev='vdb' bus='virtio'/><boot order='2'/>
    </disk>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def test_a_full_disk_is_said_and_waited_out(lab: RemoteHost, remote: Settings) -> None:
    """A guest of 60 bytes fills a small file system of its host; when there is room again, it goes on by itself."""
    small = lab.folder / "small"
    small.mkdir()
    image = lab.folder / "small.img"
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    inside = ["nsenter", "--mount", "--target", str(lab.process.pid)]
    subprocess.run([*inside, "mount", "-o", "loop", str(image), str(small)], check=True)
    try:
        subprocess.run([*inside, "sh", "-c", f"head -c 16000000 /dev/zero >{small}/ballast"], check=True)
        subprocess.run([*inside, "truncate", "-s", "12M", str(small / "disk.img")], check=True)
        boot = lab.folder / "boot.img"
        boot.write_bytes(WRITER.ljust(1 << 20, b"\0"))
        host = open_host(remote)
        notices: list[str] = []
        full, again = threading.Event(), threading.Event()

        def notice(text: str) -> None:
            notices.append(text)
            (again if "room again" in text else full).set()

        try:
            host.hypervisor.define(FILLER.format(name="filler", boot=boot, disk=small / "disk.img"))
            with guarded(host.hypervisor, "filler", notice):
                host.hypervisor.start("filler")
                assert full.wait(120), notices
                assert str(small / "disk.img") in notices[0]
                assert host.hypervisor.state("filler") is MachineState.NO_ROOM
                subprocess.run([*inside, "rm", str(small / "ballast")], check=True)
                assert again.wait(120), notices
            host.hypervisor.destroy("filler")
        finally:
            host.hypervisor.destroy("filler")
            host.close()
    finally:
        time.sleep(0.5)
        subprocess.run([*inside, "umount", str(small)], check=False)
