# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""An attested session with a running job beside the one in which it is run: of its owner in another process, or of a client.

Zone: flows. It has a nonce, a look at the evidence and a port of the machine of its own (docs/protocol.md section 15); what it
was decided from is kept, so that what was reached can be shown later.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cvmtool.config import Settings
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows.attach import StageOf, decide
from cvmtool.flows.cases import save_case
from cvmtool.flows.hosts import open_host
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import MANIFEST_FILE, POLICY_FILE, JobDir
from cvmtool.flows.platform import sev_snp
from cvmtool.flows.records import load_record
from cvmtool.flows.reporter import Stage
from cvmtool.formats.channel import CLIENT_PORTS
from cvmtool.formats.control import CLIENT_ADDRESS, CONTROL_ADDRESS
from cvmtool.formats.evidence import NONCE_SIZE
from cvmtool.formats.job import parse_job_manifest
from cvmtool.formats.jobterms import NO_ACCESS
from cvmtool.host.channel import AgentChannel
from cvmtool.host.embedded import embedded_dir, embedded_root, is_held, port_socket
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.invitation import Invitation
from cvmtool.owner.kds import AMD_URL
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.policyfile import parse_policy
from cvmtool.owner.session import Session

_ANSWER_SECONDS = 60.0  # for a report, from a guest that runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """An attested session with a running job."""

    guest: VerifiedGuest
    channel: AgentChannel
    case: Path
    """What was decided, and from what: `cvmtool attest replay`."""


def invite(job: JobDir, settings: Settings) -> Invitation:
    """Return what leads to a running job.

    Raises:
        ConfigError: it does not run, or lets nobody in.
        FormatError: its record is damaged.
    """
    record = job.record
    machine = load_record(settings.records_dir, record.machine)
    if record.state is not JobState.RUNNING or machine is None:
        state = record.state if record.state is not JobState.RUNNING else "starting"
        command = "resume" if record.state is JobState.LOST else "show"
        raise ConfigError(
            f"job {record.id} is {state}; a running one is required", hint=f"cvmtool jobs {command} {record.id}"
        )
    manifest = parse_job_manifest((job.path / MANIFEST_FILE).read_bytes())
    if manifest.access == NO_ACCESS:
        raise ConfigError(
            f"job {record.id} lets nobody in: its manifest has no access",
            hint="access, or kind: serve, in job.yaml; what a job allows is fixed when it starts",
        )
    policy = parse_policy((job.path / POLICY_FILE).read_text("utf-8"))
    return Invitation(machine=record.machine, uri=machine.uri, manifest=manifest, policy=policy)


def host_of(job: JobDir, settings: Settings) -> Settings:
    """Return the settings with the host that a job's machine is on."""
    machine = load_record(settings.records_dir, job.record.machine)
    return settings if machine is None else replace(settings, host=machine.host)


@contextmanager
def visit(
    invitation: Invitation,
    keys: OwnerKeys,
    settings: Settings,
    *,
    kept_in: Path,
    stage: StageOf,
) -> Iterator[Visit]:
    """Attest a running job's guest and talk to it while the block runs.

    Args:
        invitation: which job, and by what it is judged.
        keys: the caller's, who is the job's owner or one of its clients.
        settings: with the host to go to; without one, the invitation's URI.
        kept_in: where what was decided from is kept.
        stage: marks the part.

    Raises:
        ConfigError: the caller is neither, or the host's address is none.
        HostError: the host or the guest does not answer, or too many sessions are open.
        FormatError, VerificationError, FreshnessError, AppraisalError: the guest is not trusted; nothing was sent to it.
    """
    manifest, policy = invitation.manifest, invitation.policy
    owns = keys.public.hex() == manifest.owner_key
    if not owns and keys.public.hex() not in manifest.access.clients:
        raise ConfigError(
            f"the key {keys.fingerprint[:16]} is not among those that the job {manifest.name} lets in",
            hint="its owner adds it: access.clients in job.yaml; cvmtool key show prints it",
        )
    with ExitStack() as stack, stage(Stage.ATTEST, "attesting the running guest"):
        port = stack.enter_context(_client_port(invitation, settings))
        channel = AgentChannel(port, control=CONTROL_ADDRESS if owns else CLIENT_ADDRESS)
        stack.callback(channel.close)
        session = Session(
            owner_key=bytes.fromhex(manifest.owner_key),
            manifest_sha256=manifest.sha256,
            host_data=manifest.host_data,
            policy=policy,
            nonce=secrets.token_bytes(NONCE_SIZE),
        )
        evidence = channel.challenge(
            session.challenge(), session.nonce, deadline_seconds=_ANSWER_SECONDS, alive=lambda: None
        )
        at = datetime.now(UTC)
        if not policy.trusted_roots().simulated:
            evidence = sev_snp(settings, key_service=AMD_URL).complete(evidence, at)
        guest = decide(session, evidence, policy=policy, host_data=manifest.host_data, cases_dir=settings.cases_dir)
        channel.connect(nonce=session.nonce, ssh_host_key=guest.ssh_host_key, owner_key=keys.public, sign=keys.sign)
        case = save_case(
            kept_in,
            evidence=evidence,
            policy=policy,
            nonce=session.nonce,
            host_data=manifest.host_data,
            at=at,
            error=None,
        )
        held = stack.pop_all()
    with held:
        yield Visit(guest=guest, channel=channel, case=case)


@contextmanager
def _client_port(invitation: Invitation, settings: Settings) -> Iterator[socket.socket]:
    """Open a port of the machine that nobody holds."""
    here = settings if settings.host else replace(settings, host=invitation.uri)
    target = here.target()
    root = None if target is None else embedded_root(target.uri)
    if target and root and root.parent != embedded_dir(os.geteuid()):
        # libvirt writes below its root: an invitation from elsewhere does not say where on this machine.
        raise ConfigError(
            f"host is {target.uri[:200]!r}; a root directory below {embedded_dir(os.geteuid())} is required"
        )
    with ExitStack() as stack:
        if root is not None:
            # Of the libvirt inside a process no other process gets anything; but a port's socket is a file of this user's.
            if not is_held(root):
                raise HostError(
                    f"the machine {invitation.machine} is not in the care of any process",
                    hint="its owner's cvmtool jobs resume goes on with it",
                )
            yield _connect(root, invitation.machine, stack)
            return
        host = open_host(here)
        stack.callback(host.close)
        refused = None
        for name in CLIENT_PORTS:
            try:
                port = host.hypervisor.open_port(invitation.machine, name, steal=False)
            except HostError as error:
                refused = error
                continue
            stack.callback(port.close)
            yield port
            return
        raise _none_free(invitation.machine, refused.detail if refused else None)


def _connect(root: Path, machine: str, stack: ExitStack) -> socket.socket:
    """Connect to a port's socket that no other process of this user holds: QEMU lets a second one wait without a word."""
    for name in CLIENT_PORTS:
        path = port_socket(root, machine, name)
        lock = os.open(path.with_name(f"{name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, lock)
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            port = stack.enter_context(socket.socket(socket.AF_UNIX))
            try:
                port.connect(str(path))
            except OSError as error:
                raise HostError(f"the machine {machine} does not take connections", detail=str(error)) from error
            return port
    raise _none_free(machine, None)


def _none_free(machine: str, detail: str | None) -> HostError:
    return HostError(
        f"none of the {len(CLIENT_PORTS)} ports of {machine} for sessions like this one is free",
        detail=detail,
        hint="each tunnel command and each exec takes one; one tunnel command carries any number of connections",
    )
