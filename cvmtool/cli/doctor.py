# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool doctor`: what a host can do, why it cannot do more, and what an error means.

Zone: cli. Every piece of evidence came from a host, so it is made printable.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.options import Json

if TYPE_CHECKING:
    from rich.text import Text

    from cvmtool.flows.doctor import Examination
    from cvmtool.host.doctor.line import Line

app = typer.Typer()

_NOTHING_EXIT = 8
_PROMISE = {
    "sev-snp": "SEV-SNP",
    "dry-run-kvm": "dry runs with KVM",
    "dry-run-tcg": "dry runs, emulated (TCG)",
    None: "nothing",
}
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "unknown": "cyan", "skipped": "dim"}


@app.command()
def doctor(
    host: Annotated[
        str | None, typer.Option("--host", help="The host's libvirt URI; this machine if none is set.", metavar="URI")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask only for what a dry run needs.")] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain", help="Look at no host; say what an error of QEMU, libvirt or the kernel means.", metavar="TEXT"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a host can run, and how to mend what it cannot.

    Exit 0 if it can run SEV-SNP (with --dry-run: a dry run), else 8. With --explain: 0 if the error is known, else 8.
    """
    if explain is not None:
        _explain(explain, as_json=as_json)
        return
    from cvmtool.cli.render import emit_schema, error_console
    from cvmtool.config import load_settings
    from cvmtool.flows.doctor import examine

    settings = load_settings()
    with error_console().status("") as status:
        found = examine(
            replace(settings, host=host or settings.host),
            dry_run=dry_run,
            step=lambda text: None if as_json else status.update(f"[bold]doctor[/] {text}"),
        )
    diagnosis = found.diagnosis
    able = diagnosis.best is not None and (dry_run or diagnosis.best.value == "sev-snp")
    if as_json:
        emit_schema(
            "doctor",
            host=found.uri,
            dry_run=dry_run,
            able=able,
            best=diagnosis.best.value if diagnosis.best else None,
            cause=diagnosis.cause.check.code if diagnosis.cause else None,
            lines=[_document(line) for line in diagnosis.lines],
        )
    else:
        _show(found)
    if not able:
        raise typer.Exit(_NOTHING_EXIT)


def _document(line: Line) -> dict[str, object]:
    return {
        "code": line.check.code,
        "verdict": line.outcome.verdict.value,
        "evidence": line.outcome.evidence,
        "why": line.check.why,
        "remedy": line.outcome.remedy,
        "uses": sorted(line.check.uses),
    }


def _show(found: Examination) -> None:
    from rich.console import Console
    from rich.text import Text

    from cvmtool.cli.render import printable

    out = Console(highlight=False, markup=False, soft_wrap=True, emoji=False)
    diagnosis = found.diagnosis
    told = [line for line in diagnosis.lines if line.outcome.verdict.value != "skipped"]
    width = max(len(line.check.code) for line in told)
    for line in told:
        for text in _texts(line, width):
            out.print(text)
    skipped: dict[str, list[str]] = {}
    for line in diagnosis.lines:
        if line.outcome.verdict.value == "skipped":
            skipped.setdefault(line.outcome.evidence, []).append(line.check.code)
    for reason, codes in skipped.items():
        out.print(Text(f"skipped  {reason}: {', '.join(codes)}", style="dim"))
    promise = _PROMISE[diagnosis.best.value if diagnosis.best else None]
    out.print(Text.assemble("\nthis host can run: ", (promise, "bold green" if diagnosis.best else "bold red")))
    if diagnosis.cause is not None:
        cause = diagnosis.cause
        wanted = (
            "a dry run"
            if all(use.value != "sev-snp" for line in diagnosis.lines for use in line.check.uses)
            else "SEV-SNP"
        )
        out.print(
            Text.assemble((f"not {wanted}: ", "bold"), f"{cause.check.code}: {printable(cause.outcome.evidence)}")
        )
        if cause.outcome.remedy:
            out.print(Text.assemble(("next: ", "bold"), cause.outcome.remedy))


def _texts(line: Line, width: int) -> list[Text]:
    from rich.text import Text

    from cvmtool.cli.render import printable

    verdict = line.outcome.verdict.value
    indent = " " * (len("skipped") + width + 4)
    evidence = printable(line.outcome.evidence).replace("\n", " ")
    lines = [Text.assemble((f"{verdict:<7}", _STYLES[verdict]), f"  {line.check.code:<{width}}  {evidence}")]
    if verdict in {"fail", "warn"}:
        lines.append(Text.assemble(indent, (line.check.why, "dim")))
    if line.outcome.remedy:
        lines.append(Text.assemble(indent, ("> ", "bold"), line.outcome.remedy))
    return lines


def _explain(text: str, *, as_json: bool) -> None:
    """Tell what is known of an error; the text was pasted and may be a host's."""
    from cvmtool.cli.render import emit_schema, printable
    from cvmtool.flows.doctor import explain_failure

    causes = explain_failure(text)
    if as_json:
        emit_schema("doctor-explain", known=bool(causes), causes=[asdict(cause) for cause in causes])
    for cause in () if as_json else causes:
        typer.echo(f"{cause.code}: {cause.cause}")
        typer.echo(f"  found   {printable(cause.quoted)}")
        typer.echo(f"  remedy  {cause.remedy}")
        typer.echo(f"  source  {cause.source}")
    if not causes:
        if not as_json:
            typer.echo(
                "nothing is known of this error; paste the lines of QEMU's log as well, and run: cvmtool doctor",
                err=True,
            )
        raise typer.Exit(_NOTHING_EXIT)
