# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Run the job's container once, under crun, and say how it ended.

Zone: guest (measured). The only door to crun.
Spec: docs/protocol.md sections 5 and 8.

The root file system is an overlay without a writable layer: the pack, and above it a skeleton of empty directories for
the mounts, so that any image will do as it is; and the names of the job's destinations, if it has any. crun's own complaints
go into the job's log, where the owner finds them.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from cvmtool.errors import CvmError, FormatError
from cvmtool.formats.control import Stream
from cvmtool.formats.egress import Egress
from cvmtool.formats.job import JobManifest
from cvmtool.formats.jobterms import CHECKPOINT, Destination
from cvmtool.formats.wire import canonical_json
from cvmtool.guest.driver import Driver
from cvmtool.guest.ending import Ending
from cvmtool.guest.log import LogBook
from cvmtool.guest.oci import NOBODY, Gpus, mount_points, render_config
from cvmtool.guest.programs import capture, run
from cvmtool.guest.seccomp import convert_profile

if TYPE_CHECKING:
    from cvmtool.guest.egress import WayOut

TIMED_OUT = 124  # exit code, as timeout(1) has it
NOT_STARTED = 125  # exit code, as container engines have it
_PIECE = 65_536  # bytes of one log record at most
_EMPTY_SECONDS = 30.0  # until killed processes are gone
_MIB = 1 << 20
_CGROUP = "job"  # below the hierarchy's root
_CONTAINER = f"{_CGROUP}/container"
CONTAINER_ID = "job"
"""crun's name for it."""
_ROOT = "root"  # the container's root file system, below the work directory


class Cause(StrEnum):
    """Why the container ended."""

    EXITED = "exited"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    STOPPED = "stopped"  # its owner wanted that
    RUNTIME = "runtime"  # it never ran


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the container ended. Times are the guest's clock, RFC 3339: the host sets it."""

    exit_code: int
    cause: Cause
    started: str
    finished: str
    egress: Egress | None = None
    """What went out of it, if it has destinations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """Directories and files that running a container takes; tests point elsewhere."""

    work: Path = Path("/run/cvmtool")
    cgroups: Path = Path("/sys/fs/cgroup")
    seccomp: Path = Path("/usr/share/cvmtool/seccomp.json")
    driver: Driver = field(default_factory=Driver)

    @property
    def outputs(self) -> Path:
        """What the container sees as /outputs."""
        return self.work / "outputs"

    @property
    def container_cgroup(self) -> Path:
        """The container's own control group, which crun makes."""
        return self.cgroups / _CONTAINER


class Cgroup:
    """The job's control group: a parent of the container's own, so that what happened can still be read afterwards."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def make(self, manifest: JobManifest) -> None:
        """Create the group with the job's limits.

        Raises:
            OSError: the kernel refuses.
        """
        (self._path.parent / "cgroup.subtree_control").write_text("+memory +pids", "ascii")
        self._path.mkdir(exist_ok=True)
        (self._path / "cgroup.subtree_control").write_text("+memory +pids", "ascii")
        for name, value in (
            ("memory.max", manifest.limits.memory_mib * _MIB),
            ("memory.oom.group", 1),  # a job of which one worker was killed has no result worth having
            ("pids.max", manifest.limits.pids + 8),  # and crun's own
        ):
            (self._path / name).write_text(str(value), "ascii")

    @property
    def exists(self) -> bool:
        """Whether it was made."""
        return self._path.is_dir()

    def kill(self) -> None:
        """Kill every process in the group and wait until none is left.

        Raises:
            OSError: some would not go.
        """
        (self._path / "cgroup.kill").write_text("1", "ascii")
        deadline = time.monotonic() + _EMPTY_SECONDS
        while self._count("cgroup.events", "populated"):
            if time.monotonic() > deadline:
                raise OSError(f"processes of the job are left after {_EMPTY_SECONDS:g} s")
            time.sleep(0.01)

    @property
    def out_of_memory(self) -> bool:
        """Whether the memory limit killed something in the group."""
        return self._count("memory.events", "oom_kill") > 0

    def usage(self) -> dict[str, int]:
        """Return what the group's processes use: bytes of memory, now and at most, and microseconds of CPU.

        Raises:
            OSError, ValueError: there is no such group any more.
        """
        now, most = (int((self._path / f"memory.{name}").read_text("ascii")) for name in ("current", "peak"))
        return {
            "memory_bytes": now,
            "memory_peak_bytes": most,
            "cpu_microseconds": self._count("cpu.stat", "usage_usec"),
        }

    def _count(self, file: str, key: str) -> int:
        for line in (self._path / file).read_text("ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
        raise OSError(f"{file} has no {key}")


def usage_of(rooms: Rooms) -> dict[str, int]:
    """Return what the job's container uses: `Cgroup.usage`, and bytes of its outputs so far.

    Raises:
        OSError, ValueError: it does not run.
    """
    found = os.statvfs(rooms.outputs)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    return {**Cgroup(rooms.cgroups / _CGROUP).usage(), "outputs_bytes": used}


def run_container(
    manifest: JobManifest, mounted: dict[str, Path], log: LogBook, rooms: Rooms, ending: Ending
) -> Outcome:
    """Run the container to its end; afterwards nothing of it is alive.

    `mounted` says where each pack and volume is, by its name. What keeps the container from running ends up in the log.
    """
    started = _now()
    way = None
    try:
        if manifest.destinations:
            way = _open_way_out(manifest.destinations)
        code, cause = _run(manifest, mounted, log, rooms, ending=ending, way=way)
    except (OSError, CvmError) as error:
        log.add(Stream.STDERR, f"cvmtool: the container cannot be run: {error}\n".encode())
        code, cause = NOT_STARTED, Cause.RUNTIME
    egress = way.close() if way else None
    return Outcome(exit_code=code, cause=cause, started=started, finished=_now(), egress=egress)


def _open_way_out(destinations: tuple[Destination, ...]) -> WayOut:
    from cvmtool.guest.egress import open_way_out  # noqa: PLC0415 - most jobs have no destinations, and spare themselves this

    return open_way_out(destinations)


def _run(
    manifest: JobManifest,
    mounted: dict[str, Path],
    log: LogBook,
    rooms: Rooms,
    *,
    ending: Ending,
    way: WayOut | None,
) -> tuple[int, Cause]:
    cgroup = Cgroup(rooms.cgroups / _CGROUP)
    cgroup.make(manifest)
    bundle = _prepare(manifest, mounted, rooms, way)
    try:
        process = capture(
            "crun",
            f"--root={rooms.work}/crun",
            "--cgroup-manager=cgroupfs",
            "run",
            f"--bundle={bundle}",
            CONTAINER_ID,
        )
        deadline = time.monotonic() + manifest.limits.seconds
        in_time = _attend(process, log, ending, deadline=deadline, rooms=rooms)
    finally:
        stop_container(rooms)
    code = exit_code(process.wait())
    if ending.wanted:
        return code, Cause.STOPPED
    if not in_time:
        return TIMED_OUT, Cause.TIMEOUT
    return code, Cause.MEMORY if cgroup.out_of_memory else Cause.EXITED


def exit_code(code: int) -> int:
    """Return a program's exit code as shells have it: 128 and more for a signal."""
    return code if code >= 0 else 128 - code


def stop_container(rooms: Rooms) -> None:
    """End whatever is left of the container and let go of its packs; /outputs stays.

    Raises:
        OSError: processes are left.
    """
    cgroup = Cgroup(rooms.cgroups / _CGROUP)
    if cgroup.exists:
        cgroup.kill()
    run("umount", str(rooms.work / _ROOT))


def _prepare(manifest: JobManifest, mounted: dict[str, Path], rooms: Rooms, way: WayOut | None) -> Path:
    """Mount the root file system and the outputs, write the bundle, return its path.

    Raises:
        OSError: a directory or a mount cannot be made.
        FormatError: the image's seccomp profile is not one.
    """
    bundle, root, skeleton = (rooms.work / name for name in ("bundle", _ROOT, "skeleton"))
    for directory in (bundle, root, rooms.outputs, *(skeleton / point for point in mount_points(manifest))):
        directory.mkdir(parents=True, exist_ok=True)
    if way is not None:
        (skeleton / "etc").mkdir(exist_ok=True)
        (skeleton / "etc/hosts").write_text(way.hosts, "ascii")
    size = f"size={manifest.limits.outputs_mib}m"
    _mount("tmpfs", rooms.outputs, f"nosuid,nodev,noexec,mode=0700,uid={NOBODY},gid={NOBODY},{size}", source="outputs")
    lower = f"{skeleton}:{mounted[manifest.container_pack.name]}"
    _mount("overlay", root, f"ro,nosuid,nodev,lowerdir={lower}", source="root")
    release = os.uname().release.split(".")
    try:
        kernel = (int(release[0]), int(release[1]))
    except (IndexError, ValueError) as error:
        raise FormatError(f"kernel release is {os.uname().release!r}; major.minor is required") from error
    config = render_config(
        manifest,
        root=root,
        inputs={pack.name: mounted[pack.name] for pack in manifest.inputs},
        outputs=rooms.outputs,
        checkpoint=mounted[CHECKPOINT] if manifest.checkpoint else None,
        seccomp=convert_profile(rooms.seccomp.read_bytes(), kernel=kernel),
        cgroup=f"/{_CONTAINER}",
        network=way.namespace if way else None,
        gpus=Gpus(devices=rooms.driver.devices(), libraries=rooms.driver.libraries)
        if manifest.resources.gpus
        else None,
    )
    (bundle / "config.json").write_bytes(canonical_json(config))
    return bundle


def _mount(kind: str, point: Path, options: str, *, source: str) -> None:
    mounted = run("mount", "-t", kind, "-o", options, source, str(point))
    if mounted.code != 0:
        raise OSError(f"{kind} cannot be mounted on {point}: {mounted.complaint}")


def _attend(process: subprocess.Popen[bytes], log: LogBook, ending: Ending, *, deadline: float, rooms: Rooms) -> bool:
    """Copy both output streams into the log until the container ends (True) or its time is over (False)."""
    gone = os.pidfd_open(process.pid)
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(ending.descriptor, selectors.EVENT_READ, ending)
            streams = {Stream.STDOUT: process.stdout, Stream.STDERR: process.stderr}
            for stream, pipe in streams.items():
                if pipe is not None:
                    selector.register(pipe, selectors.EVENT_READ, stream)
            while True:
                left = ending.limit(deadline) - time.monotonic()
                if left <= 0:
                    return False
                for key, _ in selector.select(left):
                    if key.data is process:
                        return True
                    if key.data is ending:
                        selector.unregister(ending.descriptor)
                        # The first process of a PID namespace gets it only if it has a handler: one without is killed later.
                        run("crun", f"--root={rooms.work}/crun", "kill", CONTAINER_ID, "TERM")
                        continue
                    data = os.read(key.fd, _PIECE)
                    if data:
                        log.add(key.data, data)
                        continue
                    selector.unregister(key.fileobj)
                    del streams[key.data]
                    if not streams:  # it may have closed them and work on
                        selector.register(gone, selectors.EVENT_READ, process)
        finally:
            os.close(gone)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
