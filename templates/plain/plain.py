# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""PID 1 of the plain VM of `cvmtool bench`: the image's own way to run a container, on disks in clear, told in clear.

It waits for a byte, mounts each pack's file system as it is, runs the container and sends JSON lines: `started`; `log` with
bytes of it (base64); `ended` with the exit code; `file` with a path and then its `data`; `done`. No evidence, no keys, no SSH.
"""

import base64
import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, "/usr/lib/cvmtool")

from cvmtool.formats.channel import AGENT_PORT
from cvmtool.formats.job import JobManifest, parse_job_manifest
from cvmtool.guest import container, device, disks, programs, unlock
from cvmtool.guest.channel import open_port
from cvmtool.guest.ending import Ending
from cvmtool.guest.log import LogBook

PIECE = 48 << 10
BLOCKS = Path("/sys/block")


class Port:
    """The agent port."""

    def __init__(self) -> None:
        self._port = open_port(device.find_port(AGENT_PORT, device.Paths()))
        os.set_blocking(self._port, True)

    def wait(self) -> None:
        while not os.read(self._port, 1):  # nobody has connected yet
            time.sleep(0.01)

    def send(self, **fields: object) -> None:
        line = memoryview(json.dumps(fields).encode() + b"\n")
        while line:
            line = line[os.write(self._port, line) :]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def tell(port: Port, book: LogBook) -> None:
    for piece in book.follow(0):
        port.send(log=text(piece))


def mount(manifest: JobManifest) -> dict[str, Path]:
    mounted = {}
    for pack in manifest.packs:
        (name,) = disks.find_disks(pack.serial, BLOCKS)
        point = mounted[pack.name] = Path("/run/cvmtool/packs", pack.name)
        point.mkdir(parents=True)
        ended = programs.run("mount", "-t", "squashfs", "-o", "ro,nosuid,nodev", f"/dev/{name}", str(point))
        if ended.code != 0:
            raise OSError(ended.complaint)
    return mounted


def main() -> None:
    manifest = parse_job_manifest(Path("/run/manifest.json").read_bytes())
    programs.run("mount", "-a")
    unlock.load_modules()
    port = Port()
    port.wait()
    mounted = mount(manifest)
    rooms = container.Rooms()
    port.send(started=True)
    book = LogBook(Path("/run/cvmtool/log"), limit=manifest.limits.log_mib << 20)
    follower = threading.Thread(target=tell, args=(port, book))
    follower.start()
    outcome = container.run_container(manifest, mounted, book, rooms, Ending())
    book.end()
    follower.join()
    port.send(ended=outcome.exit_code)
    for folder, _, names in os.walk(rooms.outputs):
        for name in names:
            path = Path(folder, name)
            port.send(file=str(path.relative_to(rooms.outputs)))
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    port.send(data=text(piece))
    port.send(done=True)
    time.sleep(0.5)  # what was sent must have left before the machine does


with contextlib.suppress(Exception):
    try:
        main()
    except Exception as error:
        Path("/dev/console").write_text(f"CVM-FAIL plain {type(error).__name__}: {error}\n")
        raise
Path("/proc/sysrq-trigger").write_text("o")
time.sleep(60)
