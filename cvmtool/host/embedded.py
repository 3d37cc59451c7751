# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""libvirt inside this process: where its root directory is, and what must lie there before it is opened.

Zone: host. libvirt allows one process a root and one root a process. Why QEMU runs as root there at times: docs/adr/0014.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import select
import signal
import stat
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path

from cvmtool.errors import HostError

EMBEDDED_DIR = Path("/run/cvmtool")
"""Root directories of embedded drivers, as root. Short: a socket's path below has room for 107 bytes."""

_URI = "qemu:///embed?root="
_CONF = """\
# Written by cvmtool: libvirt inside this process, without virtlogd.
stdio_handler = "file"
namespaces = []
remember_owner = 0
"""
_KILL_SECONDS = 10.0  # for the kernel to take a killed QEMU's memory back
_SOCKET_BYTES = 107  # of sun_path, its NUL aside
# The longest that libvirt makes below its session directories: a domain's number and 20 bytes of its name.
_LONGEST_RUNTIME = "libvirt/qemu/run/channel/99999-12345678901234567890/org.cvmtool.client.0"
_LONGEST_CONFIG = "libvirt/qemu/lib/domain-99999-12345678901234567890/monitor.sock"


def embedded_dir(uid: int) -> Path:
    """Return the directory of a user's embedded roots."""
    return EMBEDDED_DIR if uid == 0 else Path(f"/tmp/cvmtool-{uid}")  # noqa: S108 - short, and checked by `prepare`


def embedded_uri(*, uid: int, pid: int) -> str:
    """Return the URI of a process's own libvirt."""
    return f"{_URI}{embedded_dir(uid) / str(pid)}"


def embedded_machine_uri(*, uid: int, name: str) -> str:
    """Return the URI of the libvirt of one machine that outlives the process that started it.

    The root directory's name is short whatever the machine's is: a socket's path has little room.
    """
    short = hashlib.sha256(name.encode("utf-8")).hexdigest()[:10]
    return f"{_URI}{embedded_dir(uid) / f'vm-{short}'}"


def qemu_lives(root: Path, name: str) -> bool:
    """Say whether the QEMU of an embedded driver's domain runs, without opening the driver, which one process alone can."""
    return _alive(root / f"run/qemu/{name}.pid")


def is_held(root: Path) -> bool:
    """Say whether a process has the embedded driver of this root open."""
    return _alive(root / "run/qemu/driver.pid")


def port_socket(root: Path, name: str, port: str) -> Path:
    """Return the socket behind a running domain's port, from what another process's embedded driver keeps of the domain.

    Raises:
        HostError: there is no such domain, or it has no such port.
    """
    try:
        status = ET.parse(root / f"run/qemu/{name}.xml")  # noqa: S314 - a file of this user's own libvirt
    except (OSError, ET.ParseError) as error:
        raise HostError(f"the machine {name} does not run", detail=str(error)) from error
    for channel in status.iterfind("domain/devices/channel"):
        target, source = channel.find("target"), channel.find("source")
        if target is not None and source is not None and target.get("name") == port:
            return Path(source.get("path", ""))
    raise HostError(f"the machine {name} has no port {port}")


def _alive(path: Path) -> bool:
    try:
        number = int(path.read_text("ascii").strip()[:10])
        # The number may be another process's by now; the one that is meant holds the file's lock.
        with path.open("rb+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return number != os.getpid()
    except (OSError, ValueError):
        return False
    return False


def embedded_root(uri: str) -> Path | None:
    """Return the root directory that a URI names, or None if it names no embedded driver."""
    return Path(uri.removeprefix(_URI)) if uri.startswith(_URI) else None


def session_fits(runtime: Path, config: Path) -> bool:
    """Say whether an ordinary user's session daemon can have its sockets below these directories.

    It cannot where a home directory's path is long, or where they may not be written.

    Args:
        runtime: what stands for XDG_RUNTIME_DIR.
        config: what stands for XDG_CONFIG_HOME.
    """
    longest = (runtime / _LONGEST_RUNTIME, config / _LONGEST_CONFIG)
    if max(len(os.fsencode(path)) for path in longest) > _SOCKET_BYTES:
        return False
    there = next(path for path in (runtime, *runtime.parents) if os.access(path, os.F_OK))
    return os.access(there, os.W_OK | os.X_OK)


def prepare(root: Path) -> None:
    """Make a root directory and write its configuration; forget what a driver that was killed has left half done there.

    Raises:
        HostError: it cannot be made, or stands in a directory of /tmp that another user could write to.
    """
    try:
        if root.parent == embedded_dir(os.geteuid()) and os.geteuid() != 0:
            _own(root.parent)
        # QEMU runs as another user when we are root; it must be able to reach its sockets below.
        (root / "etc").mkdir(mode=0o755, parents=True, exist_ok=True)
        # libvirt asks QEMU what it can do (seconds) and keeps the answer; every root directory shares it.
        kept = root.parent / "cache"
        kept.mkdir(exist_ok=True)
        with suppress(FileExistsError):
            (root / "cache").symlink_to(kept)
        (root / "etc/qemu.conf").write_text(_configuration())
        if not is_held(root):
            for status in (root / "run/qemu").glob("*.xml"):
                _end_the_half_started(status)
    except OSError as error:
        raise HostError(f"libvirt's directory {root} cannot be made", detail=str(error)) from error


def _end_the_half_started(status: Path) -> None:
    """Forget a domain that was being started when the driver of its root was killed.

    libvirt does not: it takes the start for one that goes on, lets nobody end the domain, and does not know its QEMU yet.
    """
    try:
        root = ET.parse(status).getroot()  # noqa: S314 - a file of this user's own libvirt
    except ET.ParseError:
        return
    if root.get("reason") != "starting up":
        return
    _kill(status.with_suffix(".pid"))
    status.unlink()


def _kill(path: Path) -> None:
    """Kill the QEMU that holds a file of its number, if it lives, and wait until it is gone."""
    try:
        process = os.pidfd_open(int(path.read_text("ascii").strip()[:10]))
    except (OSError, ValueError):
        return
    try:
        if _alive(path):  # the process that was opened is the one that is meant
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], _KILL_SECONDS)
    finally:
        os.close(process)


def _own(folder: Path) -> None:
    """Make a directory of /tmp, or refuse one that another user made first: what lies there says which QEMU is run."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise HostError(
            f"{folder} is not a directory of this user's alone; libvirt's files cannot stand there",
            hint=f"remove it, or give libvirt a short path of your own: CVMTOOL_HOST='{_URI}DIR'",
        )


def _configuration() -> str:
    if os.geteuid() != 0 or _qemu_user_reaches_kvm():
        return _CONF
    # libvirt (as root) finds KVM, finds it unusable for QEMU's user, and asks QEMU again: at each of some twenty
    # questions, 80 s in all. As root the answers agree. QEMU still runs without capabilities, in its sandbox.
    return _CONF + 'user = "root"\ngroup = "root"\n'


def _qemu_user_reaches_kvm() -> bool:
    try:
        device = Path("/dev/kvm").stat()
        user = pwd.getpwnam("libvirt-qemu")
    except (OSError, KeyError):
        return True  # no KVM, or no such user: nothing to disagree about
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    return bool(device.st_mode & 0o006 == 0o006 or (device.st_gid in groups and device.st_mode & 0o060 == 0o060))
