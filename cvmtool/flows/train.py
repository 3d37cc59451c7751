# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Train: from a job file to a model and a receipt. Reads as the how-to.

Zone: flows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cvmtool.config import Settings
from cvmtool.errors import (
    AppraisalError,
    CvmError,
    FreshnessError,
    VerificationError,
)
from cvmtool.flows.attach import Challenge
from cvmtool.flows.attempts import Attempt, now
from cvmtool.flows.consents import Consents
from cvmtool.flows.decisions import Gate
from cvmtool.flows.exchange import exchange_of
from cvmtool.flows.gpu import refuse_gpus_in_a_dry_run
from cvmtool.flows.hosts import OpenHost, open_host
from cvmtool.flows.jobevents import Recorder
from cvmtool.flows.joblog import JobLog
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import (
    JOB_FILE,
    MANIFEST_FILE,
    POLICY_FILE,
    JobDir,
)
from cvmtool.flows.keeper import Keeper
from cvmtool.flows.launch import Site
from cvmtool.flows.lifeline import Effort, Lifeline
from cvmtool.flows.machine import Machine, restart_machine, start_machine
from cvmtool.flows.platform import Platform
from cvmtool.flows.prepare import Prepared
from cvmtool.flows.reporter import Reporter, Stage
from cvmtool.flows.results import check_room
from cvmtool.flows.run import Run, Timed, TrainResult
from cvmtool.formats.exchange import PooledJob
from cvmtool.formats.idblock import P384Key
from cvmtool.formats.machine import Manifest
from cvmtool.image.bundle import Bundle
from cvmtool.owner.amdroots import SimulatedRoot
from cvmtool.owner.launchsign import public_key
from cvmtool.owner.policy import IdBlock, Policy, Rule, baseline
from cvmtool.owner.policyfile import encode_policy

BOOT_SECONDS = 300.0  # a busy machine under emulation; a refusal by the firmware is noticed much sooner


def job_policy(
    bundle: Bundle, manifest: Manifest, platform: Platform, *, id_key: P384Key | None = None, smt: bool = True
) -> Policy:
    """Return what a run is judged by: the same baseline on hardware and in a dry run, with the platform's own root.

    `id_key`: who must have signed the launch; None leaves it open. `smt`: whether the host may have SMT on.

    Raises:
        FormatError: the image has no launch digest for the job's CPU model and count.
    """
    resources = manifest.resources
    digest = bundle.manifest.launch_digest(platform.mode, resources.cpu, resources.vcpus)
    policy = baseline(
        roots=platform.roots,
        measurements=frozenset({digest}),
        host_data=frozenset({manifest.host_data}),
    )
    if id_key is not None:
        signer = IdBlock(id_keys=frozenset({id_key.digest}), author_keys=frozenset(), min_guest_svn=0)
        policy = replace(policy, id_block=signer)
    if not smt:
        policy = replace(policy, guest_policy={**policy.guest_policy, "smt": Rule.FORBIDDEN})
    return policy


def train(
    prepared: Prepared,
    *,
    platform: Platform,
    settings: Settings,
    reporter: Reporter,
    policy: Policy | None = None,
    results: Path | None = None,
    boot_seconds: float = BOOT_SECONDS,
    site: Site | None = None,
    open_host: OpenHost = open_host,
    effort: Effort | None = None,
    gate: Gate | None = None,
    exchange: Path | None = None,
) -> TrainResult:
    """Run a prepared job and bring its results home. Whatever happens, the machine is gone afterwards.

    Args:
        prepared: the job.
        platform: SEV-SNP, or the simulation of a dry run.
        settings: where things are.
        reporter: who is told.
        policy: what is acceptable; None means `job_policy`.
        results: where the outputs go; None means `results/JOB-ID` below the working directory.
        boot_seconds: how long the guest may take to answer.
        site: which parts of the host it gets; None leaves that to the host.
        open_host: opens the host (a test's hostile one).
        effort: how much is tried when the host fails; None means what the job file says.
        gate: the rules of the run; None means none.
        exchange: where the parties of the job are met; None if there are none.

    Raises:
        ConsentError: a party refuses (an AppraisalError).
        AppraisalError, VerificationError, FreshnessError: the guest is not trusted; no key was released.
        RulesError: the rules forbid it (an AppraisalError).
        JobError: the container failed, or declared outputs are missing.
        HostError: the host let us down.
        ConfigError: the results cannot be written where they shall go.
    """
    policy = policy or run_policy(prepared, platform)
    job = enlist(prepared, policy, platform, settings=settings, reporter=reporter, results=results)
    run = assemble(
        job,
        prepared,
        policy=policy,
        platform=platform,
        gate=gate or Gate((), settings.jobs_dir, simulated=platform.roots.simulated),
        settings=settings,
        reporter=reporter,
        results=results,
        boot_seconds=boot_seconds,
        open_host=open_host,
        exchange=exchange,
    )

    def launch() -> Machine:
        return begin(run, prepared, settings=settings, site=site, open_host=open_host)

    return conduct(run, launch, effort or Effort(restart=prepared.file.restart), settings)


def assemble(
    job: JobDir,
    prepared: Prepared,
    *,
    policy: Policy,
    platform: Platform,
    gate: Gate,
    settings: Settings,
    reporter: Reporter | None,
    results: Path | None,
    boot_seconds: float = BOOT_SECONDS,
    open_host: OpenHost = open_host,
    exchange: Path | None = None,
) -> Run:
    """Bring together what each session of a run needs. `reporter`: who is told besides the run's record; the rest: as `train`."""
    recorder = Recorder(job.database, job.record.id, reporter)
    return Run(
        challenge=Challenge(
            keys=prepared.keys,
            manifest=prepared.manifest,
            policy=policy,
            cases_dir=settings.cases_dir,
            boot_seconds=boot_seconds,
        ),
        platform=platform,
        gate=gate,
        log=JobLog(job, recorder),
        timed=Timed(recorder, job),
        keeper=keeper_of(prepared, settings, open_host),
        results=results or Path("results") / job.record.id,
        consents=_consents(job, prepared, recorder, exchange),
    )


def _consents(job: JobDir, prepared: Prepared, recorder: Recorder, folder: Path | None) -> Consents | None:
    if folder is None:
        return None
    pooled = PooledJob(manifest=prepared.manifest, names=prepared.file.parties)
    return Consents(exchange=exchange_of(folder, prepared.manifest), pooled=pooled, job=job, step=recorder.step)


def begin(
    run: Run, prepared: Prepared, *, settings: Settings, site: Site | None, open_host: OpenHost = open_host
) -> Machine:
    """Start a machine for a run: another attempt of it.

    Raises:
        RulesError: the rules forbid it (an AppraisalError).
        ConsentError: a party refuses (an AppraisalError).
        HostError: the host cannot.
    """
    job = run.job
    run.gate.launch(job, prepared.bundle, run.challenge.policy)
    if run.consents is not None:
        roots = run.platform.roots
        if isinstance(roots, SimulatedRoot):
            run.timed.reporter.notice(f"in this dry run the parties need --simulated-root {roots.fingerprint.hex()}")
        with run.timed.stage(Stage.CONSENT, "asking the other owners"):
            run.consents.ask()
    job.record.attempts.append(Attempt(started=now()))
    with run.timed.stage(Stage.START, "starting the machine"):
        volumes = run.keeper.make(job.record.machine)
        return start_machine(
            job.record.machine,
            prepared.launch(run.platform.mode, site, volumes),
            settings=settings,
            reporter=run.timed.reporter,
            open_host=open_host,
        )


def keeper_of(prepared: Prepared, settings: Settings, open_host: OpenHost = open_host) -> Keeper:
    """Return who keeps the checkpoints of a job, if it makes any."""
    wish = prepared.file.checkpoint
    return Keeper(prepared.manifest, settings, every_seconds=wish.every_seconds if wish else 0, open_host=open_host)


def run_policy(prepared: Prepared, platform: Platform) -> Policy:
    """Return what a prepared job is judged by if its owner says nothing else.

    Raises:
        FormatError: as `job_policy`.
    """
    id_key = public_key(prepared.keys.launch_key())
    return job_policy(prepared.bundle, prepared.manifest, platform, id_key=id_key, smt=prepared.file.smt)


def enlist(
    prepared: Prepared,
    policy: Policy,
    platform: Platform,
    *,
    settings: Settings,
    reporter: Reporter,
    results: Path | None,
) -> JobDir:
    """Make the record of a run that is about to begin; this process holds it.

    Raises:
        ConfigError: the results cannot be written where they shall go, or a dry run is asked for GPUs.
    """
    check_room(results or Path("results"), prepared.manifest, reporter)
    if platform.roots.simulated:
        refuse_gpus_in_a_dry_run(prepared.manifest.resources.gpus)
    job = JobDir.create(settings.jobs_dir, prepared.manifest.name, simulated=platform.roots.simulated)
    job.write(JOB_FILE, prepared.file.text.encode("utf-8"))
    job.write(MANIFEST_FILE, prepared.manifest.encode())
    job.write(POLICY_FILE, encode_policy(policy).encode("utf-8"))
    return job


def conduct(run: Run, launch: Callable[[], Machine], effort: Effort, settings: Settings) -> TrainResult:
    """Take a run to its end, and note in its record how it ended. Whatever happens, the machine is gone afterwards.

    `launch` starts its machine.

    Raises:
        CvmError: as `train`.
    """
    job = run.job
    try:
        with ExitStack() as cleanup:
            if run.consents is not None:
                cleanup.callback(run.consents.close)
            lifeline = _lifeline(launch(), effort, run.timed, settings)
            cleanup.callback(lifeline.remove)
            result = lifeline.hold(run.through)
    except BaseException as error:
        note_failure(job, run.timed.reporter, error)
        run.keeper.settle(done=False, notice=run.timed.reporter.notice)
        raise
    run.keeper.settle(done=True, notice=run.timed.reporter.notice)
    run.timed.reporter.ended(None)
    job.finish(JobState.DONE, exit_code=result.outcome.exit_code)
    return result


def _lifeline(machine: Machine, effort: Effort, timed: Timed, settings: Settings) -> Lifeline:
    def start_again(gone: Machine) -> Machine:
        with timed.stage(Stage.START, "starting the machine again"):
            return restart_machine(gone, settings=settings, reporter=timed.reporter)

    job = timed.job
    return Lifeline(machine, effort, start_again=start_again, attempts=job.record.attempts, save=job.save)


def note_failure(job: JobDir, recorder: Recorder, error: BaseException) -> None:
    """Note in a run's record that it ended with an error; it is held no more."""
    recorder.ended(error)
    job.finish(_state_of(error), error=_message_of(error))


def _state_of(error: BaseException) -> JobState:
    if isinstance(error, KeyboardInterrupt):
        return JobState.INTERRUPTED
    refused = (AppraisalError, VerificationError, FreshnessError)
    return JobState.REFUSED if isinstance(error, refused) else JobState.FAILED


def _message_of(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "ended by its owner"
    return error.message if isinstance(error, CvmError) else type(error).__name__
