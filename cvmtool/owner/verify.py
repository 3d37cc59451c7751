# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Is this report genuine? Did the firmware of a real processor (or, said aloud, of a simulated one) sign these bytes?

Zone: owner (trusted). Pure: no I/O, no clock: certificates, revocation list and the time come in.
Spec: AMD 56860 SEV-SNP Firmware ABI, ATTESTATION_REPORT; AMD 57230 VCEK and KDS.

What must hold, in this order; the first that fails ends it, since nothing after it may be believed:

    P1  the bytes are a report: length, version, reserved bits, ranges               FormatError
    P2  a key signed it, and a guest asked for it (not the host itself)
    C1  the root is pinned          C2  each signature of the chain holds           C3  names, keys, roles, validity
    C4  nothing of the chain is revoked, when a list is given                       C5  sizes and counts are bounded
    B1  the certificate is of the kind of key that the report names
    B2  a VCEK is this chip's: HWID is CHIP_ID
    B3  the key is for REPORTED_TCB, component by component
    B4  CPUID, issuer, structVersion and TCB layout agree on the product line
    B5  no TCB is above CURRENT_TCB: a key above what runs is impossible
    S1  the signature over the first 672 bytes, as they were received, is that key's

Checks left out, and why: LAUNCH_TCB is not compared with COMMITTED_TCB (migration may part them), nor CURRENT with
COMMITTED (healthy hosts run ahead; the policy's floors judge each).
Genuine says nothing of acceptable: that is `appraise`.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cvmtool.formats.certtable import CertKind, CertTable
from cvmtool.formats.containers import Claims
from cvmtool.formats.report import SIGNED_BYTES, VMPL_HOST, Report, SigningKey, Tcbs, parse_report
from cvmtool.formats.tcb import ProductLine, Silicon
from cvmtool.owner.amdroots import Roots
from cvmtool.owner.chain import Chain, ChainCache, Revocation, build_chain, check_revocation, check_validity
from cvmtool.owner.checks import Check, NotGenuineError
from cvmtool.owner.vek import Vek, parse_vek

_MADE_HERE = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticReport:
    """A report that verified; only `verify_report` makes one. Genuine, and not yet judged.

    `raw`: the 1184 bytes as they were received. `silicon`: None in version 2, which does not say. `simulated`: a dry
    run's root vouches for it, so it proves nothing. `checks`: what was verified, in order.
    """

    report: Report
    raw: bytes
    line: ProductLine
    silicon: Silicon | None
    tcbs: Tcbs
    vek: Vek
    simulated: bool
    root_fingerprint: bytes
    revocation: Revocation
    verified_at: datetime
    checks: tuple[Check, ...]
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _MADE_HERE:
            raise TypeError("an AuthenticReport is made by verify_report alone")


def certificates_of(table: CertTable) -> tuple[bytes, ...]:
    """Return the certificates of a certificate table (unverified), ready for `verify_report`."""
    kinds = (CertKind.VCEK, CertKind.VLEK, CertKind.ASK, CertKind.ARK)
    return tuple(blob for blob in map(table.get, kinds) if blob is not None)


def verify_report(
    report: bytes,
    certificates: Sequence[bytes],
    roots: Roots,
    at: datetime,
    crl: bytes | None = None,
    *,
    cache: ChainCache | None = None,
) -> AuthenticReport:
    """Verify that `report` (1184 bytes, unverified) is genuine at the time `at` (aware), as the module's header says.

    `certificates`: DER or PEM in any order, from anywhere: leaf, intermediate and root. `crl`: DER; None leaves
    revocation unchecked, and the result says so. `cache` spares repeated verification of the same chain.

    Raises:
        FormatError: report, certificate or list is malformed (P1, C5).
        NotGenuineError: a check failed; `.check` says which.
    """
    if at.tzinfo is None:
        raise ValueError("the time of verification must be aware of its zone")
    parsed = parse_report(report)  # P1
    _check_signer(parsed)
    found = cache.get(certificates, parsed.signing_key, roots) if cache else None
    if found is None:
        built = build_chain(certificates, parsed.signing_key, roots)
        found = built, parse_vek(built.leaf, built.line)
        if cache:
            cache.put(certificates, parsed.signing_key, roots, found)
    chain, vek = found
    validity = check_validity(chain, at)
    revocation, revoked = check_revocation(chain, crl, at)
    product = _check_product(parsed, chain)
    tcbs = parsed.tcbs(chain.line)
    bindings = (product, _check_chip(parsed, vek), *_check_tcbs(tcbs, vek))
    signature = _check_signature(report, parsed, chain)
    return AuthenticReport(
        report=parsed,
        raw=report,
        line=chain.line,
        silicon=None if parsed.cpuid is None else parsed.cpuid.silicon,
        tcbs=tcbs,
        vek=vek,
        simulated=roots.simulated,
        root_fingerprint=chain.root_fingerprint,
        revocation=revocation,
        verified_at=at,
        checks=(*chain.checks, validity, *([revoked] if revoked else []), *bindings, signature),
        token=_MADE_HERE,
    )


def check_claims(authentic: AuthenticReport, claims: Claims) -> Check:
    """Check that REPORT_DATA is the hash of the `claims` that came along; until then they are the host's words.

    Raises:
        NotGenuineError: it is not.
    """
    actual, required = authentic.report.report_data, claims.report_data
    same = hmac.compare_digest(actual, required)
    return _require(_check("claims", actual.hex(), f"{required.hex()}, the hash of the claims", passed=same))


def _check_signer(report: Report) -> None:
    """P2."""
    if report.vmpl == VMPL_HOST:
        raise NotGenuineError(
            _check("requester", "the host itself (vmpl 0xffffffff)", "a guest", passed=False),
        )
    if report.signing_key is SigningKey.NONE:
        raise NotGenuineError(
            _check("signing-key", "none", "vcek or vlek", passed=False),
            hint="does the host forbid the chip's key? libvirt: launchSecurity vcek='yes'",
        )


def _check_product(report: Report, chain: Chain) -> Check:
    """B4. Version 2 has no CPUID: the issuer alone says which line it is, and policy may refuse version 2."""
    if report.cpuid is None:
        return _check("product", f"{chain.line} (by issuer)", "one product line", passed=True)
    line = report.cpuid.line
    check = _check(
        "product",
        f"{line or 'unknown'} (cpuid {report.cpuid})",
        f"{chain.line}, the line of its issuer",
        passed=line is chain.line,
    )
    return _require(check)


def _check_chip(report: Report, vek: Vek) -> Check:
    """B2. A VLEK belongs to a provider, not to a chip: there is nothing to bind."""
    if vek.hwid is None:
        return _check("chip", f"any of {vek.csp_id}", "a provider's key", passed=True)
    size = len(vek.hwid)
    same = report.chip_id[:size] == vek.hwid and not any(report.chip_id[size:])
    actual = "masked" if not any(report.chip_id) else report.chip_id[:size].hex()
    return _require(_check("chip", actual, f"{vek.hwid.hex()}, the chip of its certificate", passed=same))


def _check_tcbs(tcbs: Tcbs, vek: Vek) -> tuple[Check, Check]:
    """B3 and B5."""
    same = tcbs.reported == vek.tcb
    actual = str(tcbs.reported)
    bound = _require(
        _check("tcb-binding", actual, f"{actual if same else vek.tcb}, that of its certificate", passed=same)
    )
    above = [
        f"{name} above current in {', '.join(sorted(parts))}"
        for name, tcb in (("reported", tcbs.reported), ("committed", tcbs.committed))
        if (parts := tcbs.current.below(tcb))
    ]
    ordered = _check("tcb-order", "; ".join(above) or "none above current", "none above current", passed=not above)
    return bound, _require(ordered)


def _check_signature(received: bytes, report: Report, chain: Chain) -> Check:
    """S1, over the bytes as they came: a re-encoding could differ from what was signed."""
    signature = utils.encode_dss_signature(report.signature_r, report.signature_s)
    try:
        chain.leaf_key.verify(signature, received[:SIGNED_BYTES], ec.ECDSA(hashes.SHA384()))
        holds = True
    except InvalidSignature:
        holds = False
    actual = f"by {chain.leaf.common_name}" if holds else "invalid"
    return _require(_check("signature", actual, f"by {chain.leaf.common_name}", passed=holds))


def _require(check: Check) -> Check:
    if not check.passed:
        raise NotGenuineError(check)
    return check


_WHY = {
    "requester": "the host can ask for a report over any data; it says nothing of the guest",
    "signing-key": "an unsigned report can be written by anyone",
    "product": "lines differ in what the bytes mean and in which root vouches for them",
    "chip": "another chip's key, perhaps one that leaked, must not vouch for this one",
    "tcb-binding": "a key belongs to one set of firmware versions; an older one may have leaked",
    "tcb-order": "a key for newer firmware than what runs cannot exist",
    "claims": "claims that the report does not vouch for are the host's own words",
    "signature": "without it every other field could be written by anyone",
}


def _check(code: str, actual: str, required: str, *, passed: bool) -> Check:
    return Check(code, actual, required, passed, why=_WHY[code])
