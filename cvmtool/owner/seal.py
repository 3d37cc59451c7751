# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Seal a secret to a guest. The only way in is a `VerifiedGuest`, so nothing is ever sealed to what was not verified.

Zone: owner (trusted). Pure.
Spec: docs/protocol.md section 6; RFC 9180 base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.

A guest whose manifest wants GPUs needs `VerifiedGpus` of the same session as well. The manifest is the one that the guest was
launched for: its digest is in the HOST_DATA of the report that was verified.
"""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from cvmtool.formats.machine import Manifest
from cvmtool.formats.release import Secrets, release_info
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.gpu import VerifiedGpus


def seal(guest: VerifiedGuest, secrets: Secrets, *, manifest: Manifest, gpus: VerifiedGpus | None = None) -> bytes:
    """Return `secrets` sealed to the HPKE key of `guest`: enc (32 bytes), then ciphertext and tag.

    The session's REPORT_DATA and HOST_DATA are in `info`: the sealed bytes open in this session of this job alone.

    Raises:
        TypeError: `guest` is anything else, whatever it looks like; or `gpus` is, and the manifest wants GPUs.
        ValueError: the guest was launched for another manifest, or the GPUs are another session's or fewer.
    """
    if not isinstance(guest, VerifiedGuest):
        raise TypeError("a secret is sealed to a VerifiedGuest and to nothing else")
    if not hmac.compare_digest(guest.host_data, manifest.host_data):
        raise ValueError("the guest was launched for another manifest")
    if manifest.resources.gpus:
        _require_gpus(guest, gpus, manifest.resources.gpus)
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    key = X25519PublicKey.from_public_bytes(guest.hpke_key)
    info = release_info(report_data=guest.report_data, host_data=guest.host_data)
    return suite.encrypt(secrets.encode(), key, info)


def _require_gpus(guest: VerifiedGuest, gpus: VerifiedGpus | None, count: int) -> None:
    if not isinstance(gpus, VerifiedGpus):
        raise TypeError("a guest with GPUs is sealed to once VerifiedGpus vouch for them")
    if not hmac.compare_digest(gpus.report_data, guest.report_data) or len(gpus.devices) != count:
        raise ValueError("the GPUs are another session's, or not as many as the manifest says")
