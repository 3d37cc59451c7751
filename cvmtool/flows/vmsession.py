# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What an owner says to the guest of a machine without a job: attest, unlock its volumes, work in it, stop it.

Zone: flows. Each call is an attested session of its own, with a new nonce; nothing is sent before the evidence was accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cvmtool.errors import AppraisalError, CvmError, HostError
from cvmtool.flows.attach import Attached, StageOf, attach
from cvmtool.flows.attempts import Attempt, SessionNote, now
from cvmtool.flows.gpu import GPU_EVIDENCE_FILE
from cvmtool.flows.reporter import Stage as AttestStage
from cvmtool.flows.run import agent_stage, opened_meanwhile, verdict_document
from cvmtool.flows.vmrecords import EVIDENCE_FILE, VERDICT_FILE
from cvmtool.flows.vms import Vm
from cvmtool.flows.vmstate import Milestone
from cvmtool.flows.volumestates import States, volume_verdict
from cvmtool.formats.control import Op, Stage
from cvmtool.formats.release import Secrets
from cvmtool.formats.wire import JsonObject, to_base64
from cvmtool.host.channel import GuestError
from cvmtool.owner.gpu import VerifiedGpus
from cvmtool.owner.seal import seal


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSession:
    """An attested session with a machine's guest: it was verified, and so were its GPUs if it is to have some."""

    attached: Attached
    note: SessionNote
    stage: Stage
    status: JsonObject
    """What the agent said first."""
    gpus: VerifiedGpus | None
    """None where the manifest wants none."""


@contextmanager
def session(vm: Vm, *, stage: StageOf, wait: bool = False) -> Iterator[VmSession]:
    """Attest a machine's guest and its GPUs, and note it in the record. `wait`: until no other command works with it.

    Raises:
        HostError: no answer, or another command works with the machine.
        AppraisalError, VerificationError, FreshnessError, FormatError: guest or GPUs are not trusted; the record says so.
        ConfigError: what reads NVIDIA's manifests is not installed.
    """
    with _entered(vm, stage=stage, wait=wait) as (attached, note):
        at = agent_stage(attached.channel)
        gpus = None
        if vm.challenge.manifest.resources.gpus:
            if at is Stage.WAITING:
                at = _configure(vm, attached)  # it shows its GPUs once it knows that it is to have some
            gpus = _verify_gpus(vm, attached, stage)
            vm.folder.write(VERDICT_FILE, verdict_document(attached, gpus))
        vm.folder.reach(Milestone.UNLOCKED if at is Stage.UNLOCKED else Milestone.ATTESTED)
        status = attached.channel.request(Op.STATUS)
        yield VmSession(attached=attached, note=note, stage=at, status=status, gpus=gpus)


@contextmanager
def _entered(vm: Vm, *, stage: StageOf, wait: bool = False) -> Iterator[tuple[Attached, SessionNote]]:
    """Attest the guest alone, which is enough to stop it; whatever is refused while the block runs is noted."""
    with vm.folder.alone(wait=wait):
        try:
            with attach(vm.machine, vm.challenge, vm.platform, stage=stage) as attached:
                yield attached, _note(vm, attached)
        except CvmError as error:
            vm.record.error = error.message
            vm.folder.save()
            if isinstance(error, AppraisalError) and all(item.code.startswith("boot-") for item in error.findings):
                vm.folder.reach(Milestone.REFUSED)
            raise


def _configure(vm: Vm, attached: Attached) -> Stage:
    manifest = vm.challenge.manifest
    attached.channel.request(Op.CONFIGURE, manifest=to_base64(manifest.encode()), certificates="")
    return agent_stage(attached.channel)


def _verify_gpus(vm: Vm, attached: Attached, stage: StageOf) -> VerifiedGpus | None:
    with stage(AttestStage.ATTEST, "judging the evidence of its GPUs"):
        return vm.platform.verify_gpus(
            attached.channel,
            attached.guest,
            vm.challenge.manifest,
            keep=lambda shown: vm.folder.write(GPU_EVIDENCE_FILE, shown),
        )


def _note(vm: Vm, attached: Attached) -> SessionNote:
    """Keep what was shown. Another boot than before is another guest: it has proven itself, and has no keys yet."""
    record = vm.record
    note = SessionNote(nonce=attached.nonce.hex(), boot=attached.evidence.hpke_key.hex())
    if not record.attempts:
        record.attempts.append(Attempt(started=now()))
    known = {item.boot for item in record.attempts[-1].sessions}
    if known and note.boot not in known:
        record.attempts[-1].end("its host started it again, unasked")
        record.attempts.append(Attempt(started=now()))
        vm.folder.reach(Milestone.STARTED)
        vm.machine.notice(f"{record.name} is another guest than before: its host started it again")
    record.attempts[-1].sessions.append(note)
    record.error = None
    vm.folder.write(EVIDENCE_FILE, attached.evidence.encode())
    vm.folder.write(VERDICT_FILE, verdict_document(attached))
    vm.folder.save()
    return note


def unlock(vm: Vm, opened: VmSession) -> JsonObject:
    """Release what opens the volumes, and with it the shell; return milliseconds by volume. Nothing is sent to an unlocked one.

    Raises:
        VerificationError: a volume is not what it was, or another disk.
        FreshnessError: a volume was turned back to an earlier state.
        GuestError: the guest could not open one for another reason.
    """
    if opened.stage is Stage.UNLOCKED:
        return {}
    channel, manifest = opened.attached.channel, vm.challenge.manifest
    if opened.stage is Stage.WAITING:
        _configure(vm, opened.attached)
    states = States(vm.volumes, vm.record.volumes)
    secrets = Secrets(volumes=states.secrets(vm.challenge.keys))
    sealed = seal(opened.attached.guest, secrets, manifest=manifest, gpus=opened.gpus)
    opened.note.released = True
    vm.folder.save()  # before it is on its way
    try:
        answer = channel.request(Op.RELEASE, sealed=to_base64(sealed))
    except GuestError as error:
        if opened_meanwhile(channel, error):
            vm.folder.reach(Milestone.UNLOCKED)
            return {}
        states.refused(error)
        raise volume_verdict(error) or error from error
    states.acknowledge()
    vm.folder.reach(Milestone.UNLOCKED)
    timings = answer.get("timings")
    return timings if isinstance(timings, dict) else {}


def stop(vm: Vm, *, stage: StageOf) -> None:
    """Attest the guest, have it write everything, mark its volumes with a new state and power itself off.

    Its GPUs are not asked: it gets nothing, and one whose GPU failed ends in order, too.

    Raises:
        GuestError: a volume could not be written; the guest goes on.
        HostError: it does not answer, or does not go.
        AppraisalError, VerificationError, FreshnessError, FormatError: the guest is not trusted.
    """
    with _entered(vm, stage=stage) as (attached, _):
        if agent_stage(attached.channel) is Stage.UNLOCKED:
            States(vm.volumes, vm.record.volumes).commit(attached.channel)
        attached.channel.request(Op.POWEROFF)
        if not vm.machine.wait_off():
            raise HostError(f"{vm.record.name} does not power off", hint=f"cvmtool vm stop --force {vm.record.name}")
        _stopped(vm)


def stop_by_force(vm: Vm) -> None:
    """Have the host end it at once. What its volumes hold is as after a power failure; they stay.

    Raises:
        HostError: the host does not.
    """
    vm.machine.hypervisor.destroy(vm.record.name)
    _stopped(vm)


def _stopped(vm: Vm) -> None:
    if vm.record.attempts:
        vm.record.attempts[-1].end("stopped by its owner")
    vm.folder.reach(Milestone.DEFINED)
