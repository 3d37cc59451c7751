# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A report and the verdict about it, for people and for scripts.

Zone: cli. Renders what was decided elsewhere; the JSON of `attest` is made here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from cvmtool.errors import CvmError
    from cvmtool.formats.containers import Unwrapped
    from cvmtool.formats.evidence import Evidence
    from cvmtool.formats.report import Report
    from cvmtool.owner.checks import Check

VERDICTS = {None: "accepted", 4: "malformed", 5: "not-genuine", 6: "refused", 7: "stale"}
"""Exit code of the error, None without one -> the verdict's word."""


def show_verdict(document: dict[str, Any], checks: tuple[Check, ...], error: CvmError | None, *, as_json: bool) -> None:
    """Write the verdict: the JSON `document` completed, or a table with a line a check."""
    verdict = VERDICTS[None if error is None else error.exit_code]
    if as_json:
        document |= {
            "verdict": verdict,
            "error": None if error is None else error.message,
            "hint": None if error is None else error.hint,
            "checks": [check.to_json() for check in checks],
        }
        print_json(document)
        return
    from rich.text import Text

    _show_checks(checks, simulated=document["simulated"])
    console = _console()
    for line in document.get("explanation", ()):
        console.print(Text(f"{line['question']} ").append(line["answer"], style="bold").append(f": {line['reason']}"))
    if "explanation" in document:
        from cvmtool.owner.plain import NOT_VISIBLE

        console.print(Text(NOT_VISIBLE, style="dim"))
    console.print(Text(f"unchecked: {', '.join(document['unchecked']) or 'nothing'}", style="dim"))
    console.print(Text(verdict, style="bold green" if error is None else "bold red"))


def explanation(checks: tuple[Check, ...], document: dict[str, Any]) -> list[dict[str, str]]:
    """Return the verdict in plain words, as JSON has it: `question`, `answer`, `reason`."""
    from dataclasses import asdict

    from cvmtool.owner.plain import explain

    statements = explain(checks, unchecked=document["unchecked"], simulated=document["simulated"])
    return [asdict(statement) for statement in statements]


def _console() -> Console:
    from rich.console import Console

    # Whole values and no folding: this is what one looks into when a digest is not the expected one.
    return Console(soft_wrap=True, highlight=False)


def _show_checks(checks: tuple[Check, ...], *, simulated: bool) -> None:
    from rich.text import Text

    from cvmtool.cli.render import printable

    console = _console()
    if simulated:
        console.print(Text("SIMULATED / NOT CONFIDENTIAL: this policy trusts a dry run's root", style="bold yellow"))
    width = max((len(check.title) for check in checks), default=0)
    for check in checks:
        mark = Text("ok  ", style="green") if check.passed else Text("FAIL", style="bold red")
        console.print(Text.assemble(mark, f"  {check.title:<{width}}  {printable(check.actual)}"))
        if not check.passed:
            console.print(Text(f"      {'required':<{width}}  {printable(check.required)}"))


def show_claims(fields: dict[str, Any]) -> None:
    """Write the fields of a report that nobody verified, as a table."""
    from cvmtool.cli.render import print_table

    print_table(("FIELD", "CLAIM (unverified)"), ((name, _plain(value)) for name, value in fields.items()))


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


def evidence_fields(evidence: Evidence | None) -> dict[str, Any]:
    """Return the keys that a guest showed with its report, nothing for a report of other origin."""
    if evidence is None:
        return {}
    return {name: getattr(evidence, name).hex() for name in ("ssh_host_key", "hpke_key", "receipt_key")}


def _plain(value: object) -> str:
    from cvmtool.cli.render import printable

    if isinstance(value, dict):
        return " ".join(f"{key}={_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ",".join(map(_plain, value))
    return "not reported" if value is None else printable(str(value))


def print_json(document: dict[str, Any]) -> None:
    """Write one JSON document to standard output."""
    import json

    typer.echo(json.dumps(document, indent=2))
