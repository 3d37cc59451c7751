# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The plain VM of `cvmtool bench`: the dry run's domain, firmware, kernel and root file system, and everything else left out.

Zone: flows. Its disks hold the container and the inputs in clear, so it is started on this machine alone, from a directory that is
gone afterwards: no dm-verity, no LUKS, no evidence, no SSH. The image's own code runs the container in it (templates/plain).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cvmtool.config import Settings, resources
from cvmtool.data.opening import write_payload
from cvmtool.errors import ConfigError, FormatError, HostError, JobError
from cvmtool.flows.benchphases import Watch
from cvmtool.flows.hosts import Host, open_host
from cvmtool.flows.machine import acceleration
from cvmtool.flows.placing import FIRMWARE_FILE, INITRD_FILE, KERNEL_FILE, ROOTFS_FILE, pack_file
from cvmtool.flows.prepare import Prepared
from cvmtool.flows.records import MachineRecord, forget_record, save_record
from cvmtool.formats.channel import AGENT_PORT
from cvmtool.formats.control import LogReader, LogRecord
from cvmtool.formats.manifest import Mode
from cvmtool.host.domain import render_domain
from cvmtool.host.storage import HASH_TABLE_FILE, MachineDir
from cvmtool.image.initrd import pack_files
from cvmtool.measure.hashes import kernel_hashes

_BOOT_SECONDS = 300.0
_MAX_LINE = 1 << 20  # bytes
_KNOCK_SECONDS = 0.2


def run_plain(prepared: Prepared, name: str, settings: Settings) -> Watch:
    """Run a prepared job in a plain VM of this machine, and take its outputs without keeping them.

    Raises:
        ConfigError: the host of the settings is another machine, which must see nothing of the job in clear.
        HostError: the machine does not start, or ends before its time.
        JobError: the container failed.
    """
    host = open_host(settings)
    if not host.local:
        host.close()
        raise ConfigError(
            f"host is {host.name}; this machine is required for a plain VM: its disks hold the inputs in clear"
        )
    directory = host.directory(name)
    save_record(
        settings.records_dir,
        MachineRecord(name=name, job="bench", host=host.name, uri=host.uri, machines=host.machines, pid=os.getpid()),
    )
    try:
        directory.create()
        _furnish(directory, prepared)
        begun = time.monotonic()
        _start(host, directory, prepared, name, settings)
        with host.hypervisor.open_port(name, AGENT_PORT) as port:
            return _listen(port, begun, float(prepared.manifest.limits.seconds))
    finally:
        host.hypervisor.destroy(name)
        directory.remove()
        forget_record(settings.records_dir, name)
        host.close()


def _furnish(directory: MachineDir, prepared: Prepared) -> None:
    """Put into the machine's directory what it needs, with the file systems of the packs in clear."""
    bundle = prepared.bundle
    for file, source in ((FIRMWARE_FILE, bundle.firmware), (KERNEL_FILE, bundle.kernel), (ROOTFS_FILE, bundle.rootfs)):
        shutil.copyfile(source, directory.path(file))
    Path(directory.path(INITRD_FILE)).write_bytes(_initrd(prepared))
    for pack in prepared.packs:
        passphrase = prepared.keys.pack_passphrase(pack.descriptor.luks_uuid)
        write_payload(pack.path, pack.descriptor, Path(directory.path(pack_file(pack))), passphrase=passphrase)


def _initrd(prepared: Prepared) -> bytes:
    """Return the image's initrd with another /init behind it, where the kernel looks for an archive: at a multiple of 4."""
    plain = resources("templates") / "plain"
    files = {
        "init": ((plain / "init").read_bytes(), 0o755),
        "plain.py": ((plain / "plain.py").read_bytes(), 0o644),
        "manifest.json": (prepared.manifest.encode(), 0o644),
    }
    own = prepared.bundle.initrd.read_bytes()
    return own + bytes(-len(own) % 4) + pack_files(files, time=0)


def _start(host: Host, directory: MachineDir, prepared: Prepared, name: str, settings: Settings) -> None:
    launch = prepared.launch(Mode.DRYRUN)
    emulator = host.hypervisor.capabilities().emulator
    chosen = acceleration(host, launch, emulator, settings)
    at = f"{host.machines}/{name}"
    simulation = launch.simulation(at, accelerator=chosen.domain_type)
    initrd = Path(directory.path(INITRD_FILE)).read_bytes()
    table = kernel_hashes(prepared.bundle.kernel.read_bytes(), initrd, launch.cmdline).table()
    host.files.write(directory.path(HASH_TABLE_FILE), table)
    spec = launch.spec(name, at, emulator=emulator, launch=simulation)
    # The copies are this machine's alone: libvirt gives them to QEMU's user, and nobody else can read them.
    host.hypervisor.define(render_domain(spec, resources("templates")))
    host.hypervisor.start(name)


def _listen(port: socket.socket, begun: float, limit: float) -> Watch:
    """Take what the machine says, to its end."""
    reader, records = LogReader(), list[LogRecord]()
    started = ended = 0.0
    for line in _lines(port, _BOOT_SECONDS, limit):
        if "started" in line:
            started = time.monotonic()
        elif "log" in line:
            records += reader.feed(_bytes(line["log"]))
        elif "ended" in line:
            ended = time.monotonic()
            if line["ended"] != 0:
                said = b"".join(record.data for record in records).decode("utf-8", "replace")
                raise JobError(
                    f"the container ended with {line['ended']} in a plain VM; 0 is required", detail=said[-2000:]
                )
        elif "done" in line:
            now = time.monotonic()
            return Watch(start=started - begun, run=ended - started, export=now - ended, records=tuple(records))
    raise HostError("the plain VM ended before its container did")


def _lines(port: socket.socket, boot_seconds: float, limit: float) -> Iterator[dict[str, Any]]:
    """Knock until the machine answers, then yield its lines."""
    held, knocking, deadline = b"", True, time.monotonic() + boot_seconds
    port.settimeout(_KNOCK_SECONDS)
    while time.monotonic() < deadline:
        try:
            if knocking:
                port.sendall(b"\n")
            piece = port.recv(1 << 16)
        except TimeoutError:
            continue
        except OSError as error:
            raise HostError("the plain VM's port is gone", detail=str(error)) from error
        if not piece:
            return
        if knocking:
            knocking, deadline = False, time.monotonic() + boot_seconds + limit
        *ended, held = (held + piece).split(b"\n")
        if len(held) > _MAX_LINE:
            raise FormatError(f"a line of the plain VM has more than {_MAX_LINE} bytes")
        yield from map(_parsed, ended)
    raise HostError(f"the plain VM said nothing for {boot_seconds:g} s")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError("a line of the plain VM is not JSON") from error
    if not isinstance(value, dict):
        raise FormatError("a line of the plain VM is not an object")
    return value


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except binascii.Error as error:
        raise FormatError("a log record of the plain VM is not base64") from error
