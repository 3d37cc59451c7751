# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Build and verify the chain from a pinned root to the key that signed a report.

Zone: owner (trusted). Pure: no I/O; the time comes in.
Spec: AMD 57230 VCEK and KDS, section 2: ARK -> ASK -> VCEK, ARK -> ASVK -> VLEK.

Certificates come in as a bag, in any order and from anywhere; each finds its place by name and signature, and nothing
counts until the pinned root vouches for it. Verifying the signatures does not depend on the time, so a `ChainCache`
may remember them; validity and revocation are checked each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cvmtool.errors import FormatError
from cvmtool.formats.report import SigningKey
from cvmtool.formats.tcb import ProductLine
from cvmtool.owner.amdroots import Roots
from cvmtool.owner.certificate import (
    MAX_CERTIFICATES,
    Certificate,
    amd_common_name,
    p384_key,
    parse_certificate,
    rsa_key,
    signed_by,
    split_certificates,
)
from cvmtool.owner.checks import Check, NotGenuineError
from cvmtool.owner.crl import parse_crl, signed_by_root
from cvmtool.owner.der import BOOLEAN, SEQUENCE, Der
from cvmtool.owner.vek import AMD_ARC, COMMON_NAMES, Vek

_BASIC_CONSTRAINTS = "2.5.29.19"
_KEY_USAGE = "2.5.29.15"
_KEY_CERT_SIGN = 0x04  # bits 5, 6 and 0 of KeyUsage, counted from the left
_CRL_SIGN = 0x02
_DIGITAL_SIGNATURE = 0x80

_ISSUERS = {
    **{f"SEV-{line}": (line, SigningKey.VCEK) for line in ProductLine},
    **{f"SEV-VLEK-{line}": (line, SigningKey.VLEK) for line in ProductLine},
}
_CACHED_CHAINS = 64


class Revocation(StrEnum):
    """What is known of revoked intermediates: looked up in a list that holds at the time, or not looked up at all."""

    CHECKED = "checked"
    NOT_CHECKED = "not-checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Certificates whose signatures lead from a pinned root to the leaf; `checks` say how.

    `root_fingerprint`: SHA-256, 32 bytes. All of the three hold from `not_before` to `not_after`, both included.
    """

    line: ProductLine
    root: Certificate
    root_fingerprint: bytes
    intermediate: Certificate
    leaf: Certificate
    root_key: rsa.RSAPublicKey
    leaf_key: ec.EllipticCurvePublicKey
    not_before: datetime
    not_after: datetime
    checks: tuple[Check, ...]


class ChainCache:
    """Remembers up to 64 verified chains and what their leaves say, by certificates, kind and roots. Not thread-safe."""

    __slots__ = ("_chains",)

    def __init__(self) -> None:
        self._chains: OrderedDict[tuple[object, ...], tuple[Chain, Vek]] = OrderedDict()

    def get(self, certificates: Sequence[bytes], kind: SigningKey, roots: Roots) -> tuple[Chain, Vek] | None:
        """Return what was remembered for exactly these, None when there is nothing."""
        key = (kind, roots, *certificates)
        found = self._chains.get(key)
        if found is not None:
            self._chains.move_to_end(key)
        return found

    def put(self, certificates: Sequence[bytes], kind: SigningKey, roots: Roots, found: tuple[Chain, Vek]) -> None:
        """Remember a verified chain and its leaf's claims; the one that was used least recently makes room."""
        self._chains[(kind, roots, *certificates)] = found
        while len(self._chains) > _CACHED_CHAINS:
            self._chains.popitem(last=False)


def build_chain(certificates: Sequence[bytes], kind: SigningKey, roots: Roots) -> Chain:
    """Find and verify the chain from a root that `roots` accepts to the leaf of `kind`.

    `certificates`: DER or PEM blobs in any order, at most 16 certificates of at most 16 KiB (unverified).

    C5  sizes, counts and DER are within bounds
    B1  the leaf is of the kind of key that the report names
    C1  the root of the leaf's line is pinned, and signs itself
    C2  the root signed the intermediate, and that signed the leaf
    C3  names, keys and extensions are those of the role

    Raises:
        FormatError: a blob is not a certificate, or there are too many.
        NotGenuineError: no chain leads from a pinned root to the leaf.
    """
    bag = _parse_bag(certificates)
    leaf = _leaf(bag, kind)
    line = _line_of(leaf, kind)
    root, fingerprint, root_key = _root(bag, line, roots)
    intermediate, intermediate_key = _intermediate(bag, leaf, root, root_key)
    if not signed_by(intermediate_key, leaf.signature, leaf.signed):
        raise _broken_chain("signature of the signing key's certificate", f"SEV certificate of {line}")
    leaf_key = _leaf_key(leaf)
    path = (root, intermediate, leaf)
    return Chain(
        line=line,
        root=root,
        root_fingerprint=fingerprint,
        intermediate=intermediate,
        leaf=leaf,
        root_key=root_key,
        leaf_key=leaf_key,
        not_before=max(certificate.not_before for certificate in path),
        not_after=min(certificate.not_after for certificate in path),
        checks=(
            _check("root-pinned", fingerprint.hex(), roots.describe(line), passed=True),
            _check("chain", " > ".join(str(c.common_name) for c in path), "each signed by the one before", passed=True),
        ),
    )


def check_validity(chain: Chain, at: datetime) -> Check:
    """C3: every certificate holds at `at`.

    Raises:
        NotGenuineError: one does not hold yet, or no longer.
    """
    required = f"to hold at {at.isoformat()}"
    if chain.not_before <= at <= chain.not_after:
        return _check("certificate-validity", f"until {chain.not_after.date().isoformat()}", required, passed=True)
    actual = ", ".join(
        f"{certificate.common_name} from {certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}"
        for certificate in (chain.root, chain.intermediate, chain.leaf)
        if not certificate.not_before <= at <= certificate.not_after
    )
    raise NotGenuineError(
        _check("certificate-validity", actual, required, passed=False), hint="is the clock of this machine right?"
    )


def check_revocation(chain: Chain, crl: bytes | None, at: datetime) -> tuple[Revocation, Check | None]:
    """C4: the list is the root's, holds at `at` and names none of the chain; no list at all is said, not passed over.

    Raises:
        FormatError: `crl` is not a revocation list.
        NotGenuineError: the list is another's, stale or from the future, or names a certificate of the chain.
    """
    if crl is None:
        return Revocation.NOT_CHECKED, None
    parsed = parse_crl(crl)
    if not _allows(chain.root, _CRL_SIGN) or not signed_by_root(parsed, chain.root, chain.root_key):
        raise NotGenuineError(
            _check("revocation", "a list with another signature", f"signed by ARK-{chain.line}", passed=False)
        )
    span = f"{parsed.this_update.isoformat()} to {parsed.next_update.isoformat()}"
    if not parsed.this_update <= at <= parsed.next_update:
        raise NotGenuineError(
            _check("revocation", f"a list from {span}", f"to hold at {at.isoformat()}", passed=False),
            hint="fetch the product line's revocation list again",
        )
    for certificate in (chain.root, chain.intermediate):
        if certificate.serial in parsed.revoked:
            raise NotGenuineError(
                _check("revocation", f"{certificate.common_name} revoked", "not revoked", passed=False)
            )
    return Revocation.CHECKED, _check("revocation", f"not revoked, list from {span}", "not revoked", passed=True)


def _parse_bag(blobs: Sequence[bytes]) -> list[Certificate]:
    if len(blobs) > MAX_CERTIFICATES:
        raise FormatError(f"there are {len(blobs)} certificates; required: at most {MAX_CERTIFICATES}")
    distinct = dict.fromkeys(der for blob in blobs for der in split_certificates(blob))
    if len(distinct) > MAX_CERTIFICATES:
        raise FormatError(f"there are {len(distinct)} certificates; required: at most {MAX_CERTIFICATES}")
    return [parse_certificate(der) for der in distinct]


def _leaf(bag: list[Certificate], kind: SigningKey) -> Certificate:
    leaves = [certificate for certificate in bag if (certificate.common_name or "") in COMMON_NAMES]
    wanted = [leaf for leaf in leaves if COMMON_NAMES[leaf.common_name or ""] is kind]
    if leaves and not wanted:
        raise NotGenuineError(
            _check("key-kind", f"a certificate of {leaves[0].common_name}", f"of SEV-{kind.name}", passed=False)
        )
    if len(wanted) != 1:
        raise NotGenuineError(
            _check("chain", f"{len(wanted)} certificates of SEV-{kind.name}", "exactly 1", passed=False),
            hint="give the certificate of the key that signed this report (--vek)",
        )
    return wanted[0]


def _line_of(leaf: Certificate, kind: SigningKey) -> ProductLine:
    issuer = amd_common_name(leaf.issuer)
    line, issues = _ISSUERS.get(issuer or "", (None, None))
    if line is None or issues is not kind:
        raise _broken_chain(f"issuer {issuer}", f"SEV{'-VLEK' if kind is SigningKey.VLEK else ''}-<product line>")
    return line


def _root(bag: list[Certificate], line: ProductLine, roots: Roots) -> tuple[Certificate, bytes, rsa.RSAPublicKey]:
    """C1. A root is believed for being pinned; its name and signature on itself only have to fit.

    AMD's three pins are of certificates that are known to sign themselves (a test verifies it), and a certificate with the
    same SHA-256 is the same certificate: that signature is not computed again. A simulated root's is.
    """
    name = f"ARK-{line}"
    named = {certificate.fingerprint: certificate for certificate in bag if certificate.common_name == name}
    fingerprint = next((fingerprint for fingerprint in named if roots.accepts(line, fingerprint)), None)
    if fingerprint is None:
        actual = ", ".join(fingerprint.hex() for fingerprint in named) or f"no certificate of {name}"
        raise NotGenuineError(
            _check("root-pinned", actual, roots.describe(line), passed=False),
            hint=f"give AMD's certificate chain of {line} (--chain)" if not named else None,
        )
    root = named[fingerprint]
    key = _ca_key(root, "root")
    if root.issuer != root.subject or (roots.simulated and not signed_by(key, root.signature, root.signed)):
        raise _broken_chain("root signed by another", "signed by itself")
    return root, fingerprint, key


def _intermediate(
    bag: list[Certificate], leaf: Certificate, root: Certificate, root_key: rsa.RSAPublicKey
) -> tuple[Certificate, rsa.RSAPublicKey]:
    """C2. Of several certificates with the issuer's name, the one that the root signed."""
    candidates = [certificate for certificate in bag if certificate.subject == leaf.issuer]
    for candidate in candidates:
        if candidate.issuer == root.subject and signed_by(root_key, candidate.signature, candidate.signed):
            return candidate, _ca_key(candidate, "intermediate")
    actual = "none that the root signed" if candidates else "missing"
    raise NotGenuineError(
        _check("chain", f"intermediate {amd_common_name(leaf.issuer)} {actual}", "signed by the root", passed=False),
        hint="give AMD's certificate chain (--chain)" if not candidates else None,
    )


def _ca_key(certificate: Certificate, role: str) -> rsa.RSAPublicKey:
    """C3 for root and intermediate: RSA-4096, may sign certificates, nothing critical that is not understood."""
    key = rsa_key(certificate.spki)
    if key is None:
        raise _bad_profile(f"{role} key of another kind", "rsa-4096")
    extension = certificate.extensions.get(_BASIC_CONSTRAINTS)
    constraints = None if extension is None else Der(extension.value, f"{role} basicConstraints").enter(SEQUENCE)
    if constraints is None or constraints.peek() != BOOLEAN or not constraints.boolean():
        raise _bad_profile(f"{role} that is no certificate authority", "basicConstraints ca")
    if not _allows(certificate, _KEY_CERT_SIGN):
        raise _bad_profile(f"{role} that may not sign certificates", "keyUsage keyCertSign")
    _no_unknown_critical(certificate, role, {_BASIC_CONSTRAINTS, _KEY_USAGE})
    return key


def _leaf_key(leaf: Certificate) -> ec.EllipticCurvePublicKey:
    """C3 for the leaf: P-384, no certificate authority, nothing critical that is not understood."""
    key = p384_key(leaf.spki)
    if key is None:
        raise _bad_profile("signing key of another kind", "p-384")
    if _BASIC_CONSTRAINTS in leaf.extensions:
        raise _bad_profile("signing key with basicConstraints", "none")
    if not _allows(leaf, _DIGITAL_SIGNATURE):
        raise _bad_profile("signing key that may not sign", "keyUsage digitalSignature")
    known = {oid for oid in leaf.extensions if oid.startswith(AMD_ARC)}
    _no_unknown_critical(leaf, "signing key", {_KEY_USAGE, *known})
    return key


def _allows(certificate: Certificate, usage: int) -> bool:
    """Whether keyUsage, when it is there, has the bit `usage` of its first byte."""
    extension = certificate.extensions.get(_KEY_USAGE)
    if extension is None:
        return True
    value = extension.value
    # BIT STRING of one or two bytes behind the count of unused bits.
    if len(value) not in (4, 5) or value[0] != 3 or value[1] != len(value) - 2 or value[2] > 7:
        raise FormatError(f"certificate keyUsage is {value.hex()[:32]}; required: a short bit string")
    return bool(value[3] & usage)


def _no_unknown_critical(certificate: Certificate, role: str, known: set[str]) -> None:
    for oid, extension in certificate.extensions.items():
        if extension.critical and oid not in known:
            raise _bad_profile(f"{role} with critical extension {oid}", "none that is unknown")


_WHY = {
    "root-pinned": "another root could be anyone's: whoever holds it can sign any report",
    "chain": "each certificate counts only because the one above vouches for it",
    "certificate-profile": "a certificate made for another purpose must not stand in for this one",
    "certificate-validity": "AMD vouches for a key for a limited time",
    "revocation": "AMD withdraws intermediates that it no longer trusts",
    "key-kind": "a report says which kind of key signed it; another kind's certificate is a substitution",
}


def _check(code: str, actual: str, required: str, *, passed: bool) -> Check:
    return Check(code, actual, required, passed, why=_WHY[code])


def _broken_chain(actual: str, required: str) -> NotGenuineError:
    return NotGenuineError(_check("chain", actual, required, passed=False))


def _bad_profile(actual: str, required: str) -> NotGenuineError:
    return NotGenuineError(_check("certificate-profile", actual, required, passed=False))
