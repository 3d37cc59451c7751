# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Sign the receipt with the key that the attestation report binds.

Zone: guest (measured).
Spec: docs/protocol.md section 11.
"""

from __future__ import annotations

from cvmtool.formats.job import JobManifest
from cvmtool.formats.receipt import Envelope, OutputDigest, Statement, key_id, pae
from cvmtool.guest.attest import Attested
from cvmtool.guest.container import Outcome
from cvmtool.guest.keys import BootKeys
from cvmtool.guest.log import LogBook
from cvmtool.guest.outputs import Accepted


def sign_receipt(
    keys: BootKeys,
    *,
    released: Attested,
    manifest: JobManifest,
    outcome: Outcome,
    outputs: list[Accepted],
    log: LogBook,
    simulated: bool,
) -> Envelope:
    """Return the signed receipt of a job that has ended; `released` is the challenge under which its keys came."""
    payload = Statement(
        outputs=tuple(OutputDigest(name=item.output.name, size=item.size, sha256=item.sha256) for item in outputs),
        simulated=simulated,
        nonce=released.challenge.nonce,
        evidence=released.evidence,
        manifest_sha256=released.challenge.manifest_sha256,
        owner_key=released.challenge.owner_key,
        container_digest=manifest.container.oci_digest,
        inputs=tuple((pack.name, pack.root_hash) for pack in manifest.packs),
        log_sha256=log.sha256,
        log_size=log.size,
        exit_code=outcome.exit_code,
        started=outcome.started,
        finished=outcome.finished,
    ).encode()
    return Envelope(payload=payload, keyid=key_id(keys.receipt_key), signature=keys.receipt.sign(pae(payload)))
