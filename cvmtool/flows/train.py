# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Train: from a job file to a model and a receipt. Reads as the how-to.

Zone: flows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cvmtool.config import Settings, write_atomic
from cvmtool.errors import (
    AppraisalError,
    CvmError,
    FormatError,
    FreshnessError,
    HostError,
    JobError,
    VerificationError,
)
from cvmtool.flows.attach import Attached, Challenge, attach
from cvmtool.flows.attempts import Attempt, SessionNote, now
from cvmtool.flows.decisions import Gate
from cvmtool.flows.gpu import GPU_EVIDENCE_FILE, refuse_gpus_in_a_dry_run
from cvmtool.flows.hosts import OpenHost, open_host
from cvmtool.flows.joblog import JobLog
from cvmtool.flows.jobs import (
    EVIDENCE_FILE,
    JOB_FILE,
    LOG_FILE,
    MANIFEST_FILE,
    OUTPUTS_DIR,
    POLICY_FILE,
    RECEIPT_FILE,
    VERDICT_FILE,
    JobDir,
    JobState,
)
from cvmtool.flows.launch import Site
from cvmtool.flows.lifeline import Effort, Lifeline, OtherBootError
from cvmtool.flows.machine import Machine, restart_machine, start_machine
from cvmtool.flows.platform import Platform
from cvmtool.flows.prepare import Prepared
from cvmtool.flows.reporter import Reporter, Stage
from cvmtool.flows.results import Fetched, Outcome, bring_home, check_room, read_outcome
from cvmtool.formats.control import ControlError, Op
from cvmtool.formats.control import Stage as ControlStage
from cvmtool.formats.idblock import P384Key
from cvmtool.formats.job import JobManifest
from cvmtool.formats.machine import Manifest
from cvmtool.formats.release import Secrets
from cvmtool.formats.wire import to_base64
from cvmtool.host.channel import AgentChannel, GuestError
from cvmtool.image.bundle import Bundle
from cvmtool.owner.gpu import VerifiedGpus
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.launchsign import public_key
from cvmtool.owner.policy import IdBlock, Policy, Rule, baseline
from cvmtool.owner.policyfile import encode_policy
from cvmtool.owner.receipts import verify_receipt
from cvmtool.owner.seal import seal

_CAUSES = {
    "timeout": " (limits.time was reached)",
    "memory": " (limits.memory was reached)",
    "runtime": " (it could not be started)",
}
_GRACE_SECONDS = 300.0
BOOT_SECONDS = 300.0  # a busy machine under emulation; a refusal by the firmware is noticed much sooner


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run brought home."""

    job: JobDir
    outcome: Outcome
    outputs: tuple[Fetched, ...]
    folder: Path


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

    Raises:
        AppraisalError, VerificationError, FreshnessError: the guest is not trusted; no key was released.
        RulesError: the rules forbid it (an AppraisalError).
        JobError: the container failed, or declared outputs are missing.
        HostError: the host let us down.
        ConfigError: the results cannot be written where they shall go.
    """
    manifest = prepared.manifest
    if platform.roots.simulated:
        refuse_gpus_in_a_dry_run(manifest)
    check_room(results or Path("results"), manifest, reporter)
    id_key = public_key(prepared.keys.launch_key())
    policy = policy or job_policy(prepared.bundle, manifest, platform, id_key=id_key, smt=prepared.file.smt)
    job = JobDir.create(settings.jobs_dir, manifest.name, simulated=platform.roots.simulated)
    timed = _Timed(reporter, job)
    gate = gate or Gate(None, settings.jobs_dir, simulated=platform.roots.simulated)
    try:
        job.write(JOB_FILE, prepared.file.text.encode("utf-8"))
        job.write(MANIFEST_FILE, manifest.encode())
        job.write(POLICY_FILE, encode_policy(policy).encode("utf-8"))
        gate.launch(job, prepared.bundle, policy)
        job.record.attempts.append(Attempt(started=now()))
        with ExitStack() as cleanup:
            with timed.stage(Stage.START, "starting the machine"):
                machine = start_machine(
                    job.record.machine,
                    prepared.launch(platform.mode, site),
                    settings=settings,
                    reporter=reporter,
                    open_host=open_host,
                )
                lifeline = _lifeline(machine, effort or Effort(restart=prepared.file.restart), job, settings, timed)
                cleanup.callback(lifeline.remove)
            challenge = Challenge(
                keys=prepared.keys,
                manifest=manifest,
                policy=policy,
                cases_dir=settings.cases_dir,
                boot_seconds=boot_seconds,
            )
            log = JobLog(job, reporter)
            result = lifeline.hold(
                lambda machine: _run(machine, challenge, platform, gate=gate, log=log, timed=timed, results=results)
            )
    except BaseException as error:
        job.finish(_state_of(error), error=_message_of(error))
        raise
    job.finish(JobState.DONE, exit_code=result.outcome.exit_code)
    return result


def _lifeline(machine: Machine, effort: Effort, job: JobDir, settings: Settings, timed: _Timed) -> Lifeline:
    def start_again(gone: Machine) -> Machine:
        with timed.stage(Stage.START, "starting the machine again"):
            return restart_machine(gone, settings=settings, reporter=timed.reporter)

    return Lifeline(machine, effort, start_again=start_again, attempts=job.record.attempts, save=job.save)


def _run(
    machine: Machine,
    challenge: Challenge[JobManifest],
    platform: Platform,
    *,
    gate: Gate,
    log: JobLog,
    timed: _Timed,
    results: Path | None,
) -> TrainResult:
    """Go from wherever the guest is to the results: at first from its boot, after a lost connection from where it has come to."""
    job, manifest = log.job, challenge.manifest
    with attach(machine, challenge, platform, stage=timed.stage) as attached:
        job.write(EVIDENCE_FILE, attached.evidence.encode())
        job.write(VERDICT_FILE, verdict_document(attached))
        note, stage = _enter(attached, job)
        timed.reporter.verdict(attached.guest)
        channel = attached.channel
        with timed.stage(Stage.UNLOCK, "releasing the keys"):
            if stage is ControlStage.WAITING:
                configure(attached, manifest)
            if stage in {ControlStage.WAITING, ControlStage.CONFIGURED}:
                gate.release(attached.guest)
                gpus = platform.verify_gpus(
                    channel, attached.guest, manifest, keep=lambda shown: job.write(GPU_EVIDENCE_FILE, shown)
                )
                note.released = True
                job.save()  # before they are on their way
                release_keys(attached, challenge.keys, manifest, gpus=gpus)
        with timed.stage(Stage.TRAIN, "training"):
            channel.request(Op.RUN)
            # The guest ends the container at its limit; a guest that says nothing long after that says nothing any more.
            silence = manifest.limits.seconds + _GRACE_SECONDS
            log.follow(channel.stream(Op.LOGS, offset=log.begin(), silence_seconds=silence))
        with timed.stage(Stage.RESULTS, "fetching results"):
            _await_outputs(channel)
            outcome = _results(channel, manifest)
            _check_log(job, outcome)
            receipt = verify_receipt(outcome.receipt, challenge.policy, datetime.now(UTC))
            _check_receipt(receipt.statement.outputs, outcome)
            pretty = json.dumps(json.loads(outcome.receipt), indent=1).encode("utf-8") + b"\n"
            job.write(RECEIPT_FILE, pretty)
            gate.export(receipt)
            folder, outputs = bring_home(
                channel,
                outcome,
                results or Path("results") / job.record.id,
                rescue=job.path / OUTPUTS_DIR,
                reporter=timed.reporter,
            )
            write_atomic(folder / RECEIPT_FILE, pretty, mode=0o644)
            job.record.results = str(folder.resolve())
        with suppress(HostError):  # all that matters is at home, and the machine is taken away in any case
            channel.request(Op.POWEROFF)
            machine.wait_off()
    if outcome.exit_code != 0:
        raise _container_failed(outcome, job)
    if outcome.refused:
        listed = "; ".join(f"{name}: {reason}" for name, reason in outcome.refused)
        raise JobError(
            f"{len(outcome.refused)} declared outputs did not leave the guest: {listed}",
            hint=f"what did is in {folder}; cvmtool jobs logs {job.record.id}",
        )
    return TrainResult(job=job, outcome=outcome, outputs=outputs, folder=folder)


def _enter(attached: Attached, job: JobDir) -> tuple[SessionNote, ControlStage]:
    """Note a session in the record; return it, and how far the guest has come.

    Raises:
        OtherBootError: it is not the guest that this launch began with; nothing was sent to it.
    """
    sessions = job.record.attempts[-1].sessions
    note = SessionNote(nonce=attached.nonce.hex(), boot=attached.evidence.hpke_key.hex())
    known = {session.boot for session in sessions}
    sessions.append(note)
    job.save()
    if not known:
        return note, ControlStage.WAITING
    if note.boot not in known:
        raise OtherBootError("its host started it again, unasked")
    return note, agent_stage(attached.channel)


def agent_stage(channel: AgentChannel) -> ControlStage:
    """Ask a guest how far it has come.

    Raises:
        HostError: the connection broke.
        FormatError: the answer is malformed.
    """
    stage = channel.request(Op.STATUS).get("stage")
    try:
        return ControlStage(str(stage))
    except ValueError as error:
        raise FormatError(
            f"status.stage is {str(stage)[:32]!r}; one of {', '.join(ControlStage)} is required"
        ) from error


def configure(attached: Attached, manifest: JobManifest) -> None:
    """Hand the guest its job, and the certificates that its receipt is to carry so that it verifies offline."""
    certificates = to_base64(attached.evidence.cert_table)
    attached.channel.request(Op.CONFIGURE, manifest=to_base64(manifest.encode()), certificates=certificates)


def release_keys(
    attached: Attached, keys: OwnerKeys, manifest: JobManifest, *, gpus: VerifiedGpus | None = None
) -> None:
    """Seal every pack's passphrase to the verified guest, and its `gpus` if it wants any; turn what it finds into a verdict.

    Raises:
        VerificationError: a disk is not the pack that the manifest pins; the guest did not open it.
        GuestError: the guest could not open a pack for another reason.
    """
    packs = {pack.root_hash: keys.pack_passphrase(pack.luks_uuid) for pack in manifest.packs}
    sealed = seal(attached.guest, Secrets(packs=packs), manifest=manifest, gpus=gpus)
    try:
        attached.channel.request(Op.RELEASE, sealed=to_base64(sealed))
    except GuestError as error:
        raise _pack_changed(error) or error from error


def _pack_changed(error: GuestError) -> VerificationError | None:
    """Return the owner's verdict if what the guest met is a disk that the host changed."""
    if error.error not in (ControlError.PACK_INTEGRITY, ControlError.PACK_HEADER):
        return None
    return VerificationError(
        f"pack {error.pack or 'unknown'}: {error.error}: its blocks are not those that the job manifest pins",
        detail=error.detail,
        hint="the host changed a disk, or its copy is damaged; nothing was made of it",
    )


def _results(channel: AgentChannel, manifest: JobManifest) -> Outcome:
    try:
        return read_outcome(channel.request(Op.RESULTS), manifest)
    except GuestError as error:
        raise _pack_changed(error) or error from error


def _await_outputs(channel: AgentChannel) -> None:
    """Wait while the guest checks and hashes what the container left; the log ends before that does."""
    while agent_stage(channel) is not ControlStage.DONE:
        time.sleep(0.2)


def _check_log(job: JobDir, outcome: Outcome) -> None:
    data = (job.path / LOG_FILE).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if len(data) != outcome.log_size or digest != outcome.log_sha256:
        raise FormatError(
            f"the log is {len(data)} bytes of sha256:{digest}; the guest announced {outcome.log_size} bytes of "
            f"sha256:{outcome.log_sha256}"
        )


def _check_receipt(subjects: Sequence[object], outcome: Outcome) -> None:
    named = {(getattr(item, "name", ""), getattr(item, "size", -1), getattr(item, "sha256", "")) for item in subjects}
    if named != set(outcome.outputs):
        raise VerificationError("the receipt names other outputs than the guest delivered")


def _container_failed(outcome: Outcome, job: JobDir) -> JobError:
    error = JobError(
        f"the container ended with exit code {outcome.exit_code}{_CAUSES.get(outcome.cause, '')}; 0 is required",
        hint=f"its output: cvmtool jobs logs {job.record.id}",
    )
    job.record.exit_code = outcome.exit_code
    return error


def verdict_document(attached: Attached) -> bytes:
    """Return what is kept of a verdict: JSON."""
    guest = attached.guest
    verdict = {
        "schema": "cvmtool/verdict/v1",
        "simulated": guest.simulated,
        "nonce": attached.nonce.hex(),
        "checks": [check.to_json() for check in guest.checks],
        "unchecked": list(guest.unchecked),
    }
    return json.dumps(verdict, indent=1).encode("utf-8") + b"\n"


def _state_of(error: BaseException) -> JobState:
    if isinstance(error, KeyboardInterrupt):
        return JobState.INTERRUPTED
    refused = (AppraisalError, VerificationError, FreshnessError)
    return JobState.REFUSED if isinstance(error, refused) else JobState.FAILED


def _message_of(error: BaseException) -> str:
    return error.message if isinstance(error, CvmError) else type(error).__name__


class _Timed:
    """Reports stages and keeps their durations in the job's record."""

    def __init__(self, reporter: Reporter, job: JobDir) -> None:
        self.reporter = reporter
        self._job = job

    @contextmanager
    def stage(self, stage: Stage, text: str) -> Iterator[None]:
        begun = time.monotonic()
        with self.reporter.stage(stage, text):
            yield
        before = self._job.record.stages.get(stage.value, 0.0)  # of an earlier attempt
        self._job.record.stages[stage.value] = round(before + time.monotonic() - begun, 3)
        self._job.save()
