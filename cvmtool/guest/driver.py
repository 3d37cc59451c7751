# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Bring up NVIDIA's driver for a job that has GPUs: modules, device nodes, and the daemon that keeps the GPUs awake.

Zone: guest (measured). The only door to modprobe of these modules and to nvidia-persistenced.
Spec: NVIDIA open kernel modules, nvidia/nv-procfs.c and common/inc/nv-chardev-numbers.h; nvidia-persistenced(1).

Without the daemon the driver lets go of a GPU as soon as nobody has it open, and the session between the two, which was
attested, would end with that.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cvmtool.formats.control import ControlError
from cvmtool.formats.gpu import MAX_GPUS
from cvmtool.guest.lockdown import lock_down
from cvmtool.guest.programs import run
from cvmtool.guest.refusal import RefusedError

_CONTROL_MINOR = 255  # NV_MINOR_DEVICE_NUMBER_CONTROL_DEVICE
_MODULES = (
    ("ecdh_generic",),  # for the session with the GPU: the driver asks for it in a form that modprobe does not read
    ("nvidia", "NVreg_ModifyDeviceFiles=0"),  # its libraries leave the nodes as they are
    ("nvidia-uvm",),
)
_DAEMON_SECONDS = 600.0  # eight GPUs take minutes
_MINOR = re.compile(r"Device Minor:\s+(\d{1,3})\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A character device of the driver."""

    name: str
    """Below /dev."""
    major: int
    minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """Where the driver is found; tests point elsewhere."""

    libraries: Path = Path("/usr/lib/nvidia")
    """What its users link to; only an image with the driver has it."""
    majors: Path = Path("/proc/devices")
    gpus: Path = Path("/proc/driver/nvidia/gpus")
    nodes: Path = Path("/dev")
    daemon: Path = Path("/var/run/nvidia-persistenced")

    def devices(self) -> tuple[Device, ...]:
        """Return what a user of the GPUs opens: the control device, unified memory, each GPU.

        Raises:
            RefusedError: `gpu`: the kernel does not have them, or more GPUs than are allowed.
        """
        try:
            majors = read_majors(self.majors.read_text("ascii"))
            minors = sorted(read_minor(path.read_text("ascii")) for path in self.gpus.glob("*/information"))
            control, uvm = majors["nvidiactl"], majors["nvidia-uvm"]
        except (OSError, ValueError) as error:
            raise _refused(f"the kernel's list of devices: {error}") from error
        except KeyError as error:
            raise _refused(f"the kernel has no device {error.args[0]}") from error
        if not 0 < len(minors) <= MAX_GPUS:
            raise _refused(f"the driver has {len(minors)} GPUs; 1 to {MAX_GPUS} are required")
        return (
            Device(name="nvidiactl", major=control, minor=_CONTROL_MINOR),
            Device(name="nvidia-uvm", major=uvm, minor=0),
            *(Device(name=f"nvidia{minor}", major=control, minor=minor) for minor in minors),
        )


_DRIVER = Driver()


def bring_up(driver: Driver = _DRIVER, *, lock: Callable[[], None] = lock_down) -> None:
    """Load the driver, close the kernel behind it, and wake the GPUs. Again is fine.

    Raises:
        RefusedError: `gpu`: this image has no driver, or it does not come up; `kernel`: it cannot be closed behind it.
    """
    if not driver.libraries.is_dir():
        raise _refused("this image has no driver for GPUs")
    for module in _MODULES:
        _run("modprobe", *module)
    try:
        lock()
        _make_nodes(driver.devices(), driver.nodes)
        driver.daemon.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(f"the driver cannot be brought up: {error}") from error
    if not driver.daemon.exists():  # its own directory
        _run("nvidia-persistenced", "--uvm-persistence-mode", timeout_seconds=_DAEMON_SECONDS)


def read_majors(text: str) -> dict[str, int]:
    """Read /proc/devices: the major number of each character device, by name.

    Raises:
        ValueError: not in its form.
    """
    characters, _, _ = text.partition("Block devices:")
    majors = {}
    for line in characters.splitlines():
        if line and line != "Character devices:":
            number, name = line.split(maxsplit=1)
            majors[name] = int(number)
    return majors


def read_minor(text: str) -> int:
    """Read a GPU's `information`: the minor number of its device.

    Raises:
        ValueError: it does not say, or says it twice.
    """
    found = [match for match in map(_MINOR.fullmatch, text.splitlines()) if match]
    if len(found) != 1 or int(found[0][1]) >= _CONTROL_MINOR:
        raise ValueError("a GPU does not say its minor number")
    return int(found[0][1])


def _make_nodes(devices: Iterable[Device], folder: Path) -> None:
    for device in devices:
        path = folder / device.name
        path.unlink(missing_ok=True)
        os.mknod(path, stat.S_IFCHR, os.makedev(device.major, device.minor))
        path.chmod(0o666)  # the container's user is nobody, and no other user of this guest runs anything


def _run(*argv: str, timeout_seconds: float = 120) -> None:
    ended = run(*argv, timeout_seconds=timeout_seconds)
    if ended.code != 0:
        raise _refused(f"{' '.join(argv[:2])} ended with code {ended.code}: {ended.complaint}")


def _refused(detail: str) -> RefusedError:
    return RefusedError(ControlError.GPU, detail)
