# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A report and the verdict about it, for people and for scripts.

Zone: cli. Renders what was decided elsewhere; the JSON of `attest` is made here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from cvmtool.errors import CvmError
    from cvmtool.formats.containers import Unwrapped
    from cvmtool.formats.report import Report
    from cvmtool.owner.checks import Check

VERDICTS = {None: "accepted", 4: "malformed", 5: "not-genuine", 6: "refused", 7: "stale"}
"""Exit code of the error, None without one -> the verdict's word."""


def show_verdict(document: dict[str, Any], checks: tuple[Check, ...], error: CvmError | None, *, as_json: bool) -> None:
    """Write the verdict: the JSON `document` completed, or a table with a line a check."""
    from dataclasses import asdict

    verdict = VERDICTS[None if error is None else error.exit_code]
    if as_json:
        document |= {
            "verdict": verdict,
            "error": None if error is None else error.message,
            "hint": None if error is None else error.hint,
            "checks": [asdict(check) for check in checks],
        }
        print_json(document)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "CHECK", "FOUND", "REQUIRED", box=None)
    for check in checks:
        mark = Text("ok", style="green") if check.passed else Text("FAIL", style="bold red")
        table.add_row(
            mark,
            Text(check.title),
            Text(check.actual, overflow="fold"),
            Text("" if check.passed else check.required, overflow="fold"),
        )
    console = Console()
    if document["simulated"]:
        console.print(Text("SIMULATED / NOT CONFIDENTIAL: this policy trusts a dry run's root", style="bold yellow"))
    console.print(table)
    console.print(Text(f"unchecked: {', '.join(document['unchecked']) or 'nothing'}", style="dim"))
    console.print(Text(verdict, style="bold green" if error is None else "bold red"))


def show_claims(fields: dict[str, Any]) -> None:
    """Write the fields of a report that nobody verified, as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("FIELD", "CLAIM (unverified)", box=None)
    for name, value in fields.items():
        table.add_row(name, Text(_plain(value), overflow="fold"))
    Console().print(table)


def report_fields(report: Report) -> dict[str, Any]:
    """Return the report for people and scripts: AMD's names, hex for bytes, names for bits."""
    line = report.line
    tcbs: dict[str, Any] = {}
    for name in ("current", "reported", "committed", "launch"):
        raw = getattr(report, f"{name}_tcb")
        tcbs[f"{name}_tcb"] = raw.hex() if line is None else getattr(report.tcbs(line), name).components()
    return {
        "version": report.version,
        "product": None if report.cpuid is None else report.cpuid.silicon,
        "cpuid": None if report.cpuid is None else str(report.cpuid),
        "guest_svn": report.guest_svn,
        "policy": {"value": hex(report.policy.value), "set": list(report.policy.names())},
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "vmpl": report.vmpl,
        "platform_info": {"value": hex(report.platform_info.value), "set": list(report.platform_info.names())},
        "signing_key": report.signing_key.name.lower(),
        "author_key_en": report.author_key_en,
        "report_data": report.report_data.hex(),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "chip_id": report.chip_id.hex(),
        **tcbs,
        "current_firmware": str(report.current_firmware),
        "committed_firmware": str(report.committed_firmware),
        "mitigations": None if report.mitigations is None else [hex(vector) for vector in report.mitigations],
    }


def container_fields(unwrapped: Unwrapped) -> dict[str, Any]:
    """Return what came with the report in its container: certificates by name (or GUID), claims as text."""
    from cvmtool.formats.certtable import CertKind

    names = {kind.value: kind.name.lower() for kind in CertKind}
    claims = unwrapped.claims
    return {
        "certificates": {names.get(guid, guid): len(blob) for guid, blob in unwrapped.table.entries},
        "claims": None if claims is None else claims.text.decode("utf-8", "replace"),
    }


def _plain(value: object) -> str:
    from cvmtool.cli.render import printable

    if isinstance(value, dict):
        return " ".join(f"{key}={_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ",".join(map(_plain, value))
    return "not reported" if value is None else printable(str(value))


def print_json(document: dict[str, Any]) -> None:
    """Write one JSON document to standard output."""
    typer.echo(json.dumps(document, indent=2))
