# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Runs that outlive the command that began them: a supervisor, a process of its own session, carries each out from its record.

Zone: flows (owner's machine). One of the doors to subprocess. A supervisor is told which run, and inherits the descriptor by
which that is held; all else is in the run's record, and nothing secret is on its command line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cvmtool.config import Settings
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows.attempts import MAX_ATTEMPTS
from cvmtool.flows.consents import require_exchange
from cvmtool.flows.decisions import Gate
from cvmtool.flows.hosts import Host, open_host
from cvmtool.flows.jobevents import Recorder
from cvmtool.flows.jobplan import Plan, keep_plan, load_plan
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import JobDir
from cvmtool.flows.launch import Site
from cvmtool.flows.lifeline import Effort, presence
from cvmtool.flows.machine import Machine, destroy_machine
from cvmtool.flows.prepare import Prepared
from cvmtool.flows.records import forget_record, load_record
from cvmtool.flows.reporter import Reporter
from cvmtool.flows.run import Run, TrainResult
from cvmtool.flows.train import assemble, begin, conduct, enlist, keeper_of, note_failure, run_policy
from cvmtool.host.hypervisor import MachineState
from cvmtool.owner.policy import Policy

SUPERVISOR_FILE = "supervisor.log"  # what a supervisor of the run had to say; a bug's traceback
READY = b"ready\n"
_MODULE = "cvmtool.cli.supervisor"
_ALIVE = frozenset({MachineState.RUNNING, MachineState.PAUSED, MachineState.NO_ROOM})
_RESUMABLE = frozenset({JobState.FAILED, JobState.INTERRUPTED, JobState.LOST})


def send_off(run: Run, prepared: Prepared) -> None:
    """Have a supervisor carry out a run that this process put on record.

    Raises:
        RulesError: the rules forbid it (an AppraisalError).
        HostError: the supervisor did not begin; the run has failed.
    """
    try:
        run.gate.launch(run.job, prepared.bundle, run.challenge.policy)
    except BaseException as error:
        note_failure(run.job, run.timed.reporter, error)
        raise
    _detach(run.job, run.timed.reporter)


def _detach(job: JobDir, recorder: Recorder) -> None:
    path = job.path / SUPERVISOR_FILE
    try:
        said = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            # It inherits the descriptor that holds the run: no moment passes in which nobody does. -P: what lies in the
            # working directory is no module of ours.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, job.record.id, str(job.lock)],
                pass_fds=(job.lock,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
            )
        finally:
            os.close(said)
    except BaseException as error:
        note_failure(job, recorder, error)
        raise
    with process.stdout or open(os.devnull, "rb") as answer:  # noqa: PTH123 - a pipe, as was asked for
        ready = answer.readline() == READY
    job.let_go()
    if ready:
        return
    process.wait()
    job.reread()
    raise HostError(
        f"the supervisor of job {job.record.id} did not begin", detail=job.record.error, hint=f"it says why in {path}"
    )


def put_on_record(
    prepared: Prepared, plan: Plan, policy: Policy | None, *, settings: Settings, reporter: Reporter, gate: Gate
) -> Run:
    """Put a run on record with all that it needs, so that any process can carry it out. This one holds it.

    Raises:
        ConfigError: the results cannot be written where they shall go, a dry run is asked for GPUs, or as `require_exchange`.
    """
    require_exchange(prepared.file, plan.exchange)
    platform = plan.platform(settings)
    policy = policy or run_policy(prepared, platform)
    job = enlist(prepared, policy, platform, settings=settings, reporter=reporter, results=plan.results)
    plan = replace(plan, results=plan.results or Path("results") / job.record.id)
    keep_plan(job, plan, prepared)
    return _run(job, prepared, plan, policy, settings=settings, reporter=reporter, gate=gate)


def _run(
    job: JobDir,
    prepared: Prepared,
    plan: Plan,
    policy: Policy,
    *,
    settings: Settings,
    reporter: Reporter | None,
    gate: Gate,
) -> Run:
    return assemble(
        job,
        prepared,
        policy=policy,
        platform=plan.platform(settings),
        gate=gate,
        settings=settings,
        reporter=reporter,
        results=plan.results,
        boot_seconds=plan.boot_seconds,
        exchange=plan.exchange,
    )


def carry_out(run: Run, prepared: Prepared, plan: Plan, settings: Settings) -> TrainResult:
    """Take a run to its end in this process: with its machine, if an earlier process left that running.

    Raises:
        CvmError: as `conduct`.
    """
    known = load_record(settings.records_dir, run.job.record.machine)
    here = replace(settings, host=known.host if known else plan.host)
    run = replace(run, keeper=keeper_of(prepared, here))
    effort = Effort(restart=prepared.file.restart, attempts=len(run.job.record.attempts) + MAX_ATTEMPTS)
    return conduct(run, lambda: _machine(run, prepared, here, plan.site), effort, here)


def resume(job: JobDir, settings: Settings) -> int:
    """Have a supervisor take a run up again: with its machine if that still runs, else from its beginning, with the same manifest.

    Returns:
        The number of the last event there was before.

    Raises:
        ConfigError: it runs, is done, was refused, or a part of what it needs is gone.
        HostError: the supervisor did not begin.
    """
    require_resumable(job)
    load_plan(job, settings)
    job.hold()
    events = job.database.events(job.record.id)
    recorder = Recorder(job.database, job.record.id, None)
    recorder.notice("taken up again")
    _detach(job, recorder)
    return events[-1][0] if events else -1


def require_resumable(job: JobDir) -> None:
    """Check that a run can be taken up again.

    Raises:
        ConfigError: it cannot.
    """
    record = job.record
    if record.state is JobState.RUNNING:
        raise ConfigError(f"job {record.id} is running", hint=f"cvmtool jobs attach {record.id}")
    if record.state not in _RESUMABLE:
        raise ConfigError(
            f"job {record.id} is {record.state}; one that {', '.join(sorted(_RESUMABLE))} is required",
            hint=f"cvmtool jobs show {record.id}",
        )


def supervise(job: JobDir, settings: Settings, *, ready: Callable[[], None]) -> None:
    """Carry out a run that this process holds, from its plan. `ready` is called when nothing is missing.

    Raises:
        CvmError: as `conduct`; the record has it.
    """
    try:
        plan, prepared, policy = load_plan(job, settings)
        gate = plan.gate(settings)
        gate.ingest(prepared.file, prepared.headers)
        gate.seal(prepared.manifest, prepared.headers)
        run = _run(job, prepared, plan, policy, settings=settings, reporter=None, gate=gate)
    except BaseException as error:
        note_failure(job, Recorder(job.database, job.record.id, None), error)
        raise
    ready()
    carry_out(run, prepared, plan, settings)


def _machine(run: Run, prepared: Prepared, settings: Settings, site: Site) -> Machine:
    """Return the run's machine: the one that still runs, or a new one."""
    job = run.job
    name = job.record.machine
    known = load_record(settings.records_dir, name)
    if known is not None:

        def reopen() -> Host:
            return replace(open_host(settings), machines=known.machines)

        host = reopen()
        if presence(host, name) in _ALIVE and job.record.attempts:
            job.record.attempts[-1].ended = job.record.attempts[-1].cause = None
            run.timed.reporter.notice(f"{name} still runs; going on with it")
            return Machine(
                name=name,
                host=host,
                launch=prepared.launch(run.platform.mode, site, run.keeper.disks()),
                started=time.monotonic(),
                reopen=reopen,
                forget=lambda: forget_record(settings.records_dir, name),
                notice=run.timed.reporter.notice,
            )
        host.close()
        destroy_machine(name, settings)
        if job.record.attempts and job.record.attempts[-1].ended is None:
            job.record.attempts[-1].end("its machine was gone when the run was taken up again")
    return begin(run, prepared, settings=settings, site=site)
