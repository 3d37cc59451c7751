# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool attest`: read an attestation report, and decide whether it is genuine and acceptable.

Zone: cli. Standard output carries the report or the verdict (or one JSON document), standard error everything else.
Needs no libvirt and no state: everything comes as files. `bundle` alone may ask AMD's key service.
"""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cvmtool.cli.files import read_file
from cvmtool.cli.policy import app as policy_app
from cvmtool.cli.render import printable
from cvmtool.cli.reports import RAW, Wrapping, read_report
from cvmtool.cli.verdict import (
    container_fields,
    evidence_fields,
    explanation,
    print_json,
    report_fields,
    show_claims,
    show_verdict,
)
from cvmtool.errors import ConfigError, CvmError, FormatError, VerificationError

if TYPE_CHECKING:
    from cvmtool.formats.containers import Unwrapped
    from cvmtool.owner.checks import Check
    from cvmtool.owner.policy import Policy
    from cvmtool.owner.verify import AuthenticReport

MAX_FILE_BYTES = 1 << 20
"""Of every file that these commands read."""

app = typer.Typer(help="Read an attestation report, and decide whether to believe and accept it.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")

Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")]
ReportFile = Annotated[
    Path,
    typer.Argument(
        help="An attestation report, 1184 bytes or in CONTAINER; or the evidence that cvmtool kept, or its directory.",
        metavar="REPORT",
    ),
]
Aux = Annotated[Path | None, typer.Option("--auxblob", help="Certificate table, with container tsm.", metavar="FILE")]


Explain = Annotated[bool, typer.Option("--explain", help="Say in plain words who could read the data, and why not.")]


@app.command()
def show(report: ReportFile, *, container: Wrapping = RAW, auxblob: Aux = None, as_json: Json = False) -> None:
    """Show what a report claims: bare, in a container, or in the evidence of a run or refusal. Nothing is verified."""
    from cvmtool.formats.report import parse_report

    found = read_report(report, container, auxblob)
    fields = report_fields(parse_report(found.unwrapped.report))
    around = evidence_fields(found.evidence)
    if container != RAW or found.evidence is not None:
        around |= container_fields(found.unwrapped)
    if as_json:
        print_json({"schema": "cvmtool/attest-show/v1", "verified": False, "report": fields, **around})
        return
    show_claims({**fields, **around})


@app.command()
def verify(
    report: ReportFile,
    *,
    vek: Annotated[
        Path | None,
        typer.Option("--vek", help="Certificate of the key that signed, DER or PEM.", metavar="CERT"),
    ] = None,
    policy: Annotated[Path, typer.Option("--policy", help="What is acceptable, TOML.", metavar="FILE")],
    chain: Annotated[
        list[Path] | None, typer.Option("--chain", help="Intermediate and root, PEM or DER.", metavar="PEM")
    ] = None,
    crl: Annotated[Path | None, typer.Option("--crl", help="AMD's revocation list.", metavar="DER")] = None,
    container: Wrapping = RAW,
    auxblob: Aux = None,
    at: Annotated[str | None, typer.Option("--at", help="Decide as of this time; now.", metavar="RFC3339")] = None,
    report_data: Annotated[
        str | None, typer.Option("--report-data", help="What REPORT_DATA must be, 128 hex digits.", metavar="HEX")
    ] = None,
    explain: Explain = False,
    as_json: Json = False,
) -> None:
    """Decide about a report: genuine (exit 5 if not), fresh (7, with --report-data), acceptable (6)."""
    from cvmtool.owner.policyfile import parse_policy

    rules = parse_policy(read_file(policy, most=MAX_FILE_BYTES).decode("utf-8", "replace"))
    files = tuple(read_file(path, most=MAX_FILE_BYTES) for path in (*([vek] if vek else ()), *(chain or ())))
    listed = None if crl is None else read_file(crl, most=MAX_FILE_BYTES)
    time = datetime.now(UTC) if at is None else _time(at)
    document: dict[str, Any] = {
        "schema": "cvmtool/attest-verify/v1",
        "at": time.isoformat(),
        "simulated": rules.trusted_roots().simulated,
        "unchecked": [*(() if report_data else ("freshness",)), *rules.unchecked],
    }

    try:
        unwrapped = read_report(report, container, auxblob).unwrapped
        authentic, genuine = _verify(unwrapped, files, listed, rules, time)
    except (FormatError, VerificationError) as error:
        if explain:
            document["explanation"] = explanation(_failed_check(error), document)
        show_verdict(document, _failed_check(error), error, as_json=as_json)
        _end(error, as_json=as_json)
    from cvmtool.owner.judge import judge

    fresh = () if report_data is None else (_fresh_check(authentic, report_data),)
    checks = (*genuine, *fresh, *judge(authentic, rules))
    refusal = _refusal(checks, fresh, shlex.join(_reading(report, container)))
    document["report"] = report_fields(authentic.report)
    if explain:
        document["explanation"] = explanation(checks, document)
    show_verdict(document, checks, refusal, as_json=as_json)
    if refusal is not None:
        _end(refusal, as_json=as_json)


@app.command()
def bundle(
    report: ReportFile,
    *,
    out: Annotated[Path, typer.Option("--out", help="Where the one file goes.", metavar="FILE")],
    vek: Annotated[
        Path | None, typer.Option("--vek", help="Certificate of the key that signed, if it is at hand.", metavar="CERT")
    ] = None,
    chain: Annotated[
        list[Path] | None, typer.Option("--chain", help="Intermediate and root, if they are at hand.", metavar="PEM")
    ] = None,
    crl: Annotated[
        Path | None, typer.Option("--crl", help="AMD's revocation list, if it is at hand.", metavar="DER")
    ] = None,
    container: Wrapping = RAW,
    auxblob: Aux = None,
    kds: Annotated[
        str | None,
        typer.Option("--kds", envvar="CVMTOOL_KDS", help="AMD's key service, or a mirror of it.", metavar="URL"),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use files and what is kept; ask nobody.")] = False,
    line: Annotated[
        str | None,
        typer.Option("--line", help="Product line of a report of version 2: Milan or Genoa.", metavar="LINE"),
    ] = None,
    simulated_root: Annotated[
        str | None, typer.Option("--simulated-root", help="For dry runs: SHA-256 of the simulated root.", metavar="HEX")
    ] = None,
    at: Annotated[str | None, typer.Option("--at", help="Verify as of this time; now.", metavar="RFC3339")] = None,
    as_json: Json = False,
) -> None:
    """Make one file that verifies anywhere: the report with its certificates and AMD's revocation list, fetched if needed."""
    from cvmtool.config import load_settings, write_atomic
    from cvmtool.flows.collateral import KeyService, Store, collect
    from cvmtool.formats.certtable import CertKind
    from cvmtool.formats.tcb import ProductLine
    from cvmtool.formats.wire import parse_hex
    from cvmtool.owner import kds as service
    from cvmtool.owner.amdroots import AmdRoots, SimulatedRoot
    from cvmtool.owner.verify import certificates_of

    unwrapped = read_report(report, container, auxblob).unwrapped
    files = tuple(read_file(path, most=MAX_FILE_BYTES) for path in (*([vek] if vek else ()), *(chain or ())))
    if line is not None and line not in set(ProductLine):
        raise ConfigError(f"--line is {line!r}; required: one of {', '.join(ProductLine)}")
    found = collect(
        unwrapped.report,
        roots=AmdRoots()
        if simulated_root is None
        else SimulatedRoot(parse_hex(simulated_root, 32, what="--simulated-root")),
        at=datetime.now(UTC) if at is None else _time(at),
        store=Store(load_settings().cache_dir / "kds"),
        service=None if offline else KeyService(kds or service.AMD_URL),
        given=(*files, *certificates_of(unwrapped.table)),
        crl=unwrapped.table.get(CertKind.CRL) if crl is None else read_file(crl, most=MAX_FILE_BYTES),
        line=None if line is None else ProductLine(line),
    )
    data = service.bundle(unwrapped.report, found.certificates, found.crl)
    try:
        write_atomic(out, data, mode=0o644)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from None
    if as_json:
        print_json(
            {
                "schema": "cvmtool/attest-bundle/v1",
                "file": str(out),
                "size": len(data),
                "fetched": list(found.fetched),
                "simulated": simulated_root is not None,
            }
        )
        return
    typer.echo(f"{out}: {len(data)} bytes; verify it with --container extended")


@app.command()
def replay(
    case: Annotated[Path, typer.Argument(help="A directory that a decision was saved in.", metavar="DIR")],
    *,
    explain: Explain = False,
    as_json: Json = False,
) -> None:
    """Decide a saved case again, offline, as of its own time. Ends with the exit code of a refusal, or 0."""
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
        checks = getattr(refusal, "checks", None) or _failed_check(refusal)
        if any(check.code == "measurement" and not check.passed for check in checks):
            refusal.hint = _how_to_explain(shlex.join(_reading(case, RAW)))
        if explain:
            document["explanation"] = explanation(checks, document)
        show_verdict(document, checks, refusal, as_json=as_json)
        if not saved.is_same(refusal):
            typer.echo(f"recorded: exit {saved.exit_code}: {printable(saved.message)}", err=True)
        _end(refusal, as_json=as_json)
    document["same_as_recorded"] = saved.accepted
    show_verdict(document, guest.checks, None, as_json=as_json)
    if saved.accepted:
        return
    accepted = VerificationError(
        f"the case is accepted now; it was refused with exit code {saved.exit_code}: {saved.message}",
        hint="was the case edited, or does this cvmtool decide otherwise than the one that refused?",
    )
    _end(accepted, as_json=as_json)


def _verify(
    unwrapped: Unwrapped, files: tuple[bytes, ...], crl: bytes | None, policy: Policy, at: datetime
) -> tuple[AuthenticReport, tuple[Check, ...]]:
    """Verify what was in the container, with certificates from files and from the container alike: both are unverified."""
    from cvmtool.formats.certtable import CertKind
    from cvmtool.owner.verify import certificates_of, check_claims, verify_report

    certificates = (*files, *certificates_of(unwrapped.table))
    if not certificates:
        raise ConfigError("no certificate is given; required: --vek, or a container that holds it")
    listed = unwrapped.table.get(CertKind.CRL) if crl is None else crl
    authentic = verify_report(unwrapped.report, certificates, policy.trusted_roots(), at, listed)
    claims = () if unwrapped.claims is None else (check_claims(authentic, unwrapped.claims),)
    return authentic, (*authentic.checks, *claims)


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
        actual=actual.hex(),
        required=expected.hex(),
        passed=hmac.compare_digest(actual, expected),
        why="it binds the report to a challenge and to the keys of a connection",
    )


def _refusal(checks: tuple[Check, ...], fresh: tuple[Check, ...], reading: str) -> CvmError | None:
    from cvmtool.owner.appraise import RefusedError, StaleEvidenceError

    for check in fresh:
        if not check.passed:
            return StaleEvidenceError(check, checks)
    failed = {check.code for check in checks if not check.passed}
    hints = []
    if "revocation-checked" in failed:
        hints.append("give AMD's revocation list of this product line (--crl)")
    if "measurement" in failed:
        hints.append(_how_to_explain(reading))
    return RefusedError(checks, hint="; ".join(hints) or None) if failed else None


def _how_to_explain(reading: str) -> str:
    return f"find out what was launched: cvmtool measure explain BUNDLE {reading} --vcpus N --cpu MODEL"


def _reading(report: Path, container: str) -> tuple[str, ...]:
    return ("--report", str(report), *(() if container == RAW else ("--container", container)))


def _failed_check(error: CvmError) -> tuple[Check, ...]:
    from cvmtool.owner.checks import NotGenuineError

    return (error.check,) if isinstance(error, NotGenuineError) else ()


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise ConfigError(f"--at is {text!r}; required: a time with its zone, such as 2026-01-31T12:00:00Z")
    return time
