# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Each way that a boot can end, on a machine that only pretends: files are real, libvirt's answers are given."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cvmtool.errors import AppraisalError, HostError
from cvmtool.flows import boot
from cvmtool.flows.boot import FIRST_BYTE_SECONDS, BootWatch, differences
from cvmtool.flows.launch import Launch
from cvmtool.formats.job import Resources
from cvmtool.formats.manifest import Mode
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.host.domain import Disk
from cvmtool.host.files import LocalFiles
from cvmtool.host.hypervisor import MachineState
from cvmtool.host.storage import MachineDir
from cvmtool.measure.hashes import kernel_hashes

CMDLINE = "quiet cvmtool.dryrun=1"
CONTENT = {"firmware": b"FIRMWARE", "kernel": b"KERNEL", "initrd": b"INITRD", "rootfs": b"ROOTFS"}


class Host:
    """Answers as libvirt would; a test changes the answers."""

    def __init__(self, live):
        self.now, self.live_domain, self.counters = MachineState.RUNNING, live, []

    def state(self, _name):
        return self.now

    def live(self, _name):
        if self.live_domain is None:
            raise HostError("there is no such domain")
        return self.live_domain

    def monitor(self, _name, command):
        assert command == "info registers"
        return self.counters.pop(0) if self.counters else "RIP=00000000fffffff0"


@pytest.fixture
def machine(tmp_path):
    files = LocalFiles()
    bundle_folder, host_folder = tmp_path / "bundle", MachineDir(files, str(tmp_path / "machines"), "m1")
    bundle_folder.mkdir()
    host_folder.create()
    artefacts, copies = {}, {}
    for name, data in CONTENT.items():
        (bundle_folder / name).write_bytes(data)
        copies[name] = host_folder.path(name)
        files.write(copies[name], data)
        artefacts[name] = SimpleNamespace(sha256=hashlib.sha256(data).hexdigest())
    table = kernel_hashes(CONTENT["kernel"], CONTENT["initrd"], CMDLINE).table()
    files.write(host_folder.path("hashes.bin"), table)
    live = SimpleNamespace(
        **{name: copies[name] for name in ("firmware", "kernel", "initrd")},
        cmdline=CMDLINE,
        hash_table=host_folder.path("hashes.bin"),
        simulation=object(),
        disks=[Disk(path=copies["rootfs"], serial="cvmtool-root"), Disk(path="/pack", serial="other")],
    )
    bundle = SimpleNamespace(
        manifest=SimpleNamespace(**artefacts),
        kernel=bundle_folder / "kernel",
        initrd=bundle_folder / "initrd",
        cmdline=lambda mode: {Mode.DRYRUN: CMDLINE}[mode],
    )
    return SimpleNamespace(
        name="m1",
        hypervisor=Host(live),
        host=SimpleNamespace(files=files),
        directory=host_folder,
        launch=Launch(
            label="j",
            bundle=bundle,
            mode=Mode.DRYRUN,
            host_data=bytes(32),
            policy=GuestPolicy(0x30000),
            resources=Resources(vcpus=1, memory_mib=512, cpu="EPYC-Genoa"),
            packs=(),
        ),
        started=time.monotonic(),
    )


def waited(machine, seconds):
    machine.started = time.monotonic() - seconds


def change(machine, name, data):
    machine.directory.files.write(machine.directory.path(name), data)


def codes(error):
    return [finding.code for finding in error.value.findings]


def test_a_machine_that_has_just_started_is_waited_for(machine):
    for _ in range(20):
        BootWatch(machine).alive()


def test_on_hardware_nobody_looks_at_encrypted_registers(machine):
    machine.launch = replace(machine.launch, mode=Mode.PRODUCTION)
    machine.hypervisor.monitor = None
    waited(machine, 30)
    for _ in range(20):
        BootWatch(machine).alive()


def test_a_machine_that_has_spoken_is_waited_for_however_long(machine):
    Path(machine.directory.console).write_bytes(b"S")
    waited(machine, 10 * FIRST_BYTE_SECONDS)
    watch = BootWatch(machine)
    for _ in range(20):
        watch.alive()


def test_silence_beyond_the_deadline_with_everything_right_says_so(machine):
    waited(machine, FIRST_BYTE_SECONDS + 1)
    with pytest.raises(AppraisalError) as refusal:
        BootWatch(machine).alive()
    assert codes(refusal) == ["boot-silent"]
    assert refusal.value.exit_code == 6


def test_a_dead_loop_is_found_before_the_deadline(machine):
    waited(machine, 10)
    watch = BootWatch(machine)
    for _ in range(5):
        watch.alive()
    with pytest.raises(AppraisalError):
        watch.alive()


def test_a_program_counter_that_moves_is_no_dead_loop(machine):
    waited(machine, 10)
    machine.hypervisor.counters = [f"RIP={n // 2:016x} RFL=" for n in range(40)]
    watch = BootWatch(machine)
    for _ in range(40):
        watch.alive()


def test_one_interrupt_in_a_dead_loop_does_not_hide_it(machine):
    waited(machine, 10)
    machine.hypervisor.counters = ["RIP=0000000000000001"] * 3 + ["RIP=0000000000000002"] + ["RIP=0000000000000001"] * 3
    watch = BootWatch(machine)
    for _ in range(5):
        watch.alive()
    with pytest.raises(AppraisalError):
        watch.alive()


@pytest.mark.parametrize("name", ["firmware", "kernel", "initrd", "rootfs"])
def test_a_changed_artefact_is_named(machine, name):
    change(machine, name, CONTENT[name] + b"!")
    waited(machine, FIRST_BYTE_SECONDS + 1)
    with pytest.raises(AppraisalError) as refusal:
        BootWatch(machine).alive()
    assert codes(refusal) == [f"boot-{name}"]
    found = refusal.value.findings[0]
    assert found.actual == f"sha256:{hashlib.sha256(CONTENT[name] + b'!').hexdigest()}"
    assert found.required == f"sha256:{hashlib.sha256(CONTENT[name]).hexdigest()}"


def test_every_difference_is_listed(machine):
    live = machine.hypervisor.live_domain
    live.cmdline += " init=/bin/sh"
    live.kernel = "/missing"
    live.disks = []
    change(machine, "hashes.bin", b"other")
    assert [found.field for found in differences(live, machine)] == ["kernel", "rootfs", "cmdline", "hash table"]
    assert differences(live, machine)[0].actual == "sha256:unreadable"


def test_what_is_the_images_own_differs_in_nothing(machine):
    assert differences(machine.hypervisor.live_domain, machine) == ()


def test_a_machine_that_stops_is_the_hosts_failure(machine):
    Path(machine.directory.console).write_bytes(b"CVM-STAGE initrd\r\n")
    machine.hypervisor.now = MachineState.CRASHED
    with pytest.raises(HostError) as failure:
        BootWatch(machine).alive()
    assert "crashed" in failure.value.message
    assert "initrd" in failure.value.message
    assert str(machine.directory.console) in failure.value.hint


def test_a_machine_that_stops_without_a_word(machine):
    machine.hypervisor.now = MachineState.STOPPED
    machine.hypervisor.live_domain = None
    with pytest.raises(HostError, match="none"):
        BootWatch(machine).alive()


def test_a_machine_that_stops_with_a_changed_disk_is_a_refusal(machine):
    machine.hypervisor.now = MachineState.STOPPED
    change(machine, "rootfs", b"other")
    with pytest.raises(AppraisalError) as refusal:
        BootWatch(machine).alive()
    assert codes(refusal) == ["boot-rootfs"]


def test_a_guest_that_says_why_it_stops_is_a_refusal_even_if_the_disk_looks_right_now(machine):
    machine.hypervisor.now = MachineState.STOPPED
    Path(machine.directory.console).write_bytes(b"CVM-STAGE initrd\nCVM-FAIL verity\n")
    with pytest.raises(AppraisalError) as refusal:
        BootWatch(machine).alive()
    assert codes(refusal) == ["boot-verity"]
    assert "CVM-FAIL verity" in refusal.value.message


def test_a_domain_that_cannot_be_read_does_not_hide_the_refusal(machine):
    machine.hypervisor.live_domain = None
    waited(machine, FIRST_BYTE_SECONDS + 1)
    with pytest.raises(AppraisalError) as refusal:
        BootWatch(machine).alive()
    assert codes(refusal) == ["boot-silent"]


def test_the_deadlines_are_generous():
    # A firmware under emulation on a busy host has been seen to need half a minute.
    assert FIRST_BYTE_SECONDS >= 60
    assert boot._QUIET_SECONDS + boot._SAMPLES >= 10
