# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""AMD's key service: what to ask it about a report, and one file out of what it answers.

Zone: owner (trusted). Pure: no I/O. `flows.collateral` asks; whatever comes back is unverified, and counts once it chains to a
pinned root.
Spec: AMD 57230 VCEK and KDS, section 4 (paths).

    /vcek/v1/{line}/{hwid}?blSPL=..&teeSPL=..&snpSPL=..&ucodeSPL=..     the certificate of a chip at a TCB, DER
    /vcek/v1/{line}/cert_chain                                          intermediate and root, PEM
    /vcek/v1/{line}/crl                                                 the revocation list, DER

Turin's HWID has 8 bytes (16 hex digits), and its request begins with fmcSPL. The TCB is REPORTED_TCB: the key was derived from
it. A VLEK is the provider's to hand out; its chain and list are under /vlek.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cvmtool.errors import ConfigError, FormatError
from cvmtool.formats.certtable import CertKind, CertTable
from cvmtool.formats.report import Report, SigningKey
from cvmtool.formats.tcb import ProductLine, Tcb
from cvmtool.owner.certificate import parse_certificate, split_certificates
from cvmtool.owner.vek import HWID_BYTES

AMD_URL = "https://kdsintf.amd.com"

_PARAMETERS = {"fmc": "fmcSPL", "bootloader": "blSPL", "tee": "teeSPL", "snp": "snpSPL", "microcode": "ucodeSPL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """What to ask about a report. `hwid` (64 bytes, 8 on Turin) is None for a VLEK, whose certificate is not AMD's to give."""

    line: ProductLine
    kind: SigningKey
    hwid: bytes | None
    tcb: Tcb

    @property
    def chain_path(self) -> str:
        """Where intermediate and root are."""
        return f"/{self._service}/v1/{self.line}/cert_chain"

    @property
    def crl_path(self) -> str:
        """Where the revocation list is."""
        return f"/{self._service}/v1/{self.line}/crl"

    @property
    def vek_path(self) -> str | None:
        """Where the certificate of the signing key is, None for a VLEK."""
        if self.hwid is None:
            return None
        query = "&".join(f"{_PARAMETERS[name]}={value:02}" for name, value in self.tcb.components().items())
        return f"/vcek/v1/{self.line}/{self.hwid.hex()}?{query}"

    @property
    def _service(self) -> str:
        return "vlek" if self.kind is SigningKey.VLEK else "vcek"


def inquire(report: Report, line: ProductLine | None = None) -> Inquiry:
    """Return what to ask about `report` (unverified). `line` is for version 2 alone, which does not say.

    Raises:
        ConfigError: the line is unknown, or `line` contradicts the report.
        FormatError: the report is not signed, its chip is masked, or its identifier or TCB is not its line's.
    """
    found = report.line or line
    if found is None:
        raise ConfigError(
            f"the product line is not in a report of version {report.version}; required: --line"
            if report.cpuid is None
            else f"processor {report.cpuid} is unknown; required: one of {', '.join(ProductLine)}",
        )
    if line not in (None, found):
        raise ConfigError(f"the product line is {line}; required: {found}, which the report says")
    if report.signing_key is SigningKey.NONE:
        raise FormatError("signing_key is none; required: vcek or vlek")
    hwid = None
    if report.signing_key is SigningKey.VCEK:
        size = HWID_BYTES[found]
        hwid = report.chip_id[:size]
        if not any(hwid):
            raise FormatError(
                "chip_id is masked; required: a chip's identifier, to ask for its certificate",
                hint="does the host set MaskChipId? then only it can hand over the certificate (--vek)",
            )
        if any(report.chip_id[size:]):
            raise FormatError(f"chip_id has more than {size} bytes; required: {size} on {found}")
    return Inquiry(line=found, kind=report.signing_key, hwid=hwid, tcb=report.tcbs(found).reported)


def certificate_table(certificates: Iterable[bytes], crl: bytes | None) -> CertTable:
    """Return a certificate table of `certificates` (DER or PEM, in any order) and the list; each finds its place by its name.

    Raises:
        FormatError: a certificate is none, is not AMD's, or there are two for one place.
    """
    entries: list[tuple[str, bytes]] = []
    for blob in certificates:
        for der in split_certificates(blob):
            kind = _kind(parse_certificate(der).common_name)
            if (kind, der) not in entries:
                entries.append((kind, der))
    if crl is not None:
        entries.append((CertKind.CRL, crl))
    return CertTable(tuple(entries))


def bundle(report: bytes, certificates: Iterable[bytes], crl: bytes | None) -> bytes:
    """Return one file that verifies anywhere: the report (1184 bytes) and its table, as an extended report has them.

    Raises:
        FormatError: as `certificate_table`.
    """
    return report + certificate_table(certificates, crl).encode()


def _kind(name: str | None) -> CertKind:
    match name:
        case "SEV-VCEK":
            return CertKind.VCEK
        case "SEV-VLEK":
            return CertKind.VLEK
        case str() if name.startswith("ARK-"):
            return CertKind.ARK
        case str() if name.startswith("SEV-"):
            return CertKind.ASK
        case _:
            raise FormatError(f"certificate name is {name}; required: one of amd's")
