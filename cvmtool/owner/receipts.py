# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Verify a receipt: offline, with nothing but the receipt, the roots and the measurements that one trusts.

Zone: owner (trusted). Pure: the time comes in.
Spec: docs/protocol.md section 11. What must hold, in order:

    1. the envelope and its statement parse
    2. the report inside is genuine at the time given, under the roots given
    3. HOST_DATA is the digest of the owner key and the manifest digest that the statement names
    4. REPORT_DATA binds the statement's nonce and the three keys to that HOST_DATA
    5. the policy accepts the report
    6. the envelope is signed by the receipt key that the report vouches for
    7. the statement's own word about simulation agrees with the root that signed
    8. launch digest and IMAGE_ID in the statement are the report's

`authenticate_receipt` leaves 5 out: its receipt is genuine, and nobody has said yet whether that guest deserves trust.

Checks left out, and why: the times (the host sets the guest's clock, so they are claims) and freshness (a receipt is
looked at long after the run; its nonce binds keys, it does not date anything).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cvmtool.errors import FreshnessError, VerificationError
from cvmtool.formats.certtable import CertKind, parse_cert_table
from cvmtool.formats.dsse import Envelope, key_id, pae, parse_envelope
from cvmtool.formats.evidence import host_data, report_data
from cvmtool.formats.job import JobManifest, parse_job_manifest
from cvmtool.formats.jobterms import Destination
from cvmtool.formats.receipt import Statement, parse_statement
from cvmtool.formats.report import Report
from cvmtool.owner.amdroots import Roots
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.policy import Policy
from cvmtool.owner.session import judge_evidence
from cvmtool.owner.verify import AuthenticReport, certificates_of, verify_report


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReceipt:
    """A receipt that held, and the guest that wrote it."""

    statement: Statement
    guest: VerifiedGuest


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticReceipt:
    """A genuine receipt of a guest that nobody has judged."""

    statement: Statement
    authentic: AuthenticReport


def verify_receipt(data: bytes, policy: Policy, at: datetime) -> VerifiedReceipt:
    """Verify a receipt (unverified bytes) at the time `at`.

    Raises:
        FormatError: 1 fails.
        VerificationError: 2, 6, 7 or 8 fails.
        FreshnessError: 4 fails.
        AppraisalError: 3 or 5 fails; every finding is listed.
    """
    envelope = parse_envelope(data)
    statement = parse_statement(envelope.payload)  # 1
    committed = host_data(owner_key=statement.owner_key, manifest_sha256=statement.manifest_sha256)
    guest = judge_evidence(
        statement.evidence, policy=policy, nonce=statement.nonce, host_data=committed, at=at
    )  # 2, 4, 3, 5
    _check_word(envelope, statement, guest.report, simulated=guest.simulated)
    return VerifiedReceipt(statement=statement, guest=guest)


def authenticate_receipt(data: bytes, roots: Roots, at: datetime) -> AuthenticReceipt:
    """Verify all of a receipt (unverified bytes) at the time `at` that needs no policy.

    Raises:
        FormatError: 1 fails.
        VerificationError: 2, 3, 6, 7 or 8 fails.
        FreshnessError: 4 fails.
    """
    envelope = parse_envelope(data)
    statement = parse_statement(envelope.payload)  # 1
    evidence = statement.evidence
    table = parse_cert_table(evidence.cert_table)
    authentic = verify_report(evidence.report, certificates_of(table), roots, at, table.get(CertKind.CRL))  # 2
    committed = host_data(owner_key=statement.owner_key, manifest_sha256=statement.manifest_sha256)
    if not hmac.compare_digest(authentic.report.host_data, committed):  # 3
        raise VerificationError(
            f"host data is {authentic.report.host_data.hex()}; the receipt's owner and manifest require {committed.hex()}"
        )
    bound = report_data(
        nonce=statement.nonce,
        ssh_host_key=evidence.ssh_host_key,
        hpke_key=evidence.hpke_key,
        receipt_key=evidence.receipt_key,
        host_data=committed,
    )
    if not hmac.compare_digest(authentic.report.report_data, bound):  # 4
        raise FreshnessError(f"report data is {authentic.report.report_data.hex()}; the receipt requires {bound.hex()}")
    _check_word(envelope, statement, authentic.report, simulated=authentic.simulated)
    return AuthenticReceipt(statement=statement, authentic=authentic)


def _check_word(envelope: Envelope, statement: Statement, report: Report, *, simulated: bool) -> None:
    """6, 7 and 8: the statement is the attested guest's, and says of the launch what the report says."""
    receipt_key = statement.evidence.receipt_key
    if envelope.keyid != key_id(receipt_key):
        raise VerificationError(f"receipt keyid is {envelope.keyid}; the report vouches for {key_id(receipt_key)}")
    try:
        Ed25519PublicKey.from_public_bytes(receipt_key).verify(envelope.signature, pae(envelope.payload))  # 6
    except (InvalidSignature, ValueError) as error:
        raise VerificationError("the receipt's signature is not the attested guest's") from error
    if statement.simulated != simulated:  # 7
        raise VerificationError(
            f"the receipt says simulated: {str(statement.simulated).lower()}; the root that signed says "
            f"{str(simulated).lower()}"
        )
    for name, said, signed in (
        ("launch digest", statement.measurement, report.measurement),
        ("image id", statement.image_id, report.image_id),
    ):  # 8
        if not hmac.compare_digest(said, signed):
            raise VerificationError(f"the receipt says {name} {said.hex()}; its report says {signed.hex()}")


def _destinations(statement: Statement) -> list[Destination]:
    return [flow.destination for flow in statement.egress.flows] if statement.egress else []


def require_manifest(statement: Statement, data: bytes) -> JobManifest:
    """Check that `data` (unverified) is the job manifest of a receipt, and that the receipt says nothing else than it does.

    Raises:
        FormatError: it is no job manifest.
        VerificationError: another manifest, or the guest ran, opened or gave out something that it does not name.
    """
    manifest = parse_job_manifest(data)
    if not hmac.compare_digest(manifest.sha256, statement.manifest_sha256):
        raise VerificationError(
            f"the manifest is sha256:{manifest.sha256.hex()}; the receipt is of sha256:{statement.manifest_sha256.hex()}"
        )
    said: dict[str, tuple[object, object]] = {
        "owner key": (statement.owner_key.hex(), manifest.owner_key),
        "container": (statement.container_digest, manifest.container.oci_digest),
        "network": (statement.network, manifest.network),
        # A container that never ran has no way out to tell of.
        "destinations": (_destinations(statement), list(manifest.destinations) if statement.egress else []),
        "gpus": (statement.gpus, manifest.resources.gpus),
        "inputs": (
            [(item.name, item.role.value, item.root_hash, item.owner) for item in statement.inputs],
            [(pack.name, pack.role.value, pack.root_hash, manifest.party_of(pack)) for pack in manifest.packs],
        ),
    }
    for name, (found, required) in said.items():
        if found != required:
            raise VerificationError(f"the receipt says {name} {found}; its manifest says {required}")
    for item in statement.outputs:
        output = manifest.allowing(item.name)
        if output is None or output.kind is not item.kind or item.size > output.max_bytes:
            raise VerificationError(
                f"the receipt names output {item.name!r}, {item.kind}, {item.size} bytes; its manifest allows "
                + (f"{output.kind} of at most {output.max_bytes} bytes" if output else "no output of that name")
            )
    return manifest
