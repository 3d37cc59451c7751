# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Sign the receipt with the key that the attestation report binds.

Zone: guest (measured).
Spec: docs/protocol.md section 11.
"""

from __future__ import annotations

from cvmtool.formats.dsse import Envelope, key_id, pae
from cvmtool.formats.job import JobManifest
from cvmtool.formats.receipt import Access, Accesses, InputDigest, OutputDigest, Statement
from cvmtool.guest.attest import Attested
from cvmtool.guest.container import Outcome
from cvmtool.guest.keys import BootKeys
from cvmtool.guest.log import LogBook
from cvmtool.guest.outputs import Accepted

_IMAGE_ID = slice(0x20, 0x30)  # of ATTESTATION_REPORT, in every version
_MEASUREMENT = slice(0x90, 0xC0)


def sign_receipt(
    keys: BootKeys,
    *,
    released: Attested,
    manifest: JobManifest,
    outcome: Outcome,
    outputs: list[Accepted],
    log: LogBook,
    accesses: Accesses,
    simulated: bool,
) -> Envelope:
    """Return the signed receipt of a job that has ended; `released` is the challenge under which its keys came."""
    report = released.evidence.report
    payload = Statement(
        outputs=tuple(
            OutputDigest(name=item.output.name, kind=item.output.kind, size=item.size, sha256=item.sha256)
            for item in outputs
        ),
        manifest_sha256=released.challenge.manifest_sha256,
        network=manifest.network,
        access=_allowed(manifest),
        gpus=manifest.resources.gpus,
        container_digest=manifest.container.oci_digest,
        inputs=tuple(
            InputDigest(name=pack.name, role=pack.role, root_hash=pack.root_hash, owner=manifest.party_of(pack))
            for pack in manifest.packs
        ),
        measurement=report[_MEASUREMENT],
        image_id=report[_IMAGE_ID],
        started=outcome.started,
        finished=outcome.finished,
        log_sha256=log.sha256,
        log_size=log.size,
        exit_code=outcome.exit_code,
        accesses=accesses,
        egress=outcome.egress,
        simulated=simulated,
        nonce=released.challenge.nonce,
        owner_key=released.challenge.owner_key,
        evidence=released.evidence,
    ).encode()
    return Envelope(payload=payload, keyid=key_id(keys.receipt_key), signature=keys.receipt.sign(pae(payload)))


def _allowed(manifest: JobManifest) -> tuple[Access, ...]:
    """Return how the container could be reached. A shell is a machine's alone (cvmtool.guest.machine)."""
    named = ((Access.EXEC, manifest.access.exec), (Access.TUNNEL, bool(manifest.access.tunnels)))
    return tuple(access for access, allowed in named if allowed)
