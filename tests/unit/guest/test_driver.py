# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The driver of a guest with GPUs. No machine of these tests has one: /proc and /dev are folders, its programs are recorded."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.formats.control import ControlError
from cvmtool.guest import driver
from cvmtool.guest.driver import Device, Driver, bring_up, read_majors, read_minor
from cvmtool.guest.lockdown import Locks, lock_down
from cvmtool.guest.programs import Ended
from cvmtool.guest.refusal import RefusedError

# As Linux 6.12 writes it, with the names that nvidia.ko and nvidia-uvm.ko of 550.163.01 register.
MAJORS = """\
Character devices:
  1 mem
  4 /dev/vc/0
  5 ttyprintk
195 nvidia
195 nvidiactl
237 nvidia-uvm
254 bsg

Block devices:
237 virtblk
253 device-mapper
"""
INFORMATION = """\
Model: \t\t NVIDIA H100 PCIe
IRQ:   \t\t 31
GPU UUID: \t GPU-00000000-0000-0000-0000-000000000000
Bus Location: \t 0000:01:00.0
Device Minor: \t {}
GPU Firmware: \t 550.163.01
"""


class Machine:
    """A guest with GPUs whose programs say what they are told to."""

    def __init__(self, root, monkeypatch):
        self.driver = Driver(
            libraries=root / "lib",
            majors=root / "devices",
            gpus=root / "gpus",
            nodes=root / "dev",
            daemon=root / "var/run/nvidia-persistenced",
        )
        for folder in (self.driver.libraries, self.driver.gpus, self.driver.nodes):
            folder.mkdir()
        self.driver.majors.write_text(MAJORS)
        self.did = []
        self.failing = None
        monkeypatch.setattr(driver, "run", self._run)
        monkeypatch.setattr(os, "mknod", self._mknod)

    def plug(self, *minors):
        for minor in minors:
            folder = self.driver.gpus / f"0000:{minor:02x}:00.0"
            folder.mkdir()
            (folder / "information").write_text(INFORMATION.format(minor))

    def bring_up(self):
        bring_up(self.driver, lock=lambda: self.did.append(("lock",)))

    def refused(self):
        with pytest.raises(RefusedError) as caught:
            self.bring_up()
        assert caught.value.error is ControlError.GPU
        return caught.value.detail

    def _run(self, *argv, timeout_seconds):
        self.did.append(argv)
        if argv[0] == "nvidia-persistenced":
            self.driver.daemon.mkdir()
        failed = self.failing in argv
        return Ended(code=1 if failed else 0, output="", complaint="No such device" if failed else "")

    def _mknod(self, path, mode, device):
        self.did.append(("mknod", path.name, mode == stat.S_IFCHR, os.major(device), os.minor(device)))
        path.touch()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def test_modules_then_the_lock_then_nodes_then_the_daemon(machine):
    machine.plug(0, 1)
    machine.bring_up()
    assert machine.did == [
        ("modprobe", "ecdh_generic"),
        ("modprobe", "nvidia", "NVreg_ModifyDeviceFiles=0"),
        ("modprobe", "nvidia-uvm"),
        ("lock",),
        ("mknod", "nvidiactl", True, 195, 255),
        ("mknod", "nvidia-uvm", True, 237, 0),
        ("mknod", "nvidia0", True, 195, 0),
        ("mknod", "nvidia1", True, 195, 1),
        ("nvidia-persistenced", "--uvm-persistence-mode"),
    ]
    for node in machine.driver.nodes.iterdir():
        assert stat.S_IMODE(node.stat().st_mode) == 0o666


def test_again_is_fine_and_starts_no_second_daemon(machine):
    machine.plug(0)
    machine.bring_up()
    machine.bring_up()
    assert sum(did[0] == "nvidia-persistenced" for did in machine.did) == 1


def test_an_image_without_the_driver_is_told_so_and_touched_by_nothing(machine):
    machine.driver.libraries.rmdir()
    assert machine.refused() == "this image has no driver for GPUs"
    assert machine.did == []


@pytest.mark.parametrize("name", ["nvidia", "nvidia-uvm", "nvidia-persistenced"])
def test_a_program_that_fails_is_named(machine, name):
    machine.plug(0)
    machine.failing = name
    detail = machine.refused()
    assert name in detail
    assert "No such device" in detail
    if name != "nvidia-persistenced":
        assert not list(machine.driver.nodes.iterdir())


def test_a_kernel_that_cannot_be_closed_gets_no_nodes(machine):
    machine.plug(0)

    def lock():
        raise RefusedError(ControlError.KERNEL, "no securityfs")

    with pytest.raises(RefusedError) as caught:
        bring_up(machine.driver, lock=lock)
    assert caught.value.error is ControlError.KERNEL
    assert not list(machine.driver.nodes.iterdir())


@pytest.mark.parametrize("count", [0, 9])
def test_no_gpu_and_too_many_are_refused(machine, count):
    machine.plug(*range(count))
    assert f"{count} GPUs" in machine.refused()


@pytest.mark.parametrize(
    ("old", "new"),
    [("195 nvidiactl\n", ""), ("237 nvidia-uvm\n", ""), ("195 nvidiactl", "x nvidiactl"), ("  1 mem", "mem")],
)
def test_a_list_of_devices_that_lacks_one_or_is_none_is_refused(machine, old, new):
    machine.plug(0)
    assert old in MAJORS
    machine.driver.majors.write_text(MAJORS.replace(old, new))
    machine.refused()
    assert not list(machine.driver.nodes.iterdir())


def test_block_devices_are_others():
    majors = read_majors(MAJORS)
    assert majors["nvidia-uvm"] == 237
    assert "virtblk" not in majors


def test_this_machine_s_own_list_is_read():
    assert read_majors(Path("/proc/devices").read_text("ascii"))["mem"] == 1


@pytest.mark.parametrize(
    "text", ["", "Device Minor: \t x\n", "Device Minor: 255\n", "Device Minor: 0\nDevice Minor: 1\n"]
)
def test_a_gpu_without_its_number_is_refused(text):
    with pytest.raises(ValueError, match="minor"):
        read_minor(text)


def test_a_gpu_says_its_number():
    assert read_minor(INFORMATION.format(7)) == 7


@given(st.text())
def test_any_text_is_a_list_of_devices_or_a_value_error(text):
    for parse in (read_majors, read_minor):
        try:
            parse(text)
        except ValueError:
            continue


def test_the_devices_of_a_container_are_those_of_the_guest(machine):
    machine.plug(3)
    assert machine.driver.devices()[2:] == (Device(name="nvidia3", major=195, minor=3),)


# ---- the lock --------------------------------------------------------------------------------------------------------


class Kernel:
    """A kernel's settings as files, and its mounts as a list."""

    def __init__(self, root, monkeypatch, *, signed):
        self.locks = Locks(signatures=root / "sig_enforce", security=root / "security")
        self.locks.signatures.write_text(f"{signed}\n")
        self.locks.security.mkdir()
        self.mounted = []
        self.code = 0
        monkeypatch.setattr("cvmtool.guest.lockdown.run", self._run)

    def _run(self, *argv):
        self.mounted.append(argv)
        return Ended(code=self.code, output="", complaint="refused")

    @property
    def settings(self):
        lockdown = self.locks.security / "lockdown"
        return self.locks.signatures.read_text(), lockdown.read_text() if lockdown.exists() else None


def test_an_open_kernel_is_closed(tmp_path, monkeypatch):
    kernel = Kernel(tmp_path, monkeypatch, signed="N")
    lock_down(kernel.locks)
    assert kernel.settings == ("1", "integrity")
    assert [argv[-2:] for argv in kernel.mounted] == [("securityfs", str(kernel.locks.security))]


def test_a_kernel_whose_command_line_closed_it_is_left_alone(tmp_path, monkeypatch):
    kernel = Kernel(tmp_path, monkeypatch, signed="Y")
    lock_down(kernel.locks)
    assert kernel.settings == ("Y\n", None)
    assert kernel.mounted == []


def test_what_cannot_be_closed_is_an_error(tmp_path, monkeypatch):
    kernel = Kernel(tmp_path, monkeypatch, signed="N")
    kernel.code = 32
    with pytest.raises(RefusedError) as caught:
        lock_down(kernel.locks)
    assert (caught.value.error, "securityfs" in caught.value.detail) == (ControlError.KERNEL, True)
    assert kernel.settings == ("N\n", None)
    kernel.locks.signatures.unlink()
    with pytest.raises(RefusedError) as caught:
        lock_down(kernel.locks)
    assert (caught.value.error, "sig_enforce" in caught.value.detail) == (ControlError.KERNEL, True)
