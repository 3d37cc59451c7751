# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Was a certificate withdrawn? What a status service says, and whether it may say so.

Zone: owner (trusted). Pure: no I/O, no clock.
Spec: RFC 6960 sections 3.2, 4.2.1 and 4.2.2.2.

An answer counts if it is about this certificate, good at the time, and signed by the issuer, by an authority above it, or by a
responder that one of these made one. The nonce of RFC 6960 section 4.4.1 is left out, and why: the answer's own period bounds
its age, and answers that may be kept are answers that a mirror may have.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from cvmtool.owner.nvidia import UNREADABLE

MAX_ANSWER = 16_384  # bytes
_SKEW = timedelta(minutes=5)  # of the service's clock
_REVOKED = "revoked"
_OTHER = "about another certificate"
_MISSING = "not stated by the status service"


def status_path(certificate: x509.Certificate, issuer: x509.Certificate) -> str:
    """Return where a status service answers about a certificate: RFC 6960 appendix A.1."""
    request = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA384()).build()
    encoded = base64.b64encode(request.public_bytes(Encoding.DER)).decode("ascii")
    return "/" + encoded.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")


def status_fault(
    answers: Sequence[bytes], certificate: x509.Certificate, authorities: Sequence[x509.Certificate], at: datetime
) -> str | None:
    """Return why none of `answers` (DER, unverified) says that a certificate is good at the time `at`; None if one does.

    `authorities`: the certificate's issuer and those above it, already verified. One answer that says "revoked" outweighs
    any number of good ones.
    """
    faults = [_fault(answer, certificate, authorities, at) for answer in answers]
    if _REVOKED in faults:
        return _REVOKED
    if None in faults:
        return None
    return next((fault for fault in faults if fault not in (_OTHER, None)), _MISSING)


def _fault(
    data: bytes, certificate: x509.Certificate, authorities: Sequence[x509.Certificate], at: datetime
) -> str | None:
    if len(data) > MAX_ANSWER:
        return "an answer that is too long"
    try:
        answer = ocsp.load_der_ocsp_response(data)
        if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            return f"an answer without content ({answer.response_status.name.lower()})"
        asked = ocsp.OCSPRequestBuilder().add_certificate(certificate, authorities[0], answer.hash_algorithm).build()
        same = ("serial_number", "issuer_key_hash", "issuer_name_hash")
        if any(getattr(answer, name) != getattr(asked, name) for name in same):
            return _OTHER
        if not _signed(answer, authorities, at):
            return "an answer that nobody entitled has signed"
        until = answer.next_update_utc
        if until is None or not answer.this_update_utc - _SKEW <= at <= until:
            return f"an answer that does not hold at {at:%F %R}"
        status = answer.certificate_status
    except UNREADABLE:
        return "an answer that cannot be read"
    if status is ocsp.OCSPCertStatus.REVOKED:
        return _REVOKED
    return None if status is ocsp.OCSPCertStatus.GOOD else "unknown to the status service"


def _signed(answer: ocsp.OCSPResponse, authorities: Sequence[x509.Certificate], at: datetime) -> bool:
    responders = [*authorities, *(item for item in answer.certificates[:1] if _may_answer(item, authorities, at))]
    algorithm = answer.signature_hash_algorithm
    for responder in responders:
        key = responder.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(
            algorithm, (hashes.SHA256, hashes.SHA384, hashes.SHA512)
        ):
            try:
                key.verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(algorithm))
            except InvalidSignature:
                continue
            return True
    return False


def _may_answer(responder: x509.Certificate, authorities: Sequence[x509.Certificate], at: datetime) -> bool:
    try:
        usage = responder.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    valid = responder.not_valid_before_utc <= at <= responder.not_valid_after_utc
    return valid and ExtendedKeyUsageOID.OCSP_SIGNING in usage and any(_issued(responder, one) for one in authorities)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
