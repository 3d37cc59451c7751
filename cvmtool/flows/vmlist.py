# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Every machine of an owner, of jobs and without, and how it stands.

Zone: flows. Each host is asked once. What it says is a claim; `cvmtool.flows.vmstate` weighs it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from cvmtool.config import Settings
from cvmtool.errors import CvmError, HostError
from cvmtool.flows.hosts import Host, open_host
from cvmtool.flows.jobrecord import JobRecord, JobState
from cvmtool.flows.jobs import load_jobs
from cvmtool.flows.lifeline import presence
from cvmtool.flows.records import MachineRecord, load_record, process_lives, records
from cvmtool.flows.reporter import Stage
from cvmtool.flows.vmrecords import VmDir, load_vms
from cvmtool.flows.vmstate import Claim, Milestone, Standing, standing
from cvmtool.formats.control import Stage as AgentStage
from cvmtool.host.embedded import embedded_root, qemu_lives
from cvmtool.host.files import LocalFiles
from cvmtool.host.hypervisor import MachineState
from cvmtool.host.storage import MachineDir, stage_words

_CLAIMS = {
    MachineState.RUNNING: Claim.RUNNING,
    MachineState.PAUSED: Claim.PAUSED,
    MachineState.NO_ROOM: Claim.NO_ROOM,
    MachineState.STOPPED: Claim.STOPPED,
    MachineState.CRASHED: Claim.CRASHED,
    None: Claim.UNKNOWN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A machine as `vm list` shows it."""

    name: str
    kind: str
    """`vm` or `job`."""
    standing: Standing
    job: str
    """The job's name; of a machine without one, its image's."""
    stage: str
    """The last stage word on its console: the host's claim."""
    uri: str
    simulated: bool


def list_machines(settings: Settings) -> list[Listed]:
    """Return every machine on record, by name."""
    hosts = _Hosts(settings)
    vms = {folder.record.name: folder for folder in load_vms(settings.vms_dir)}
    jobs = {job.record.machine: job.record for job in load_jobs(settings.jobs_dir)}
    try:
        placed = {record.name: record for record in records(settings.records_dir)}
        return [
            _listed(name, placed.get(name), vms.get(name), jobs.get(name), hosts) for name in sorted({*placed, *vms})
        ]
    finally:
        hosts.close()


def stand(folder: VmDir, settings: Settings, *, agent: AgentStage | None = None) -> Listed:
    """Return how one machine without a job stands. `agent`: what it has just said in an attested session."""
    name = folder.record.name
    hosts = _Hosts(settings)
    try:
        return _listed(name, load_record(settings.records_dir, name), folder, None, hosts, agent=agent)
    finally:
        hosts.close()


class _Hosts:
    """Hosts by name, each opened once; one that does not answer is not asked again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._open: dict[str, Host | None] = {}

    def ask(self, record: MachineRecord) -> tuple[Claim, tuple[str, ...]]:
        """Return what a machine's host says, and the stage words on its console."""
        root = embedded_root(record.uri)
        if root is not None:
            # One process at a time can open that libvirt, and it need not be this one.
            lives = qemu_lives(root, record.name)
            gone = Claim.STOPPED if root.exists() else Claim.UNKNOWN
            return Claim.UNASKED if lives else gone, _words(MachineDir(LocalFiles(), record.machines, record.name))
        host = self._host(record.host)
        if host is None:
            return Claim.SILENT, ()
        try:
            claim = _CLAIMS[presence(host, record.name)]
        except HostError:
            return Claim.SILENT, ()
        return claim, _words(MachineDir(host.files, record.machines, record.name))

    def _host(self, name: str) -> Host | None:
        if name not in self._open:
            self._open[name] = None
            with suppress(CvmError):
                self._open[name] = open_host(replace(self._settings, host=name))
        return self._open[name]

    def close(self) -> None:
        """Disconnect from all of them."""
        for host in self._open.values():
            if host is not None:
                host.close()


def _words(directory: MachineDir) -> tuple[str, ...]:
    return tuple(stage_words(directory.read_console()))


def _listed(
    name: str,
    placed: MachineRecord | None,
    vm: VmDir | None,
    job: JobRecord | None,
    hosts: _Hosts,
    *,
    agent: AgentStage | None = None,
) -> Listed:
    milestone = vm.record.milestone if vm else _milestone_of(job)
    # Without a record of its place nothing was ever made on a host.
    claim, words = hosts.ask(placed) if placed else (Claim.STOPPED, ())
    found = standing(milestone, claim, words, agent)
    if vm is None and placed is not None and job is not None and job.state is JobState.LOST:
        found = replace(found, evidence=f"{found.evidence}; the process that ran its job was killed")
    elif vm is None and job is None and placed is not None and not process_lives(placed.pid):
        found = replace(found, evidence=f"{found.evidence}; the process that started it is gone")
    return Listed(
        name=name,
        kind="vm" if vm else "job",
        standing=found,
        job=vm.record.image if vm else placed.job if placed else "",
        stage=words[-1].partition(" ")[2] if words else "none",
        uri=placed.uri if placed else vm.record.host if vm else "",
        simulated=vm.record.simulated if vm else job.simulated if job else True,
    )


def _milestone_of(job: JobRecord | None) -> Milestone:
    """Return how far a job came, by its record."""
    if job is None:
        return Milestone.STARTED
    if job.state is JobState.REFUSED:
        return Milestone.REFUSED
    if job.state is JobState.DONE:
        return Milestone.DONE
    reached = ((Stage.UNLOCK, Milestone.RUNNING), (Stage.ATTEST, Milestone.ATTESTED))
    return next((milestone for stage, milestone in reached if stage.value in job.stages), Milestone.STARTED)
