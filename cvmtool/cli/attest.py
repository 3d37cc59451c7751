# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool attest`: read an attestation report, and decide whether it is genuine and acceptable.

Zone: cli. Standard output carries the report or the verdict (or one JSON document), standard error everything else.
Needs no libvirt, no network and no state: everything comes as files.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from cvmtool.errors import CvmError
    from cvmtool.formats.report import Report
    from cvmtool.owner.checks import Check
    from cvmtool.owner.verify import AuthenticReport

MAX_FILE_BYTES = 1 << 20
"""Of every file that these commands read."""

app = typer.Typer(help="Read an attestation report, and decide whether to believe and accept it.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")]
ReportFile = Annotated[Path, typer.Argument(help="An attestation report, 1184 bytes.", metavar="REPORT")]


@app.command()
def show(report: ReportFile, as_json: Json = False) -> None:
    """Show what a report claims. Nothing is verified."""
    from cvmtool.cli.render import print_table
    from cvmtool.formats.report import parse_report

    fields = _fields(parse_report(_read(report)))
    if as_json:
        _print_json({"schema": "cvmtool/attest-show/v1", "verified": False, "report": fields})
        return
    print_table(("FIELD", "CLAIM (unverified)"), ((name, _plain(value)) for name, value in fields.items()))


@app.command()
def verify(
    report: ReportFile,
    *,
    vek: Annotated[Path, typer.Option("--vek", help="Certificate of the key that signed, DER or PEM.", metavar="CERT")],
    policy: Annotated[Path, typer.Option("--policy", help="What is acceptable, TOML.", metavar="FILE")],
    chain: Annotated[
        list[Path] | None, typer.Option("--chain", help="Intermediate and root, PEM or DER.", metavar="PEM")
    ] = None,
    crl: Annotated[Path | None, typer.Option("--crl", help="AMD's revocation list.", metavar="DER")] = None,
    at: Annotated[str | None, typer.Option("--at", help="Decide as of this time; now.", metavar="RFC3339")] = None,
    report_data: Annotated[
        str | None, typer.Option("--report-data", help="What REPORT_DATA must be, 128 hex digits.", metavar="HEX")
    ] = None,
    as_json: Json = False,
) -> None:
    """Decide about a report: genuine (exit 5 if not), fresh (7, with --report-data), acceptable (6)."""
    from cvmtool.errors import FormatError, VerificationError
    from cvmtool.owner.policyfile import parse_policy
    from cvmtool.owner.verify import verify_report

    rules = parse_policy(_read(policy).decode("utf-8", "replace"))
    time = datetime.now(UTC) if at is None else _time(at)
    received, listed = _read(report), None if crl is None else _read(crl)
    certificates = tuple(_read(path) for path in (vek, *(chain or ())))
    unchecked = (*(() if report_data else ("freshness",)), *rules.unchecked)
    document: dict[str, Any] = {
        "schema": "cvmtool/attest-verify/v1",
        "at": time.isoformat(),
        "simulated": rules.trusted_roots().simulated,
        "unchecked": list(unchecked),
    }
    try:
        authentic = verify_report(received, certificates, rules.trusted_roots(), time, listed)
    except (FormatError, VerificationError) as error:
        _verdict(document, _failed_check(error), error, as_json=as_json)
        _end(error, as_json=as_json)
    from cvmtool.owner.judge import judge

    fresh = () if report_data is None else (_fresh_check(authentic, report_data),)
    checks = (*authentic.checks, *fresh, *judge(authentic, rules))
    refusal = _refusal(checks, fresh)
    document["report"] = _fields(authentic.report)
    _verdict(document, checks, refusal, as_json=as_json)
    if refusal is not None:
        _end(refusal, as_json=as_json)


@app.command()
def replay(
    case: Annotated[Path, typer.Argument(help="A directory that a refusal was saved in.", metavar="DIR")],
    as_json: Json = False,
) -> None:
    """Decide a saved case again, offline, as of its own time. Ends with the refusal's exit code."""
    from cvmtool.errors import CvmError, VerificationError
    from cvmtool.flows.cases import read_case

    saved = read_case(case)
    document: dict[str, Any] = {
        "schema": "cvmtool/attest-replay/v1",
        "at": saved.at.isoformat(),
        "simulated": saved.policy.trusted_roots().simulated,
        "unchecked": list(saved.policy.unchecked),
    }
    try:
        guest = saved.decide()
    except CvmError as refusal:
        document["same_as_recorded"] = saved.is_same(refusal)
        _verdict(document, getattr(refusal, "checks", None) or _failed_check(refusal), refusal, as_json=as_json)
        if not saved.is_same(refusal):
            Console(stderr=True).print(f"recorded: exit {saved.exit_code}: {saved.message}", markup=False)
        _end(refusal, as_json=as_json)
    document["same_as_recorded"] = False
    _verdict(document, guest.checks, None, as_json=as_json)
    accepted = VerificationError(
        f"the case is accepted now; it was refused with exit code {saved.exit_code}: {saved.message}",
        hint="was the case edited, or does this cvmtool decide otherwise than the one that refused?",
    )
    _end(accepted, as_json=as_json)


def _end(error: CvmError, *, as_json: bool) -> NoReturn:
    """End with the error's exit code; with --json the verdict is the one document, and says why."""
    if as_json:
        raise typer.Exit(error.exit_code)
    raise error


def _fresh_check(authentic: AuthenticReport, text: str) -> Check:
    import hmac

    from cvmtool.formats.wire import parse_hex
    from cvmtool.owner.checks import Check

    expected = parse_hex(text, 64, what="--report-data")
    actual = authentic.report.report_data
    return Check(
        code="report-data",
        title="report data",
        actual=actual.hex(),
        required=expected.hex(),
        passed=hmac.compare_digest(actual, expected),
        why="it binds the report to a challenge and to the keys of a connection",
    )


def _refusal(checks: tuple[Check, ...], fresh: tuple[Check, ...]) -> CvmError | None:
    from cvmtool.owner.appraise import RefusedError, StaleEvidenceError

    for check in fresh:
        if not check.passed:
            return StaleEvidenceError(check, checks)
    failed = {check.code for check in checks if not check.passed}
    hint = "give AMD's revocation list of this product line (--crl)" if "revocation-checked" in failed else None
    return RefusedError(checks, hint=hint) if failed else None


def _failed_check(error: CvmError) -> tuple[Check, ...]:
    from cvmtool.owner.checks import NotGenuineError

    return (error.check,) if isinstance(error, NotGenuineError) else ()


def _verdict(document: dict[str, Any], checks: tuple[Check, ...], error: CvmError | None, *, as_json: bool) -> None:
    from dataclasses import asdict

    from cvmtool.cli.render import printable

    words = {None: "accepted", 4: "malformed", 5: "not-genuine", 6: "refused", 7: "stale"}
    verdict = words[None if error is None else error.exit_code]
    if as_json:
        document |= {
            "verdict": verdict,
            "error": None if error is None else error.message,
            "hint": None if error is None else error.hint,
            "checks": [asdict(check) for check in checks],
        }
        _print_json(document)
        return
    # Whole values and no folding: this is what one looks into when a digest is not the expected one.
    console = Console(soft_wrap=True, highlight=False)
    if document["simulated"]:
        console.print(Text("SIMULATED / NOT CONFIDENTIAL: this policy trusts a dry run's root", style="bold yellow"))
    width = max((len(check.title) for check in checks), default=0)
    for check in checks:
        mark = Text("ok  ", style="green") if check.passed else Text("FAIL", style="bold red")
        console.print(Text.assemble(mark, f"  {check.title:<{width}}  {printable(check.actual)}"))
        if not check.passed:
            console.print(Text(f"      {'required':<{width}}  {printable(check.required)}"))
    console.print(Text(f"unchecked: {', '.join(document['unchecked']) or 'nothing'}", style="dim"))
    console.print(Text(verdict, style="bold green" if error is None else "bold red"))


def _fields(report: Report) -> dict[str, Any]:
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


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ",".join(map(_plain, value))
    return "not reported" if value is None else str(value)


def _time(text: str) -> datetime:
    from cvmtool.errors import ConfigError

    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise ConfigError(f"--at is {text!r}; required: a time with its zone, such as 2026-01-31T12:00:00Z")
    return time


def _read(path: Path) -> bytes:
    from cvmtool.errors import ConfigError

    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} has more than {MAX_FILE_BYTES} bytes; required: fewer")
    return data


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=2))
