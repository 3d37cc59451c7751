# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Attestation reports as files: bare, in a container that is named, or in the evidence that cvmtool keeps itself.

Zone: cli. Nothing here is verified.

A container is never guessed. What cvmtool keeps is known by its own label, which no report begins with; a directory is a run, a
refusal or an exported launch by the file in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.files import read_file
from cvmtool.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from cvmtool.formats.containers import Unwrapped
    from cvmtool.formats.evidence import Evidence

MAX_FILE_BYTES = 1 << 20

RAW = "raw"
"""The container that is none; the others are looked up when they are needed, since that import costs every command."""

Wrapping = Annotated[
    str,
    typer.Option(
        "--container",
        help="What the report is in: raw (nothing), tsm, extended, response or azure-hcl.",
        metavar="CONTAINER",
    ),
]

_ENCODED = re.compile(rb"[0-9A-Za-z+/=\s]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFile:
    """What a file held, unverified. `evidence` is what a guest showed to cvmtool, None for a file of other origin."""

    unwrapped: Unwrapped
    evidence: Evidence | None = None


def read_report(path: Path, container: str = RAW, auxblob: Path | None = None) -> ReportFile:
    """Read a report, evidence, or the directory of a run (`jobs/`), a refusal (`cases/`) or an exported launch.

    Raises:
        ConfigError: it cannot be read, or the directory is none of these.
        FormatError: it is something else; the message says what, if it can be told.
    """
    from cvmtool.formats.containers import Container, Unwrapped, unwrap

    if container not in set(Container):
        raise typer.BadParameter(f"{container!r} is not one of {', '.join(Container)}", param_hint="--container")
    data = read_file(_in_directory(path), most=MAX_FILE_BYTES)
    if container == RAW and auxblob is None:
        from cvmtool.formats.certtable import parse_cert_table
        from cvmtool.formats.evidence import is_evidence, parse_evidence

        if is_evidence(data):
            evidence = parse_evidence(data)
            table = parse_cert_table(evidence.cert_table)
            return ReportFile(unwrapped=Unwrapped(report=evidence.report, table=table), evidence=evidence)
    aux = b"" if auxblob is None else read_file(auxblob, most=MAX_FILE_BYTES)
    try:
        return ReportFile(unwrapped=unwrap(data, Container(container), auxblob=aux))
    except FormatError:
        other = _something_else(data) if container == RAW else None
        if other is None:
            raise
        raise FormatError(f"{path} is no report of 1184 bytes: {other[0]}", hint=other[1]) from None


def _in_directory(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("evidence.bin", "report.bin"):
        if (path / name).is_file():
            return path / name
    raise ConfigError(
        f"{path} holds neither evidence.bin nor report.bin",
        hint="the directory of a run, of a refusal (cvmtool names it) or of an exported launch is required",
    )


def _something_else(data: bytes) -> tuple[str, str | None] | None:
    """Say what a file is that is no bare report, and what to do with it; None if that cannot be told."""
    from cvmtool.formats.report import REPORT_BYTES

    start = data[:64].lstrip()
    if data.startswith(b"HCLA"):
        return "it is the blob of an Azure vTPM", "give --container azure-hcl"
    if start.startswith(b"-----BEGIN "):
        return (
            "it is a certificate or key in PEM",
            "give the report itself; certificates go to attest verify --vek, --chain",
        )
    if start.startswith(b"{"):
        return "it is JSON", "give the directory of a refusal or run; a receipt is shown by cvmtool receipt show"
    if data.startswith(b"\x30\x82"):
        return (
            "it is a certificate or list in DER",
            "give the report itself; attest verify takes it with --vek or --crl",
        )
    if data[:8] == bytes(4) + REPORT_BYTES.to_bytes(4, "little"):
        return "it is a MSG_REPORT_RSP", "give --container response"
    if _ENCODED.fullmatch(data):
        return "it is text, hex or base64", "decode it first: xxd -r -p, or base64 -d"
    if len(data) > REPORT_BYTES:
        return f"it has {len(data)} bytes", "give --container extended if a certificate table follows the report"
    return f"it has {len(data)} bytes", "was it cut off?"
