# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Sign a launch digest, so that the firmware refuses to finish any other launch; and check such a signature.

Zone: owner (trusted). Pure: no I/O; keys come in as PEM.
Spec: AMD 56860 SEV-SNP Firmware ABI, SNP_LAUNCH_FINISH: ECDSA over P-384 with SHA-384.

The ID key signs the ID block. An author key may sign the ID key in turn: it can stay offline while ID keys change, and a
policy that trusts the author trusts them all. The digests of both keys then stand in every report.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cvmtool.errors import ConfigError, VerificationError
from cvmtool.formats.idblock import Author, IdAuth, IdBlock, P384Key, Signature

_ECDSA = ec.ECDSA(hashes.SHA384())


def load_signing_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a private key that signs launches: P-384, PEM, not encrypted.

    Raises:
        ConfigError: not PEM, encrypted, or of another kind. The message never holds a byte of it.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(
            "the signing key is not a private key on p-384; required: pem without a password",
            hint="make one with: openssl ecparam -name secp384r1 -genkey -noout -out id.pem",
        )
    return key


def public_key(key: ec.EllipticCurvePrivateKey) -> P384Key:
    """Return the public half of a signing key."""
    numbers = key.public_key().public_numbers()
    return P384Key(x=numbers.x, y=numbers.y)


def sign_launch(
    block: IdBlock, id_key: ec.EllipticCurvePrivateKey, author_key: ec.EllipticCurvePrivateKey | None = None
) -> IdAuth:
    """Return the ID authentication of `block`: signed by `id_key`, which `author_key` signs if it is given."""
    key = public_key(id_key)
    author = None
    if author_key is not None:
        author = Author(key=public_key(author_key), signature=_sign(author_key, key.encode()))
    return IdAuth(key=key, signature=_sign(id_key, block.encode()), author=author)


def verify_launch_signature(block: IdBlock, auth: IdAuth) -> None:
    """Check both signatures, as the firmware does at the end of a launch. Whose keys they are is the caller's question.

    Raises:
        VerificationError: one does not hold.
    """
    if not _holds(auth.key, auth.signature, block.encode()):
        raise VerificationError("the signature of the id block is invalid; required: one by its id key")
    verify_author(auth)


def verify_author(auth: IdAuth) -> None:
    """Check the author's signature of the ID key, if there is an author.

    Raises:
        VerificationError: it does not hold.
    """
    if auth.author is not None and not _holds(auth.author.key, auth.author.signature, auth.key.encode()):
        raise VerificationError("the signature of the id key is invalid; required: one by its author key")


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> Signature:
    r, s = utils.decode_dss_signature(key.sign(data, _ECDSA))
    return Signature(r=r, s=s)


def _holds(key: P384Key, signature: Signature, data: bytes) -> bool:
    public = ec.EllipticCurvePublicNumbers(key.x, key.y, ec.SECP384R1()).public_key()
    try:
        public.verify(utils.encode_dss_signature(signature.r, signature.s), data, _ECDSA)
    except InvalidSignature:
        return False
    return True
