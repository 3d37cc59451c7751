# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""AMD's revocation list of a product line: which intermediates no longer count.

Zone: owner (trusted). Pure: no I/O; the time comes in.
Spec: RFC 5280 section 5; AMD 57230 VCEK and KDS (the list is signed by the ARK).

A list cannot name a single VCEK, since all of them carry serial number 0: a chip is excluded by policy, not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import rsa

from cvmtool.errors import FormatError
from cvmtool.owner.certificate import Certificate, open_signed, parse_extensions, require_pss, signed_by
from cvmtool.owner.der import GENERALIZED_TIME, SEQUENCE, UTC_TIME, Der, context

MAX_CRL_BYTES = 64 << 10
MAX_REVOKED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Crl:
    """A revocation list that was read, and no more: unverified. `revoked`: serial numbers."""

    signed: bytes
    signature: bytes
    issuer: bytes
    this_update: datetime
    next_update: datetime
    revoked: frozenset[int]


def parse_crl(der: bytes) -> Crl:
    """Read a DER revocation list of at most 64 KiB with at most 1024 entries.

    Raises:
        FormatError: not DER, not version 2, another algorithm, no next update, or a critical extension (a delta or a
            partial list has one).
    """
    if len(der) > MAX_CRL_BYTES:
        raise FormatError(f"crl has {len(der)} bytes; required: at most {MAX_CRL_BYTES}")
    signed, algorithm, signature = open_signed(der, "crl")
    body = Der(signed, "crl").enter(SEQUENCE)
    if body.integer() != 1:
        raise FormatError("crl version is not 2; required: 2")
    require_pss(body.take(SEQUENCE), algorithm, "crl")
    issuer = body.take_whole(SEQUENCE)
    this_update = body.time()
    if body.peek() not in (UTC_TIME, GENERALIZED_TIME):
        raise FormatError("crl has no next update; required: one")
    next_update = body.time()
    revoked = _revoked(body.enter(SEQUENCE)) if body.peek() == SEQUENCE else frozenset[int]()
    if body.peek() is not None:
        wrapped = body.enter(context(0))
        _none_critical(wrapped.enter(SEQUENCE))
        wrapped.finish()
    body.finish()
    return Crl(
        signed=signed,
        signature=signature,
        issuer=issuer,
        this_update=this_update,
        next_update=next_update,
        revoked=revoked,
    )


def _revoked(entries: Der) -> frozenset[int]:
    serials: set[int] = set()
    while entries.peek() is not None:
        if len(serials) == MAX_REVOKED:
            raise FormatError(f"crl has more than {MAX_REVOKED} entries")
        entry = entries.enter(SEQUENCE)
        serials.add(entry.integer())
        entry.time()
        if entry.peek() is not None:
            _none_critical(entry.enter(SEQUENCE))
        entry.finish()
    return frozenset(serials)


def _none_critical(sequence: Der) -> None:
    for oid, extension in parse_extensions(sequence, "crl").items():
        if extension.critical:
            raise FormatError(f"crl extension {oid} is critical; required: none is")


def signed_by_root(crl: Crl, root: Certificate, key: rsa.RSAPublicKey) -> bool:
    """Whether `root` issued this list and `key`, its key, signed it."""
    return crl.issuer == root.subject and signed_by(key, crl.signature, crl.signed)
