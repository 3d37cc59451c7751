# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Does a job fit: what it needs beside what its container, its host and its owner's disks have.

Zone: owner. Pure: no I/O. Nothing here is about trust: what a host says of its room is believed, and if it lies the run fails
later. What is not known is never held against a job: it is said.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from cvmtool.errors import ConfigError, CvmError, HostError
from cvmtool.owner.jobfile import JobFile
from cvmtool.owner.jobneeds import Training

CLOSE = 0.85
"""From this share of what there is on, a need is close."""
QEMU_BYTES = 100 << 20
"""What QEMU holds beside the guest's memory: 93 MiB with the example of this repository."""
TRANSLATOR_BYTES = 300 << 20
"""What emulation (TCG) holds on top for translated code: 202 MiB with the same example. It grows with the code that runs."""
_GRADIENT_BYTES = 4
_MIB = 1 << 20


class Verdict(StrEnum):
    """How a need compares with what there is."""

    OK = "ok"
    CLOSE = "close"
    SHORT = "short"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weights of the models among a job's inputs: bytes as they are stored, and how many parameters that is."""

    size: int = 0
    parameters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A file system that a run writes to. Two places with the same `device` share their free bytes."""

    name: str
    device: str
    needs: int
    free: int | None
    host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Something that takes time: bytes to go, and bytes a second as measured just now, or None."""

    name: str
    size: int
    rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What was found out. None: nobody could say."""

    simulated: bool
    emulated: bool
    weights: Weights
    memory: int | None
    """Bytes that the host has available."""
    processors: int | None
    asids: int | None
    """Encrypted guests that the host can start yet."""
    features: frozenset[str] | None
    """What a guest of the job's CPU model would see on the host, in QEMU's words."""
    disks: tuple[Disk, ...]
    paces: tuple[Pace, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One need. `unit`: bytes, processors, machines, features or seconds; `has`: None where nobody knows, or nothing limits it."""

    code: str
    verdict: Verdict
    needs: int
    has: int | None
    unit: str
    because: str
    remedy: str = ""
    host: bool = False
    """Whether another host may have what this one has not."""


def judge_fit(job: JobFile, room: Room) -> tuple[Line, ...]:
    """Compare everything; the lines come in the order in which a run would meet them."""
    lines = [_container_memory(job, room.weights), _outputs(job), _host_memory(job, room), _processors(job, room)]
    if job.needs.features:
        lines.append(_features(job, room))
    if not room.simulated:
        lines.append(_asids(room))
    return (*lines, *_disks(room.disks), *map(_duration, room.paces))


def require_fit(lines: tuple[Line, ...]) -> None:
    """Refuse a job that cannot fit.

    Raises:
        ConfigError: it does not fit into what its own file or the owner's disks allow.
        HostError: it fits, but not on this host.
    """
    short = [line for line in lines if line.verdict is Verdict.SHORT]
    if not short:
        return
    kind: type[CvmError] = HostError if all(line.host for line in short) else ConfigError
    told = "; ".join(told_line(line) for line in short)
    raise kind(f"the job does not fit: {told}", hint=short[0].remedy)


def told_line(line: Line) -> str:
    """Say what is needed and what there is, in a few words."""
    has = "unknown" if line.has is None else amount(line.has, line.unit)
    return f"{line.code} needs {amount(line.needs, line.unit)}, has {has} ({line.because})"


def amount(count: int, unit: str) -> str:
    """Write an amount for people."""
    if unit == "seconds":
        return f"{count} s" if count < 120 else f"{count // 60} min"
    if unit != "bytes":
        return f"{count} {unit.removesuffix('s') if count == 1 else unit}"
    return f"{count / (1 << 30):.1f} GiB" if count >= 10 << 30 else f"{-(-count // _MIB)} MiB"


def working_set(training: Training, weights: Weights) -> int:
    """Return the bytes that training holds at once: weights, gradients and optimiser state of what is trained, activations."""
    trained = round(weights.parameters * training.trained)
    return weights.size + trained * (_GRADIENT_BYTES + training.optimizer.state_bytes) + training.activations


def _container_memory(job: JobFile, weights: Weights) -> Line:
    limit, training = job.limits.memory_mib * _MIB, job.needs.training
    written = min(sum(output.max_bytes for output in job.outputs), job.limits.outputs_mib * _MIB)
    files = written + job.limits.scratch_mib * _MIB
    held = weights.size if training is None else working_set(training, weights)
    parts = f"{amount(files, 'bytes')} of outputs and scratch, which are memory"
    if held:
        what = "weights" if training is None else "weights, gradients, optimiser and activations"
        parts = f"{amount(held, 'bytes')} of {what}, {parts}"
    # Outputs and scratch need not fill up, and weights alone may be read piece by piece: neither is a reason to refuse.
    fits = training is None or held <= limit
    remedy = "raise resources.memory, or limits.memory"
    found = _compared("memory.container", held + files, limit, because=parts, remedy=remedy)
    return found if found.verdict is not Verdict.SHORT or not fits else _softened(found)


def _outputs(job: JobFile) -> Line:
    declared = sum(output.max_bytes for output in job.outputs)
    because = "what the outputs may be at most, all together"
    limit = job.limits.outputs_mib * _MIB
    found = _compared("outputs", declared, limit, because=because, remedy="raise limits.outputs")
    # Few outputs become as large as they may: what counts is what they are, and the guest watches that.
    return _softened(found) if found.verdict is Verdict.SHORT else _as_ok(found)


def _host_memory(job: JobFile, room: Room) -> Line:
    beside = QEMU_BYTES + (TRANSLATOR_BYTES if room.emulated else 0)
    needs = job.resources.memory_mib * _MIB + beside
    because = f"resources.memory, and {amount(beside, 'bytes')} for QEMU"
    remedy = "lower resources.memory, stop what else runs there, or use a larger host: --host"
    return _compared("memory.host", needs, room.memory, because=because, remedy=remedy, host=True)


def _processors(job: JobFile, room: Room) -> Line:
    found = _compared(
        "processors",
        job.resources.vcpus,
        room.processors,
        unit="processors",
        because="resources.vcpus",
        remedy="lower resources.vcpus, or use a larger host: --host",
        host=True,
    )
    # It runs with fewer, and slowly.
    return _softened(found) if found.verdict is Verdict.SHORT else _as_ok(found)


def _features(job: JobFile, room: Room) -> Line:
    wanted, model = job.needs.features, job.resources.cpu
    how = f"{model}, emulated" if room.emulated else model
    if room.features is None:
        return Line(
            code="cpu", verdict=Verdict.UNKNOWN, needs=len(wanted), has=None, unit="features", because=how, host=True
        )
    missing = sorted(wanted - room.features)
    because = f"{how}, lacks {', '.join(missing)}" if missing else f"{how}: {', '.join(sorted(wanted))}"
    remedy = "emulation has no AVX-512: use a host with KVM" if room.emulated else "choose another resources.cpu"
    return Line(
        code="cpu",
        verdict=Verdict.SHORT if missing else Verdict.OK,
        needs=len(wanted),
        has=len(wanted) - len(missing),
        unit="features",
        because=because,
        remedy=remedy if missing else "",
        host=True,
    )


def _asids(room: Room) -> Line:
    return _compared(
        "asids",
        1,
        room.asids,
        unit="machines",
        because="each confidential guest takes an ASID",
        remedy="stop another confidential guest there, or raise the BIOS's minimum SEV non-ES ASID",
        host=True,
    )


def _disks(disks: tuple[Disk, ...]) -> list[Line]:
    lines = []
    for device in dict.fromkeys(disk.device for disk in disks):
        shared = [disk for disk in disks if disk.device == device]
        names = ", ".join(f"{disk.name} {amount(disk.needs, 'bytes')}" for disk in shared)
        free = shared[0].free
        on_host = all(disk.host for disk in shared)
        remedy = "make room there, or set machines_dir" if on_host else "make room there, or set state_dir or --results"
        needs = sum(disk.needs for disk in shared)
        code = f"disk.{'host' if on_host else shared[0].name}"
        lines.append(_compared(code, needs, free, because=names, remedy=remedy, host=on_host))
    return lines


def _duration(pace: Pace) -> Line:
    because = f"{amount(pace.size, 'bytes')}"
    if pace.rate is None:
        return Line(
            code=f"time.{pace.name}", verdict=Verdict.UNKNOWN, needs=0, has=None, unit="seconds", because=because
        )
    because += f" at {pace.rate / _MIB:.0f} MiB/s, measured now"
    seconds = round(pace.size / pace.rate)
    return Line(code=f"time.{pace.name}", verdict=Verdict.OK, needs=seconds, has=None, unit="seconds", because=because)


def _compared(
    code: str, needs: int, has: int | None, *, because: str, remedy: str, unit: str = "bytes", host: bool = False
) -> Line:
    if has is None:
        verdict = Verdict.UNKNOWN
    elif needs > has:
        verdict = Verdict.SHORT
    else:
        verdict = Verdict.CLOSE if unit == "bytes" and needs >= CLOSE * has else Verdict.OK
    told = remedy if verdict in {Verdict.SHORT, Verdict.CLOSE} else ""
    return Line(code=code, verdict=verdict, needs=needs, has=has, unit=unit, because=because, remedy=told, host=host)


def _softened(line: Line) -> Line:
    return replace(line, verdict=Verdict.CLOSE)


def _as_ok(line: Line) -> Line:
    return line if line.verdict is Verdict.UNKNOWN else replace(line, verdict=Verdict.OK, remedy="")
