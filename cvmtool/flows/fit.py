# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""See before a run whether it fits: look at the inputs, the owner's disks and the host, and have it judged.

Zone: flows. Nothing is sealed for the job, nothing started. `cvmtool.owner.fit` decides.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path

from cvmtool.config import Settings
from cvmtool.errors import FormatError, HostError
from cvmtool.flows.doctor import view_of
from cvmtool.flows.fitsources import Sources, sealing_rate, survey_sources
from cvmtool.flows.hosts import Host, OpenHost, open_host
from cvmtool.flows.placing import artefacts
from cvmtool.flows.reporter import Reporter, Stage
from cvmtool.host.doctor.capacity import capacity, cpu_features
from cvmtool.host.doctor.facts import Asids
from cvmtool.host.doctor.source import HostView, claim
from cvmtool.host.doctor.trial import try_accelerator
from cvmtool.image.bundle import Bundle
from cvmtool.owner.fit import Disk, Line, Pace, Room, Verdict, judge_fit, require_fit, told_line
from cvmtool.owner.jobfile import JobFile
from cvmtool.owner.keystore import OwnerKeys, parse_keys

_WORTH_SEALING = 256 << 20  # bytes, from which on the time is looked at
_WORTH_SENDING = 64 << 20
_TRIAL = 4 << 20  # bytes that are sent to see how fast it goes
_MIB = 1 << 20


def refuse_unfit(
    job: JobFile,
    base: Path,
    bundle: Bundle,
    *,
    settings: Settings,
    simulated: bool,
    reporter: Reporter,
    results: Path | None = None,
    reach: OpenHost = open_host,
) -> None:
    """Refuse a job that cannot fit; say what is close. The arguments are those of `survey`, and who is told.

    Raises:
        ConfigError: the job's own numbers or the owner's disks do not suffice, or `survey` cannot read an input.
        HostError: the host's room does not suffice, or it does not answer.
    """
    with reporter.stage(Stage.FIT, "looking whether it fits"):
        lines = survey(job, base, bundle, settings=settings, simulated=simulated, results=results, reach=reach)
        require_fit(lines)
    for line in lines:
        if line.verdict is Verdict.CLOSE:
            reporter.notice(f"close: {told_line(line)}")


def survey(
    job: JobFile,
    base: Path,
    bundle: Bundle,
    *,
    settings: Settings,
    simulated: bool,
    results: Path | None = None,
    reach: OpenHost = open_host,
) -> tuple[Line, ...]:
    """Find out whether a job fits.

    Args:
        job: the job file.
        base: what its paths are relative to.
        bundle: its guest image.
        settings: where things are, and the host.
        simulated: whether it would be a dry run.
        results: where outputs would go; None means `results` below the working directory.
        reach: how a host is opened.

    Raises:
        ConfigError, FormatError, VerificationError: the container or an input cannot be read.
        HostError: the host does not answer.
    """
    keys = _keys(settings)
    host = reach(settings)
    try:
        for thorough in (False, True):
            sources = survey_sources(job, base, settings=settings, keys=keys, thorough=thorough)
            room = _room(job, sources, bundle, host, settings, simulated=simulated, results=results or Path("results"))
            lines = judge_fit(job, room)
            # Only if large inputs would not fit is it worth reading them to know whether they were sealed before.
            if not any(line.code.startswith("disk.") and line.verdict is Verdict.SHORT for line in lines):
                break
        return lines
    finally:
        host.close()


def _room(
    job: JobFile,
    sources: Sources,
    bundle: Bundle,
    host: Host,
    settings: Settings,
    *,
    simulated: bool,
    results: Path,
) -> Room:
    view = view_of(host)
    left = capacity(view, store=host.machines)
    emulator = host.hypervisor.capabilities(virt_type="qemu" if simulated else "kvm").emulator
    emulated = simulated and _emulated(host, emulator, job.resources.cpu)
    unsent = sum(item.size for item in artefacts(bundle, sources.kept).values() if not host.store.has(item))
    to_host = unsent + sources.new
    at_home = min(sum(output.max_bytes for output in job.outputs), job.limits.outputs_mib * _MIB)
    disks = (
        _own_disk("packs", settings.packs_dir, sources.new),
        _own_disk("results", results.absolute(), at_home + job.limits.log_mib * _MIB),
        Disk(
            name="machines",
            device=str(_nearest(Path(host.machines)).stat().st_dev) if host.local else host.name,
            needs=to_host + (job.checkpoint.size if job.checkpoint else 0),
            free=left.disk.value,
            host=True,
        ),
    )
    memory = left.memory.value
    return Room(
        simulated=simulated,
        emulated=emulated,
        weights=sources.weights,
        memory=None if memory is None else memory.available << 10,
        processors=left.processors.value,
        asids=_free_asids(left.asids.value),
        features=_features(job, view, emulator, emulated=emulated),
        disks=disks,
        paces=_paces(sources.to_seal, to_host, host, settings),
    )


def _keys(settings: Settings) -> OwnerKeys | None:
    """Return the owner's keys; None before their first use."""
    try:
        return parse_keys(settings.keystore.read_bytes())
    except FileNotFoundError:
        return None


def _emulated(host: Host, emulator: str, cpu: str) -> bool:
    """Say whether a dry run there is emulated, as `flows.machine` would decide, from a guest of 134 bytes."""
    if host.accelerator is not None:
        return host.accelerator != "kvm"
    return not host.local or claim("/dev/kvm", lambda: try_accelerator(emulator, "kvm", cpu)).value is None


def _features(job: JobFile, view: HostView, emulator: str, *, emulated: bool) -> frozenset[str] | None:
    if not job.needs.features:
        return None
    accelerator = "tcg" if emulated else "kvm"
    return cpu_features(view, emulator=emulator, accelerator=accelerator, model=job.resources.cpu).value


def _free_asids(asids: Asids | None) -> int | None:
    return None if asids is None or asids.used is None else max(0, asids.total - asids.used)


def _own_disk(name: str, folder: Path, needs: int) -> Disk:
    there = _nearest(folder)
    return Disk(name=name, device=str(there.stat().st_dev), needs=needs, free=shutil.disk_usage(there).free)


def _nearest(folder: Path) -> Path:
    """Return a directory that exists, and will hold `folder`."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.access(path, os.F_OK))


def _paces(to_seal: int, to_host: int, host: Host, settings: Settings) -> tuple[Pace, ...]:
    paces = []
    if to_seal >= _WORTH_SEALING:
        paces.append(Pace(name="seal", size=to_seal, rate=sealing_rate(settings)))
    if not host.local and to_host >= _WORTH_SENDING:
        paces.append(Pace(name="upload", size=to_host, rate=_sending_rate(host)))
    return tuple(paces)


def _sending_rate(host: Host) -> float | None:
    """Send 4 MiB of random bytes to a host and take them away; return bytes a second, None if it takes none."""
    target = f"{host.machines}/.trial-{secrets.token_hex(4)}"
    with tempfile.NamedTemporaryFile() as source:
        source.write(os.urandom(_TRIAL))
        source.flush()
        try:
            host.files.make_dir(host.machines)
            begun = time.monotonic()
            host.files.append(Path(source.name), target, start=0, progress=lambda _done, _all: None)
            rate = _TRIAL / (time.monotonic() - begun)
            host.files.remove(target)
        except (HostError, FormatError):
            return None
    return rate
