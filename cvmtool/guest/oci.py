# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What the OCI runtime is told about the job's container: nobody's identity, no capability, no network, memory only.

Zone: guest (measured). Pure: no I/O.
Spec: OCI runtime specification 1.0.2.

The container runs as uid and gid 65534 of the guest itself. A user namespace is not used: without a capability it would
add nothing, and creating one is switched off in this kernel because it is a way into much privileged code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cvmtool.formats.job import JobManifest
from cvmtool.formats.jobterms import CHECKPOINT
from cvmtool.formats.wire import JsonObject
from cvmtool.guest.driver import Device

NOBODY = 65_534  # uid and gid
DRIVER = "driver"
"""Where a container with GPUs finds the driver's libraries, below its root."""
_MIB = 1 << 20
_LEAST_TMP_MIB = 16
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp"}  # noqa: S108
_NAMESPACES = ("pid", "ipc", "uts", "mount", "cgroup")
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
    "/sys/firmware", "/sys/fs/selinux",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def mount_points(manifest: JobManifest) -> tuple[str, ...]:
    """Return the directories, relative to the root, that the container's mounts need and an image may lack."""
    inputs = tuple(f"inputs/{pack.name}" for pack in manifest.inputs)
    checkpoint = (CHECKPOINT,) if manifest.checkpoint else ()
    driver = (DRIVER,) if manifest.resources.gpus else ()
    return ("proc", "sys", "dev", "tmp", "inputs", "outputs", "scratch", *driver, *checkpoint, *inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """What a container with GPUs is given."""

    devices: tuple[Device, ...]
    libraries: Path
    """The directory that becomes /driver."""


def render_config(
    manifest: JobManifest,
    *,
    root: Path,
    inputs: dict[str, Path],
    outputs: Path,
    checkpoint: Path | None,
    seccomp: JsonObject,
    cgroup: str,
    network: str | None,
    gpus: Gpus | None,
) -> JsonObject:
    """Return config.json.

    Args:
        manifest: the job.
        root: the container's root file system; it must have every one of `mount_points`.
        inputs: where each input pack is mounted, by its name.
        outputs: the directory that becomes /outputs.
        checkpoint: the directory that becomes /checkpoint, if the job has one.
        seccomp: from `convert_profile`.
        cgroup: the container's cgroup, from the root of the hierarchy.
        network: the path of the namespace that it joins, if the job has destinations; else it gets a new one and is alone there.
        gpus: what it is given, if the job has any.
    """
    limits = manifest.limits
    devices = gpus.devices if gpus else ()
    return {
        "ociVersion": "1.0.2",
        "hostname": "job",
        "root": {"path": str(root), "readonly": True},
        "process": render_process(manifest, manifest.container.args),
        "mounts": [
            *_mounts(manifest, inputs, outputs, checkpoint),
            *([_bind(gpus.libraries, f"/{DRIVER}", "ro")] if gpus else []),
        ],
        "linux": {
            "namespaces": [*({"type": kind} for kind in _NAMESPACES), _network(network)],
            "cgroupsPath": cgroup,
            # The runtime adds null, zero, full, random, urandom and tty; nothing else.
            "devices": [_device(device) for device in devices],
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}, *(_allowed(device) for device in devices)],
                "memory": {"limit": limits.memory_mib * _MIB, "swap": limits.memory_mib * _MIB},
                "pids": {"limit": limits.pids},
            },
            "seccomp": seccomp,
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
        },
    }


def _network(path: str | None) -> JsonObject:
    return {"type": "network"} | ({"path": path} if path else {})


def _device(device: Device) -> JsonObject:
    numbers = {"major": device.major, "minor": device.minor}
    return {"path": f"/dev/{device.name}", "type": "c", **numbers, "fileMode": 0o666, "uid": 0, "gid": 0}


def _allowed(device: Device) -> JsonObject:
    return {"allow": True, "type": "c", "major": device.major, "minor": device.minor, "access": "rw"}


def render_process(manifest: JobManifest, args: tuple[str, ...]) -> JsonObject:
    """Return how a process of the container is started: the job's own, and a command of its owner with no more rights."""
    environment = _ENVIRONMENT | dict(manifest.container.env)
    if manifest.resources.gpus:
        # Before the image's own: a CUDA image may bring libraries of another driver ("compat").
        others = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = f"/{DRIVER}:{others}" if others else f"/{DRIVER}"
    return {
        "terminal": False,
        "user": {"uid": NOBODY, "gid": NOBODY, "umask": 0o022},
        "args": list(args),
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": manifest.container.workdir,
        "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
        "noNewPrivileges": True,
        "oomScoreAdj": 1000,  # the agent must outlive the job to say how it ended
        "rlimits": [
            {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
            {"type": "RLIMIT_NOFILE", "hard": 65_536, "soft": 65_536},
        ],
    }


def _mounts(manifest: JobManifest, inputs: dict[str, Path], outputs: Path, checkpoint: Path | None) -> list[JsonObject]:
    limits = manifest.limits
    tmp_mib = max(_LEAST_TMP_MIB, limits.scratch_mib)
    # Memory-backed mounts count towards the container's memory limit, as everything does that it writes.
    mounts = [
        _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
        _mount("/dev", "tmpfs", "nosuid", "noexec", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", f"size={limits.memory_mib}m"),  # noqa: S108
        _mount("/tmp", "tmpfs", "nosuid", "nodev", "mode=1777", f"size={tmp_mib}m"),  # noqa: S108
    ]
    if limits.scratch_mib:
        owner = (f"uid={NOBODY}", f"gid={NOBODY}", "mode=700")
        mounts.append(_mount("/scratch", "tmpfs", "nosuid", "nodev", *owner, f"size={limits.scratch_mib}m"))
    mounts += [_bind(path, f"/inputs/{name}", "ro") for name, path in sorted(inputs.items())]
    mounts.append(_bind(outputs, "/outputs", "rw", "noexec"))
    if checkpoint is not None:
        mounts.append(_bind(checkpoint, f"/{CHECKPOINT}", "rw", "noexec"))
    return mounts


def _mount(destination: str, kind: str, *options: str) -> JsonObject:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


def _bind(source: Path, destination: str, *options: str) -> JsonObject:
    return {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": ["bind", "private", "nosuid", "nodev", *options],
    }
