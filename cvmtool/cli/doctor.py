# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool doctor`: what a host can do, why it cannot do more, and what an error means.

Zone: cli. Every piece of evidence came from a host, so it is made printable.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.options import Host, Json

if TYPE_CHECKING:
    from rich.text import Text

    from cvmtool.flows.doctor import Examination, Told

app = typer.Typer()

_NOTHING_EXIT = 8
_MOST_PIPED = 16 << 20  # bytes
_PROMISE = {
    "sev-snp": "SEV-SNP",
    "dry-run-kvm": "dry runs with KVM",
    "dry-run-tcg": "dry runs emulated (TCG)",
    None: "nothing",
}
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "unknown": "cyan", "skipped": "dim"}


@app.command()
def doctor(
    host: Host = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask only for what a dry run needs.")] = False,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain",
            help="Look at no host; say what an error of QEMU, libvirt or the kernel means. - reads it from standard input.",
            metavar="TEXT",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a host can run, and how to mend what it cannot.

    Exit 0 if it can run SEV-SNP (with --dry-run: a dry run), else 8. With --explain: 0 if the error is known, else 8.
    """
    if explain is not None:
        _explain(_standard_input() if explain == "-" else explain, as_json=as_json)
        return
    from cvmtool.cli.render import emit_schema, error_console
    from cvmtool.config import load_settings
    from cvmtool.flows.doctor import examine

    settings = load_settings()
    with nullcontext() if as_json else error_console().status("") as status:
        found = examine(
            replace(settings, host=host or settings.host),
            dry_run=dry_run,
            step=lambda text: status.update(f"[bold]doctor[/] {text}") if status else None,
        )
    able = found.best is not None and (dry_run or found.best == "sev-snp")
    if as_json:
        emit_schema(
            "doctor",
            host=found.host,
            dry_run=dry_run,
            able=able,
            best=found.best,
            obstacles={use: line.code for use, line in found.obstacles.items()},
            lines=[asdict(line) for line in found.lines],
        )
    else:
        _show(found)
    if not able:
        raise typer.Exit(_NOTHING_EXIT)


def _show(found: Examination) -> None:
    from rich.console import Console
    from rich.text import Text

    from cvmtool.cli.render import printable

    out = Console(highlight=False, markup=False, soft_wrap=True, emoji=False)
    told = [line for line in found.lines if line.verdict != "skipped"]
    width = max(len(line.code) for line in told)
    for line in told:
        for text in _texts(line, width):
            out.print(text)
    skipped: dict[str, list[str]] = {}
    for line in found.lines:
        if line.verdict == "skipped":
            skipped.setdefault(line.evidence, []).append(line.code)
    for reason, codes in skipped.items():
        out.print(Text(f"skipped  {reason}: {', '.join(codes)}", style="dim"))
    out.print(
        Text.assemble("\nthis host can run: ", (_PROMISE[found.best], "bold green" if found.best else "bold red"))
    )
    for line in dict.fromkeys(found.obstacles.values()):
        uses = " nor ".join(_PROMISE[use] for use, obstacle in found.obstacles.items() if obstacle == line)
        out.print(Text.assemble((f"not {uses}: ", "bold"), f"{line.code}: {_one_line(printable(line.evidence))}"))
        if line.remedy:
            out.print(Text.assemble(("  next: ", "bold"), line.remedy))


def _texts(line: Told, width: int) -> list[Text]:
    from rich.text import Text

    from cvmtool.cli.render import printable

    indent = " " * (len("skipped") + width + 4)
    evidence = _one_line(printable(line.evidence))
    lines = [Text.assemble((f"{line.verdict:<7}", _STYLES[line.verdict]), f"  {line.code:<{width}}  {evidence}")]
    if line.verdict in {"fail", "warn"}:
        lines.append(Text.assemble(indent, (line.why, "dim")))
    if line.remedy:
        lines.append(Text.assemble(indent, ("> ", "bold"), line.remedy))
    return lines


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _standard_input() -> str:
    return sys.stdin.buffer.read(_MOST_PIPED).decode("utf-8", "replace")


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
