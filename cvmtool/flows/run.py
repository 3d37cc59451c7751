# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""One attested session of a run: from wherever its guest is to the results.

Zone: flows. At first that is from the guest's boot; after a lost connection, from where the guest has come to.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cvmtool.config import write_atomic
from cvmtool.errors import CvmError, FormatError, HostError, JobError, VerificationError
from cvmtool.flows.attach import Attached, Challenge, attach
from cvmtool.flows.attempts import SessionNote
from cvmtool.flows.consents import Consents
from cvmtool.flows.decisions import Gate
from cvmtool.flows.ending import follow_to_the_end
from cvmtool.flows.gpu import GPU_EVIDENCE_FILE, gpu_verdict
from cvmtool.flows.jobdb import Document
from cvmtool.flows.jobevents import Recorder
from cvmtool.flows.joblog import JobLog
from cvmtool.flows.jobs import EVIDENCE_FILE, LOG_FILE, OUTPUTS_DIR, POLICY_FILE, RECEIPT_FILE, VERDICT_FILE, JobDir
from cvmtool.flows.keeper import Keeper
from cvmtool.flows.lifeline import OtherBootError
from cvmtool.flows.machine import Machine
from cvmtool.flows.platform import Platform
from cvmtool.flows.reporter import Stage
from cvmtool.flows.results import Fetched, Outcome, bring_home, read_outcome
from cvmtool.flows.service import stand_by
from cvmtool.flows.usage import watching
from cvmtool.flows.volumestates import States, volume_verdict
from cvmtool.formats.control import ControlError, Op
from cvmtool.formats.control import Stage as ControlStage
from cvmtool.formats.job import JobManifest, Kind
from cvmtool.formats.release import Secrets
from cvmtool.formats.wire import to_base64
from cvmtool.host.channel import AgentChannel, GuestError
from cvmtool.owner.gpu import VerifiedGpus
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.receipts import verify_receipt
from cvmtool.owner.seal import seal

_CAUSES = {
    "timeout": " (limits.time was reached)",
    "memory": " (limits.memory was reached)",
    "stopped": " (its owner stopped it)",
    "runtime": " (it could not be started)",
}
_LOCKED = frozenset({ControlStage.WAITING, ControlStage.CONFIGURED})
_ENDED = frozenset({"stopped", "timeout"})
"""How a service ends."""
_GRACE_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run brought home."""

    job: JobDir
    outcome: Outcome
    outputs: tuple[Fetched, ...]
    folder: Path

    def summary(self) -> Document:
        """Return what a run's record keeps of it, as `cvmtool/train/v1` has it."""
        return {
            "exit_code": self.outcome.exit_code,
            "outputs": [item.to_json() for item in self.outputs],
            "receipt": str(self.folder / RECEIPT_FILE),
            "policy": str(self.job.path / POLICY_FILE),
        }


class Timed:
    """Reports stages and keeps their durations in the job's record."""

    def __init__(self, reporter: Recorder, job: JobDir) -> None:
        self.reporter = reporter
        self.job = job

    @contextmanager
    def stage(self, stage: Stage, text: str) -> Iterator[None]:
        """Mark the time that a stage takes; what earlier attempts took is added."""
        begun = time.monotonic()
        with self.reporter.stage(stage, text):
            yield
        before = self.job.record.stages.get(stage.value, 0.0)
        self.job.record.stages[stage.value] = round(before + time.monotonic() - begun, 3)
        self.job.save()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that each session of a run needs."""

    challenge: Challenge[JobManifest]
    platform: Platform
    gate: Gate
    log: JobLog
    timed: Timed
    keeper: Keeper
    results: Path
    """Where the outputs go."""
    consents: Consents | None = None
    """The other owners of the job's packs, if there are any."""

    @property
    def job(self) -> JobDir:
        """The run's record."""
        return self.log.job

    def through(self, machine: Machine) -> TrainResult:
        """Go from wherever the guest is to the results.

        Raises:
            OtherBootError: it is not the guest that this launch began with; nothing was sent to it.
            AppraisalError, VerificationError, FreshnessError: the guest is not trusted.
            JobError: the container failed, or declared outputs are missing.
            HostError: the machine or the way to it is lost.
            ConfigError: the results cannot be written.
        """
        if self.consents is not None:
            self._gather(machine, self.consents)
        stage_of = self.timed.stage if self.consents is None else _unsaid
        with attach(machine, self.challenge, self.platform, stage=stage_of) as attached:
            note, stage = self._enter(attached, again=self.consents is not None)
            with self.timed.stage(Stage.UNLOCK, "releasing the keys"):
                self._unlock(attached, note, stage)
            with self.timed.stage(Stage.TRAIN, "serving" if self._serves else "training"):
                self._follow(attached.channel)
            with self.timed.stage(Stage.RESULTS, "fetching results"):
                result = self._bring_home(attached.channel)
            with suppress(HostError):  # all that matters is at home, and the machine is taken away in any case
                attached.channel.request(Op.POWEROFF)
                machine.wait_off()
        require_success(result, service=self._serves)
        return result

    @property
    def _serves(self) -> bool:
        return self.challenge.manifest.kind is Kind.SERVE

    def _gather(self, machine: Machine, consents: Consents) -> None:
        """Have each party whose packs are closed look at the guest, in a session of its own nonce, and release them."""
        with attach(machine, self.challenge, self.platform, stage=self.timed.stage) as attached:
            _, stage = self._enter(attached)
            if stage is ControlStage.WAITING:
                configure(attached, self.challenge.manifest)
            closed = closed_packs(attached.channel)
        for turn in consents.turns(closed):
            challenge = replace(self.challenge, new_nonce=partial(_given, turn.nonce))
            with (
                self.timed.stage(Stage.UNLOCK, f"{turn.name} releases its keys"),
                attach(machine, challenge, self.platform, stage=_unsaid) as attached,
            ):
                note, _ = self._enter(attached, again=True)
                sealed = consents.release(turn, attached.evidence)
                note.released = True
                self.job.save()  # before they are on their way
                send_sealed(attached.channel, sealed)

    def _enter(self, attached: Attached, *, again: bool = False) -> tuple[SessionNote, ControlStage]:
        """Note a session in the record; return it, and how far the guest has come. `again`: its verdict was shown already."""
        self.job.write(EVIDENCE_FILE, attached.evidence.encode())
        self.job.write(VERDICT_FILE, verdict_document(attached))
        sessions = self.job.record.attempts[-1].sessions
        note = SessionNote(nonce=attached.nonce.hex(), boot=attached.evidence.hpke_key.hex())
        known = {session.boot for session in sessions}
        sessions.append(note)
        self.job.save()
        if known and note.boot not in known:
            raise OtherBootError("its host started it again, unasked")
        stage = agent_stage(attached.channel) if known else ControlStage.WAITING
        if not again:
            self.timed.reporter.verdict(attached.guest)
        return note, stage

    def _unlock(self, attached: Attached, note: SessionNote, stage: ControlStage) -> None:
        manifest = self.challenge.manifest
        if stage is ControlStage.WAITING:
            configure(attached, manifest)
        if stage in _LOCKED:
            self.gate.release(attached.guest)
            gpus = self.platform.verify_gpus(
                attached.channel,
                attached.guest,
                manifest,
                keep=lambda shown: self.job.write(GPU_EVIDENCE_FILE, shown),
            )
            note.released = True
            self.job.save()  # before they are on their way
            release_keys(attached, self.challenge.keys, manifest, states=self.keeper.begin(), gpus=gpus)

    def _follow(self, channel: AgentChannel) -> None:
        channel.request(Op.RUN)
        # The guest ends the container at its limit; a guest that says nothing long after that says nothing any more.
        silence = self.challenge.manifest.limits.seconds + _GRACE_SECONDS
        pieces = channel.stream(Op.LOGS, offset=self.log.begin(), silence_seconds=silence)
        with self.keeper.marking(channel), watching(channel, self.timed.reporter.usage):
            if self._serves:
                stand_by(
                    channel,
                    self.challenge.manifest,
                    self.job.record.id,
                    partial(self.log.follow, pieces),
                    self.timed.reporter,
                )
                return
            asked = self._work(channel, partial(self.log.follow, pieces))
        if asked:
            with suppress(HostError):  # what it wrote in its grace is on the disk; its state has no number then
                self.keeper.begin().commit(channel)
            raise KeyboardInterrupt

    def _work(self, channel: AgentChannel, follow: Callable[[], None]) -> bool:
        """Follow a container that works; return whether it was asked to end, which one without checkpoints is not."""
        checkpoint = self.challenge.manifest.checkpoint
        if checkpoint is None:
            follow()
            return False
        grace = checkpoint.grace_seconds
        return follow_to_the_end(
            channel,
            follow,
            grace_seconds=grace,
            notice=lambda: self.timed.reporter.notice(f"asking the container to end: it has {grace} s"),
        )

    def _bring_home(self, channel: AgentChannel) -> TrainResult:
        _await_outputs(channel)
        outcome = _results(channel, self.challenge.manifest)
        _check_log(self.job, outcome)
        receipt = verify_receipt(outcome.receipt, self.challenge.policy, datetime.now(UTC))
        _check_receipt(receipt.statement.outputs, outcome)
        pretty = json.dumps(json.loads(outcome.receipt), indent=1).encode("utf-8") + b"\n"
        self.job.write(RECEIPT_FILE, pretty)
        self.gate.export(receipt)
        rescue = self.job.path / OUTPUTS_DIR
        folder, outputs = bring_home(channel, outcome, self.results, rescue=rescue, reporter=self.timed.reporter)
        write_atomic(folder / RECEIPT_FILE, pretty, mode=0o644)
        self.job.record.results = str(folder.resolve())
        result = TrainResult(job=self.job, outcome=outcome, outputs=outputs, folder=folder)
        self.timed.reporter.brought(result.summary())
        return result


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


def closed_packs(channel: AgentChannel) -> tuple[str, ...]:
    """Ask the guest of a job of several owners which packs nobody has released yet.

    Raises:
        HostError: the connection broke.
        FormatError: the answer is malformed.
    """
    closed = channel.request(Op.STATUS).get("closed")
    if not isinstance(closed, list) or not all(isinstance(name, str) for name in closed):
        raise FormatError("status.closed is no list of packs' names")
    return tuple(closed)


def _given(nonce: bytes, _size: int) -> bytes:
    return nonce


def _unsaid(_stage: Stage, _text: str) -> AbstractContextManager[None]:
    return nullcontext()


def opened_meanwhile(channel: AgentChannel, error: GuestError) -> bool:
    """Say whether a guest refused keys because it has used those of an earlier session, which broke before it could say so.

    Making a volume takes seconds. The state that it was marked with then is one that its owner takes.

    Raises:
        HostError, FormatError: as `agent_stage`.
    """
    return error.error == ControlError.ORDER and agent_stage(channel) not in _LOCKED


def configure(attached: Attached, manifest: JobManifest) -> None:
    """Hand the guest its job, and the certificates that its receipt is to carry so that it verifies offline."""
    certificates = to_base64(attached.evidence.cert_table)
    attached.channel.request(Op.CONFIGURE, manifest=to_base64(manifest.encode()), certificates=certificates)


def release_keys(
    attached: Attached,
    keys: OwnerKeys,
    manifest: JobManifest,
    *,
    states: States | None = None,
    gpus: VerifiedGpus | None = None,
) -> None:
    """Seal the passphrase of every pack of ours to the verified guest, whose `gpus`, if it wants any, are verified too.

    `states`: of the job's volume, begun; None if there is none.

    Raises:
        VerificationError: a disk is not the pack, or the volume, that the manifest pins; the guest did not open it.
        FreshnessError: the host gave back an earlier state of the volume.
        GuestError: the guest could not open a pack for another reason.
    """
    packs = {pack.root_hash: keys.pack_passphrase(pack.luks_uuid) for pack in manifest.own_packs}
    volumes = states.secrets(keys) if states else {}
    sealed = seal(attached.guest, Secrets(packs=packs, volumes=volumes), manifest=manifest, gpus=gpus)
    send_sealed(attached.channel, sealed, states=states)


def send_sealed(channel: AgentChannel, sealed: bytes, *, states: States | None = None) -> None:
    """Hand the guest what its owner, or a party, sealed to it; turn what it finds into a verdict.

    Raises:
        VerificationError, FreshnessError, GuestError: as `release_keys`.
    """
    try:
        channel.request(Op.RELEASE, sealed=to_base64(sealed))
    except GuestError as error:
        if opened_meanwhile(channel, error):
            return
        if states:
            states.refused(error)
        raise _disk_changed(error) or error from error
    if states:
        states.acknowledge()


def _disk_changed(error: GuestError) -> CvmError | None:
    """Return the owner's verdict if what the guest met is a disk that the host changed."""
    if error.error not in (ControlError.PACK_INTEGRITY, ControlError.PACK_HEADER):
        return volume_verdict(error)
    return VerificationError(
        f"pack {error.pack or 'unknown'}: {error.error}: its blocks are not those that the job manifest pins",
        detail=error.detail,
        hint="the host changed a disk, or its copy is damaged; nothing was made of it",
    )


def _results(channel: AgentChannel, manifest: JobManifest) -> Outcome:
    try:
        return read_outcome(channel.request(Op.RESULTS), manifest)
    except GuestError as error:
        raise _disk_changed(error) or error from error


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
    if named != {(item.name, item.size, item.sha256) for item in outcome.outputs}:
        raise VerificationError("the receipt names other outputs than the guest delivered")


def require_success(result: TrainResult, *, service: bool = False) -> None:
    """Check how the container ended, and that every declared output is there. A `service` ends well when it is ended.

    Raises:
        JobError: it failed, or one is missing.
    """
    job, outcome = result.job, result.outcome
    job.record.exit_code = outcome.exit_code
    logs = f"cvmtool jobs logs {job.record.id}"
    if outcome.exit_code != 0 and not (service and outcome.cause in _ENDED):
        raise JobError(
            f"the container ended with exit code {outcome.exit_code}{_CAUSES.get(outcome.cause, '')}; 0 is required",
            hint=f"its output: {logs}",
        )
    if outcome.refused:
        listed = "; ".join(f"{name}: {reason}" for name, reason in outcome.refused)
        raise JobError(
            f"{len(outcome.refused)} declared outputs did not leave the guest: {listed}",
            hint=f"what did is in {result.folder}; {logs}",
        )


def verdict_document(attached: Attached, gpus: VerifiedGpus | None = None) -> bytes:
    """Return what is kept of a verdict: JSON. `gpus`: of the same session; None if they were not judged with it."""
    guest = attached.guest
    verdict = {
        "schema": "cvmtool/verdict/v1",
        "simulated": guest.simulated,
        "nonce": attached.nonce.hex(),
        "checks": [check.to_json() for check in guest.checks],
        "unchecked": list(guest.unchecked),
        **({} if gpus is None else {"gpus": gpu_verdict(gpus)}),
    }
    return json.dumps(verdict, indent=1).encode("utf-8") + b"\n"
