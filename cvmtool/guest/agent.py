# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The guest's agent: what PID 1 starts, and all that runs in the guest beside the job.

Zone: guest (measured).
Spec: docs/protocol.md.

Threads: this one carries the agent port; one answers challenges; one accepts control connections, with one more for
each; one runs the job; where a job may be reached, two for each port of clients. When the agent ends, for whatever reason,
PID 1 cuts the power.

This process holds the keys. What keeps others from reading its memory is set by PID 1, before it starts: no core dumps
(ulimit, core_pattern), no tracing by anyone (yama/ptrace_scope 3). There is no swap.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

from cvmtool.errors import HostError
from cvmtool.formats.channel import AGENT_PORT, CLIENT_PORTS
from cvmtool.formats.control import CLIENT_ADDRESS, CLIENT_OPS
from cvmtool.formats.job import JobManifest
from cvmtool.formats.jobterms import NO_ACCESS
from cvmtool.guest import device, unlock
from cvmtool.guest.attest import Attestor
from cvmtool.guest.channel import Bridge, open_port
from cvmtool.guest.console import Console, Word
from cvmtool.guest.control import ControlService
from cvmtool.guest.job import Job
from cvmtool.guest.keys import BootKeys
from cvmtool.guest.life import KERNEL, Life
from cvmtool.guest.machine import Machine
from cvmtool.guest.shell import Shell, is_shell_allowed

WORK = Path("/run/cvmtool")
_PRIVILEGE_SEPARATION = Path("/run/sshd")  # sshd insists on it
_VITAL_THREADS = frozenset({"attester", "control", "job"})

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


def main() -> int:
    """Serve until the owner asks for power-off.

    Raises:
        HostError: the machine has no agent port.
        OSError: the machine is not as the image expects it.
    """
    threading.excepthook = _fail_closed
    _raise_loopback()
    _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    # Others may pass through (sshd reads the authorized key as the user who logs in) but not list.
    WORK.mkdir(mode=0o711)
    paths = device.Paths()
    keys = BootKeys()
    keys.write_host_key(WORK / "ssh_host_ed25519_key")
    shell = Shell(allowed=is_shell_allowed(paths.cmdline))
    attestor = Attestor(keys, paths, WORK / "authorized_keys", shell)
    console = Console()
    simulated = device.is_dry_run(paths)

    def make_job(manifest: JobManifest, certificates: bytes) -> Job:
        if manifest.access != NO_ACCESS:
            attestor.admit(tuple(bytes.fromhex(key) for key in manifest.access.clients))
            _open_client_ports(life, attestor, paths, shell)
        return Job(manifest, keys, console, certificates=certificates, simulated=simulated)

    life = Life(
        keys,
        lambda: attestor.current,
        console,
        make_job=make_job,
        make_machine=lambda manifest: Machine(manifest, shell),
        kernel=KERNEL,
    )
    bridge = Bridge(open_port(device.find_port(AGENT_PORT, paths)), attestor.answer, sshd=shell.server)
    ControlService(life, bridge.stop).start()
    console.say(Word.AGENT)
    # Not needed yet, and half a second of work under emulation: done while the owner checks the evidence.
    threading.Thread(target=unlock.load_modules, name="modules", daemon=True).start()
    bridge.serve()
    life.forget()
    return 0


def _open_client_ports(life: Life, attestor: Attestor, paths: device.Paths, shell: Shell) -> None:
    """Take sessions beside the owner's, on as many ports as the machine has for them."""
    ControlService(life, _stay, address=CLIENT_ADDRESS, ops=CLIENT_OPS).start()
    for name in CLIENT_PORTS:
        with suppress(HostError):  # its host's to give
            port = open_port(device.find_port(name, paths))
            bridge = Bridge(port, partial(attestor.answer, beside=True), sshd=shell.server)
            threading.Thread(target=bridge.serve, name="client", daemon=True).start()


def _stay() -> None:
    """Do nothing: no client asks for power-off."""


def _raise_loopback() -> None:
    """Bring up `lo`: the control services' only interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _fail_closed(failure: threading.ExceptHookArgs) -> None:
    """End the guest if a thread that it cannot do without has died; a request that went wrong only ends itself."""
    threading.__excepthook__(failure)
    if failure.thread is None or failure.thread.name in _VITAL_THREADS:
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HostError as error:
        sys.exit(f"agent: {error.message}")
