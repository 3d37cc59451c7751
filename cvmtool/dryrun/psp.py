# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The simulated secure processor: answers a guest's report requests for what QEMU was really given.

Zone: dryrun (simulated; never confidential).
Spec: docs/protocol.md section 7; AMD 56860 SEV-SNP Firmware ABI, MSG_REPORT_REQ, MSG_REPORT_RSP, ATTESTATION_REPORT.

The launch digest is computed here from the launched artefacts, never from what an owner expects: a host that swaps one
is refused by the same code as on real hardware. Two things are simulated, no more: this processor, memory encryption.
"""

from __future__ import annotations

import logging
import secrets
import struct
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cvmtool.dryrun.amd import Chip, FakeAmd
from cvmtool.dryrun.faults import Fault
from cvmtool.dryrun.finish import finish_launch
from cvmtool.errors import FormatError
from cvmtool.formats.certtable import CertTable
from cvmtool.formats.idblock import LaunchIdentity
from cvmtool.formats.policybits import PLATFORM_BITS, POLICY_BITS, GuestPolicy, PlatformInfo
from cvmtool.formats.report import VMPL_HOST, FirmwareVersion, Report, SigningKey
from cvmtool.formats.reportmsg import (
    REQUEST_BYTES,
    STATUS_INVALID_KEY_SELECTION,
    STATUS_INVALID_PARAMETERS,
    STATUS_SUCCESS,
    KeySelection,
    ReportRequest,
    ReportResponse,
    parse_request,
)
from cvmtool.formats.tcb import Cpuid, ProductLine, Tcb
from cvmtool.measure.hashes import parse_table
from cvmtool.measure.launch import launch_digest

MAGIC = b"PSP1"
ID_BYTES = 16
MESSAGE_BYTES = len(MAGIC) + ID_BYTES + REQUEST_BYTES

_CPUIDS = {
    ProductLine.MILAN: Cpuid(family=0x19, model=0x01, stepping=1),
    ProductLine.GENOA: Cpuid(family=0x19, model=0x11, stepping=1),
    ProductLine.TURIN: Cpuid(family=0x1A, model=0x02, stepping=1),
}
# At or above every floor in owner/tcb-floors.toml, which a test checks.
_HEALTHY = {
    ProductLine.MILAN: Tcb(line=ProductLine.MILAN, bootloader=4, tee=0, snp=28, microcode=222),
    ProductLine.GENOA: Tcb(line=ProductLine.GENOA, bootloader=10, tee=0, snp=28, microcode=88),
    ProductLine.TURIN: Tcb(line=ProductLine.TURIN, fmc=1, bootloader=2, tee=1, snp=4, microcode=80),
}
_FIRMWARE = FirmwareVersion(major=1, minor=58, build=3)
_MITIGATIONS = {ProductLine.MILAN: 0x0B, ProductLine.GENOA: 0x0B, ProductLine.TURIN: 0x3F}
_PLATFORM = ("smt-en", "ecc-en", "alias-check-complete", "iommu-write-safe")
_RECEIVE_BYTES = 4096

_log = logging.getLogger(__name__)


class Stream(Protocol):
    """The host's end of the port: what `socket.socket` offers. `recv` returns no bytes at the end."""

    def recv(self, size: int, /) -> bytes:
        """Return up to `size` bytes."""

    def sendall(self, data: bytes, /) -> None:
        """Send every byte."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFacts:
    """What the live domain was really given.

    `firmware`: the whole image. `hash_table`: the 176 bytes loaded for kernel, initrd and command line, empty if none.
    `host_data`, `report_id`: 32 bytes. `policy`: GUEST_POLICY. `cpu`: QEMU's model. `guest_features`: SEV_FEATURES.
    `identity`: ID block and authentication, None if the launch has none.
    """

    firmware: bytes
    hash_table: bytes
    vcpus: int
    cpu: str
    host_data: bytes
    policy: int
    report_id: bytes
    guest_features: int = 1
    identity: LaunchIdentity | None = None

    def digest(self) -> bytes:
        """Return the launch digest, 48 bytes.

        Raises:
            FormatError: firmware or hash table are malformed.
            ConfigError: the firmware would not measure the kernel, or CPU, count or features are impossible.
        """
        return launch_digest(
            self.firmware,
            hashes=parse_table(self.hash_table) if self.hash_table else None,
            cpu=self.cpu,
            vcpus=self.vcpus,
            guest_features=self.guest_features,
        )


class SimulatedPsp:
    """One virtual machine's secure processor, at the moment after its launch.

    `version` is that of its reports: 3 or 5 (2 with the fault that asks for it).

    Raises:
        FormatError: the facts are not those of a launch that a processor would accept.
        ConfigError: as `LaunchFacts.digest`.
        AppraisalError: the launch is not the one that its ID block is for.
    """

    def __init__(self, amd: FakeAmd, facts: LaunchFacts, fault: Fault = Fault.NONE, *, version: int = 5) -> None:
        self._fault = fault
        self._amd = FakeAmd.temporary(amd.line) if fault is Fault.UNKNOWN_ROOT else amd
        self._chip = self._amd.chip()
        self._tcb = _HEALTHY[amd.line]
        self._first_report_data: bytes | None = None
        template = _template(amd.line, self._chip, facts, version)
        if fault is Fault.OLD_TCB:
            self._tcb = replace(self._tcb, snp=self._tcb.snp - 3 if amd.line is ProductLine.TURIN else 20)
            old = self._tcb.encode()
            template = replace(template, current_tcb=old, reported_tcb=old, committed_tcb=old, launch_tcb=old)
        self._template = _lie(template, fault)
        self._table = self._certificates().encode()

    def respond(self, message: bytes) -> bytes:
        """Answer one request (116 bytes: magic, id, MSG_REPORT_REQ) with magic, id, response and certificate table.

        A request that is malformed or asks for a key that this chip lacks gets an error status and an empty table.

        Raises:
            FormatError: the message is not framed as a request, so there is no id to answer to.
        """
        if len(message) != MESSAGE_BYTES or not message.startswith(MAGIC):
            raise FormatError(f"psp message has {len(message)} bytes; required: {MESSAGE_BYTES}, with its magic")
        table = b""
        try:
            request = parse_request(message[len(MAGIC) + ID_BYTES :])
        except FormatError as error:
            _log.debug("report request refused: %s", error.message)
            response = ReportResponse(status=STATUS_INVALID_PARAMETERS, report=b"")
        else:
            if request.key is KeySelection.VLEK:
                response = ReportResponse(status=STATUS_INVALID_KEY_SELECTION, report=b"")
            else:
                response = ReportResponse(status=STATUS_SUCCESS, report=self.report(request))
                table = self._table
        body = response.encode()
        return b"".join(
            (
                message[: len(MAGIC) + ID_BYTES],
                struct.pack("<I", len(body)),
                body,
                struct.pack("<I", len(table)),
                table,
            )
        )

    def report(self, request: ReportRequest) -> bytes:
        """Return the signed report (1184 bytes) for `request`, with this processor's fault in it."""
        report_data = request.report_data
        if self._fault is Fault.WRONG_NONCE:
            report_data = secrets.token_bytes(len(report_data))
        if self._fault is Fault.REPLAYED_REPORT:
            # The first answer is honest; every later one repeats it. A replay needs an earlier report.
            self._first_report_data = self._first_report_data or report_data
            report_data = self._first_report_data
        vmpl = {Fault.VMPL: max(request.vmpl, 2), Fault.HOST_REPORT: VMPL_HOST}.get(self._fault, request.vmpl)
        return self._sign(replace(self._template, report_data=report_data, vmpl=vmpl))

    @property
    def table(self) -> bytes:
        """The certificate table beside each report."""
        return self._table

    def serve(self, stream: Stream) -> None:
        """Answer requests until the stream ends; what is not a request is skipped up to the next magic."""
        buffer = b""
        while received := stream.recv(_RECEIVE_BYTES):
            buffer += received
            while (at := buffer.find(MAGIC)) >= 0 and len(buffer) - at >= MESSAGE_BYTES:
                message, buffer = buffer[at : at + MESSAGE_BYTES], buffer[at + MESSAGE_BYTES :]
                stream.sendall(self.respond(message))
                if not _well_formed(message):
                    # A request may begin inside what looked like one.
                    buffer = message[len(MAGIC) :] + buffer
            # Bounded: without a magic only what could begin one is kept.
            buffer = buffer[at:] if at >= 0 else buffer[-(len(MAGIC) - 1) :]

    def _certificates(self) -> CertTable:
        amd, chip, tcb, until = self._amd, self._chip, self._tcb, None
        match self._fault:
            case Fault.SWAPPED_CERTIFICATE:
                chip = amd.chip(1)
            case Fault.ROLLED_BACK_TCB:
                tcb = replace(tcb, snp=tcb.snp - 1)
            case Fault.EXPIRED_CERTIFICATE:
                until = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
        crl = None if self._fault is Fault.MISSING_CRL else amd.crl(revoke_ask=self._fault is Fault.REVOKED_KEY)
        return amd.table(amd.vcek_certificate(chip, tcb, not_after=until), crl)

    def _sign(self, report: Report) -> bytes:
        chip = self._amd.chip(1) if self._fault is Fault.OTHER_CHIP else self._chip
        signature = chip.vcek(self._tcb).sign(report.signed, ec.ECDSA(hashes.SHA384()))
        r, s = utils.decode_dss_signature(signature)
        if self._fault is Fault.BAD_SIGNATURE:
            s ^= 1 << 64
        return replace(report, signature_r=r, signature_s=s).encode()


def _well_formed(message: bytes) -> bool:
    try:
        parse_request(message[len(MAGIC) + ID_BYTES :])
    except FormatError:
        return False
    return True


def _template(line: ProductLine, chip: Chip, facts: LaunchFacts, version: int) -> Report:
    """Return the report of a healthy machine, unsigned and over no REPORT_DATA yet."""
    tcb = _HEALTHY[line].encode()
    mitigations = _MITIGATIONS[line] if version >= 5 else 0
    digest, policy, identity = facts.digest(), GuestPolicy(facts.policy), facts.identity
    if identity is not None:
        finish_launch(identity, digest=digest, policy=policy)
    author = None if identity is None else identity.auth.author
    return Report(
        version=version,
        guest_svn=0 if identity is None else identity.block.guest_svn,
        policy=policy,
        family_id=bytes(16) if identity is None else identity.block.family_id,
        image_id=bytes(16) if identity is None else identity.block.image_id,
        vmpl=0,
        current_tcb=tcb,
        platform_info=PlatformInfo(sum(1 << PLATFORM_BITS[name] for name in _PLATFORM)),
        author_key_en=author is not None,
        mask_chip_key=False,
        signing_key=SigningKey.VCEK,
        report_data=bytes(64),
        measurement=digest,
        host_data=facts.host_data,
        id_key_digest=bytes(48) if identity is None else identity.auth.key.digest,
        author_key_digest=bytes(48) if author is None else author.key.digest,
        report_id=facts.report_id,
        report_id_ma=b"\xff" * 32,
        reported_tcb=tcb,
        cpuid=_CPUIDS[line],
        chip_id=chip.chip_id,
        committed_tcb=tcb,
        current_firmware=_FIRMWARE,
        committed_firmware=_FIRMWARE,
        launch_tcb=tcb,
        launch_mit_vector=mitigations,
        current_mit_vector=mitigations,
        signature_r=1,
        signature_s=1,
    )


def _lie(report: Report, fault: Fault) -> Report:
    """Return `report` with the fault that stands in its fields; other faults leave it as it is."""
    match fault:
        case Fault.WRONG_MEASUREMENT:
            return replace(report, measurement=bytes((report.measurement[0] ^ 1,)) + report.measurement[1:])
        case Fault.DEBUG_POLICY:
            return replace(report, policy=GuestPolicy(report.policy.value | 1 << POLICY_BITS["debug"]))
        case Fault.MIGRATABLE:
            return replace(report, policy=GuestPolicy(report.policy.value | 1 << POLICY_BITS["migrate-ma"]))
        case Fault.ALIAS_CHECK:
            cleared = report.platform_info.value & ~(1 << PLATFORM_BITS["alias-check-complete"])
            return replace(report, platform_info=PlatformInfo(cleared))
        case Fault.WRONG_HOST_DATA:
            return replace(report, host_data=bytes((report.host_data[0] ^ 1,)) + report.host_data[1:])
        case Fault.OLD_REPORT_VERSION:
            return replace(report, version=2, cpuid=None, launch_mit_vector=0, current_mit_vector=0)
    return report
