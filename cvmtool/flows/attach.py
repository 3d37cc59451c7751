# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Attach to a running machine: challenge its guest, judge the answer, and only then talk to it.

Zone: flows. A refusal leaves the evidence on disk, so that it can be decided again offline (`cvmtool attest replay DIR`).
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, TypeVar

from cvmtool.errors import AppraisalError, CvmError
from cvmtool.flows.boot import BootWatch
from cvmtool.flows.cases import save_case
from cvmtool.flows.machine import Machine
from cvmtool.flows.platform import Platform
from cvmtool.flows.reporter import Stage
from cvmtool.formats.channel import AGENT_PORT
from cvmtool.formats.evidence import NONCE_SIZE, Evidence
from cvmtool.formats.machine import Manifest
from cvmtool.host.channel import AgentChannel
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.policy import Policy
from cvmtool.owner.session import Session

NonceSource = Callable[[int], bytes]
ManifestT_co = TypeVar("ManifestT_co", bound=Manifest, covariant=True)
StageOf = Callable[[Stage, str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge(Generic[ManifestT_co]):
    """What the owner brings to an attestation."""

    keys: OwnerKeys
    manifest: ManifestT_co
    policy: Policy
    cases_dir: Path
    boot_seconds: float
    new_nonce: NonceSource = secrets.token_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """An attested session: the guest, what it showed, and the channel to it."""

    guest: VerifiedGuest
    evidence: Evidence
    nonce: bytes
    channel: AgentChannel


def demand_evidence(
    machine: Machine, challenge: Challenge[Manifest], platform: Platform, stack: ExitStack
) -> tuple[AgentChannel, Session, Evidence]:
    """Send a challenge and return the answer, unverified. What was opened is closed with `stack`.

    Raises:
        HostError: no answer.
        AppraisalError: the measured boot was refused.
        FreshnessError: the guest was launched for another owner or job.
        FormatError: the answer is malformed.
    """
    stack.enter_context(platform.processor(machine))
    channel = AgentChannel(machine.hypervisor.open_port(machine.name, AGENT_PORT))
    stack.callback(channel.close)
    session = Session(
        owner_key=challenge.keys.public,
        manifest_sha256=challenge.manifest.sha256,
        host_data=challenge.manifest.host_data,
        policy=challenge.policy,
        nonce=challenge.new_nonce(NONCE_SIZE),
    )
    evidence = channel.challenge(
        session.challenge(),
        session.nonce,
        deadline_seconds=challenge.boot_seconds,
        alive=BootWatch(machine).alive,
    )
    return channel, session, evidence


def judge(session: Session, evidence: Evidence, challenge: Challenge[Manifest], machine: Machine) -> VerifiedGuest:
    """Decide; save the case if the decision is no.

    Raises:
        FormatError, VerificationError, FreshnessError, AppraisalError: the refusal; its hint names the saved case.
    """
    return decide(
        session,
        evidence,
        policy=challenge.policy,
        host_data=challenge.manifest.host_data,
        cases_dir=challenge.cases_dir,
        explain=lambda error, case: _explain(error, case, machine),
    )


def decide(
    session: Session,
    evidence: Evidence,
    *,
    policy: Policy,
    host_data: bytes,
    cases_dir: Path,
    explain: Callable[[CvmError, Path], str | None] = lambda *_: None,
) -> VerifiedGuest:
    """Decide, and save the case if the decision is no. `explain`: what to do about it, if there is anything.

    Raises:
        FormatError, VerificationError, FreshnessError, AppraisalError: the refusal; its hint names the saved case.
    """
    at = datetime.now(UTC)
    try:
        return session.judge(evidence, at)
    except CvmError as error:
        case = save_case(
            cases_dir,
            evidence=evidence,
            policy=policy,
            nonce=session.nonce,
            host_data=host_data,
            at=at,
            error=error,
        )
        hints = (error.hint, explain(error, case), f"decide it again: cvmtool attest replay {case}")
        error.hint = "; ".join(filter(None, hints))
        raise


def _explain(error: CvmError, case: Path, machine: Machine) -> str | None:
    """Return the command that finds out what was launched, if that was not what was expected."""
    if not isinstance(error, AppraisalError) or all(finding.code != "measurement" for finding in error.findings):
        return None
    launch = machine.launch
    words = (
        "cvmtool",
        "measure",
        "explain",
        str(launch.bundle.folder),
        "--report",
        str(case),
        "--mode",
        str(launch.mode),
    )
    options = ("--vcpus", str(launch.resources.vcpus), "--cpu", launch.resources.cpu)
    return f"find out what was launched: {shlex.join((*words, *options))}"


@contextmanager
def attach(
    machine: Machine, challenge: Challenge[Manifest], platform: Platform, *, stage: StageOf
) -> Iterator[Attached]:
    """Attest a machine's guest and talk to it while the block runs. `stage` marks the parts.

    Raises:
        HostError, AppraisalError, FreshnessError, FormatError, VerificationError: as `demand_evidence` and `judge`.
    """
    with ExitStack() as stack:
        with stage(Stage.BOOT, "booting the measured guest"):
            channel, session, evidence = demand_evidence(machine, challenge, platform, stack)
        with stage(Stage.ATTEST, "judging its evidence"):
            evidence = platform.complete(evidence, datetime.now(UTC))
            guest = judge(session, evidence, challenge, machine)
            channel.connect(
                nonce=session.nonce,
                ssh_host_key=guest.ssh_host_key,
                owner_key=challenge.keys.public,
                sign=challenge.keys.sign,
            )
        yield Attached(guest=guest, evidence=evidence, nonce=session.nonce, channel=channel)
