# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Get an attestation report: configfs-tsm, else /dev/sev-guest, else (dry runs only) the simulated port.

Zone: guest (measured).
Spec: Linux Documentation/ABI/testing/configfs-tsm-report; include/uapi/linux/sev-guest.h; AMD 56860 MSG_REPORT_REQ;
docs/protocol.md section 7.

Nothing here decides whether a report is genuine: that is the owner's part. What is checked is that the report answers
*this* request, because a mix-up would only be noticed by the owner, as an attack.
"""

from __future__ import annotations

import array
import errno
import fcntl
import hmac
import os
import secrets
import select
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from cvmtool.errors import FormatError, FreshnessError, HostError
from cvmtool.formats.channel import PSP_PORT
from cvmtool.formats.evidence import MAX_CERT_TABLE, REPORT_SIZE
from cvmtool.formats.reportmsg import REPORT_DATA_BYTES, STATUS_SUCCESS, ReportRequest, parse_response

DRYRUN_WORD = "cvmtool.dryrun=1"
_REPORT_DATA = slice(0x50, 0x90)
_HOST_DATA = slice(0xC0, 0xE0)

_OTHER = "the report is over other REPORT_DATA"
_ATTEMPTS = 5
_PAUSE_SECONDS = 0.5  # the secure processor throttles: VMM error "busy"

_IOCTL = struct.Struct("<B7xQQQ")  # snp_guest_request_ioctl: message version, request, response, exitinfo2
_GET_REPORT = 0xC020_5300  # _IOWR('S', 0, 32 bytes)
_GET_EXT_REPORT = 0xC020_5302  # _IOWR('S', 2, 32 bytes)
_RESPONSE_SIZE = 4_000  # bytes, snp_report_resp
_CERTS_SIZE = 16_384  # bytes, the most that the driver takes; whole pages

_PSP_MAGIC = b"PSP1"
_PSP_MOST = 8_192  # bytes of one MSG_REPORT_RSP
_PSP_SECONDS = 20.0  # a busy host signs slowly under emulation


@dataclass(frozen=True, slots=True, kw_only=True)
class RawReport:
    """A report as the platform gave it, unverified."""

    report: bytes
    """1184 bytes, ATTESTATION_REPORT."""
    cert_table: bytes
    """Certificate table, at most 32,768 bytes; empty if the host gave none or too much."""

    @property
    def report_data(self) -> bytes:
        """REPORT_DATA, 64 bytes."""
        return self.report[_REPORT_DATA]

    @property
    def host_data(self) -> bytes:
        """HOST_DATA, 32 bytes."""
        return self.report[_HOST_DATA]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where the kernel keeps things; tests point elsewhere."""

    tsm: Path = Path("/sys/kernel/config/tsm/report")
    sev_guest: Path = Path("/dev/sev-guest")
    cmdline: Path = Path("/proc/cmdline")
    ports: Path = Path("/sys/class/virtio-ports")
    dev: Path = Path("/dev")


def is_dry_run(paths: Paths) -> bool:
    """Tell whether the measured command line holds the word for dry runs."""
    return DRYRUN_WORD in paths.cmdline.read_text("ascii", "replace").split()


def find_port(name: str, paths: Paths) -> Path:
    """Return the device of the virtio-serial port `name` (there is no udev to make a link).

    Raises:
        HostError: no such port.
    """
    for port in sorted(paths.ports.glob("*")):
        if (port / "name").read_text("utf-8", "replace").strip() == name:
            return paths.dev / port.name
    raise HostError(f"virtio-serial port {name} is absent; the virtual machine must have it")


def get_report(report_data: bytes, paths: Paths) -> RawReport:
    """Return a report over `report_data` (64 bytes), at VMPL 0.

    Raises:
        FreshnessError: all attempts gave reports over other REPORT_DATA.
        HostError: there is no way to get one, or all attempts failed.
    """
    if len(report_data) != REPORT_DATA_BYTES:
        raise ValueError(f"report_data has {len(report_data)} bytes; {REPORT_DATA_BYTES} are required")
    source = next(
        source
        for present, source in (
            (paths.tsm.is_dir(), _from_tsm),
            (paths.sev_guest.exists(), _from_ioctl),
            (is_dry_run(paths), _from_psp),
            (True, _from_nowhere),
        )
        if present
    )
    trouble = "none"
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            raw = source(report_data, paths)
        except (OSError, FormatError) as error:
            trouble = str(error)
            continue
        if hmac.compare_digest(raw.report_data, report_data):
            return raw
        trouble = _OTHER
    if trouble == _OTHER:
        raise FreshnessError(f"no report over this REPORT_DATA after {_ATTEMPTS} attempts")
    raise HostError(f"no attestation report after {_ATTEMPTS} attempts", detail=trouble)


def _from_nowhere(report_data: bytes, paths: Paths) -> RawReport:  # noqa: ARG001 (a source takes these)
    raise HostError("this guest has no attestation device; SEV-SNP is not active, or its driver is missing")


def _from_tsm(report_data: bytes, paths: Paths) -> RawReport:
    """Ask configfs-tsm, in a directory of our own; the generation proves that nobody else wrote to it."""
    entry = paths.tsm / f"cvmtool-{secrets.token_hex(8)}"
    entry.mkdir()
    try:
        provider = (entry / "provider").read_text("ascii").strip()
        if provider != "sev_guest":
            raise FormatError(f"configfs-tsm provider is {provider[:32]!r}; 'sev_guest' is required")
        before = int((entry / "generation").read_text("ascii"))
        (entry / "privlevel").write_text("0", "ascii")
        (entry / "inblob").write_bytes(report_data)
        report = (entry / "outblob").read_bytes()
        certs = _read_optional(entry / "auxblob")
        after = int((entry / "generation").read_text("ascii"))
    except ValueError as error:
        raise FormatError("configfs-tsm generation is not a number") from error
    finally:
        entry.rmdir()
    if after != before + 2:
        raise FormatError(f"configfs-tsm generation went from {before} to {after}; {before + 2} is required")
    return _raw(report, certs)


def _read_optional(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # certificates are a convenience: the owner can have them elsewhere


def _from_ioctl(report_data: bytes, paths: Paths) -> RawReport:
    """Ask the driver itself: the extended request, and the plain one where the host has no certificates to give."""
    request = array.array("B", ReportRequest(report_data=report_data).encode())
    certs = array.array("B", bytes(_CERTS_SIZE))
    extended = array.array("B", request.tobytes() + struct.pack("<QI4x", certs.buffer_info()[0], _CERTS_SIZE))
    device = os.open(paths.sev_guest, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            return _raw(_ioctl(device, _GET_EXT_REPORT, extended), _trim_table(certs.tobytes()))
        except OSError:
            return _raw(_ioctl(device, _GET_REPORT, request), b"")
    finally:
        os.close(device)


def _ioctl(device: int, number: int, request: array.array[int]) -> bytes:
    response = array.array("B", bytes(_RESPONSE_SIZE))
    argument = bytearray(_IOCTL.pack(1, request.buffer_info()[0], response.buffer_info()[0], 0))
    fcntl.ioctl(device, number, argument, True)  # noqa: FBT003 (positional only)
    return _unwrap(response.tobytes())


def _unwrap(message: bytes) -> bytes:
    response = parse_response(message)
    if response.status != STATUS_SUCCESS:
        raise FormatError(f"report request status is {response.status:#x}; {STATUS_SUCCESS} is required")
    return response.report


def _trim_table(buffer: bytes) -> bytes:
    """Cut the zeros behind a certificate table: entries of GUID[16], u32 offset, u32 length up to an all-zero one."""
    end = 0
    for at in range(0, len(buffer) - 23, 24):
        if not any(buffer[at : at + 24]):
            return buffer[: max(end, at + 24)] if at else b""
        offset, length = struct.unpack_from("<II", buffer, at + 16)
        end = max(end, offset + length)
    return b""  # no end: not a table


def _from_psp(report_data: bytes, paths: Paths) -> RawReport:
    """Ask the simulated secure processor of a dry run."""
    tag = _PSP_MAGIC + secrets.token_bytes(16)
    port = os.open(find_port(PSP_PORT, paths), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        stream = _PortReader(port, time.monotonic() + _PSP_SECONDS)
        stream.write(tag + ReportRequest(report_data=report_data).encode())
        stream.skip_to(tag)
        response = stream.read_field(_PSP_MOST)
        return _raw(_unwrap(response), stream.read_field(MAX_CERT_TABLE))
    finally:
        os.close(port)


class _PortReader:
    """Reads and writes a non-blocking port until a deadline (monotonic seconds)."""

    def __init__(self, port: int, deadline: float) -> None:
        self._port = port
        self._deadline = deadline
        self._buffer = b""

    def write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._port, data) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)

    def skip_to(self, tag: bytes) -> None:
        """Drop everything up to the end of `tag`: answers to requests that were given up."""
        while (at := self._buffer.find(tag)) < 0:
            self._buffer = self._buffer[-len(tag) :]
            self._fill()
        self._buffer = self._buffer[at + len(tag) :]

    def read_field(self, most: int) -> bytes:
        """Return a field behind its u32 little-endian length."""
        size = int.from_bytes(self._read(4), "little")
        if size > most:
            raise FormatError(f"the simulated processor's field claims {size} bytes; at most {most} are allowed")
        return self._read(size)

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _fill(self) -> None:
        self._wait(select.POLLIN)
        try:
            data = os.read(self._port, 65_536)
        except BlockingIOError:
            return
        if not data:  # nobody holds the other end; the poll does not block on that
            time.sleep(0.05)
        self._buffer += data

    def _wait(self, event: int) -> None:
        left = self._deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._port, event)
        if left <= 0 or not poll.poll(left * 1000):
            raise OSError(errno.ETIMEDOUT, "the simulated processor does not answer")


def _raw(report: bytes, cert_table: bytes) -> RawReport:
    if len(report) != REPORT_SIZE:
        raise FormatError(f"the report has {len(report)} bytes; {REPORT_SIZE} are required")
    return RawReport(report=report, cert_table=cert_table if len(cert_table) <= MAX_CERT_TABLE else b"")
