# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Seal a secret to a guest. The only way in is a `VerifiedGuest`, so nothing is ever sealed to what was not verified.

Zone: owner (trusted). Pure.
Spec: docs/protocol.md section 6; RFC 9180 base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from cvmtool.formats.release import Secrets, release_info
from cvmtool.owner.appraise import VerifiedGuest


def seal(guest: VerifiedGuest, secrets: Secrets) -> bytes:
    """Return `secrets` sealed to the HPKE key of `guest`: enc (32 bytes), then ciphertext and tag.

    The session's REPORT_DATA and HOST_DATA are in `info`: the sealed bytes open in this session of this job alone.

    Raises:
        TypeError: `guest` is anything else, whatever it looks like.
    """
    if not isinstance(guest, VerifiedGuest):
        raise TypeError("a secret is sealed to a VerifiedGuest and to nothing else")
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    key = X25519PublicKey.from_public_bytes(guest.hpke_key)
    info = release_info(report_data=guest.report_data, host_data=guest.host_data)
    return suite.encrypt(secrets.encode(), key, info)
