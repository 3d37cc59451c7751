# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool fit`: what a job needs beside what there is, before anything is sealed or started.

Zone: cli.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.options import Host, Json

if TYPE_CHECKING:
    from cvmtool.owner.fit import Line

app = typer.Typer()

_STYLES = {"ok": "green", "close": "yellow", "short": "bold red", "unknown": "cyan"}


@app.command()
def fit(
    job: Annotated[Path, typer.Argument(help="The job file.", metavar="JOB.yaml")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="For a dry run, which needs no SEV-SNP.")] = False,
    host: Host = None,
    results: Annotated[Path | None, typer.Option("--results", help="Where outputs would go.", metavar="DIR")] = None,
    as_json: Json = False,
) -> None:
    """Say whether a job fits, with numbers, before anything is sealed or started.

    `train` asks the same first.
    Exit 0 if it fits or nobody can say, 3 if its own numbers or the disks here do not suffice, 8 if the host does not.
    """
    from cvmtool.cli.render import emit_schema, error_console
    from cvmtool.config import load_settings
    from cvmtool.flows.fit import survey
    from cvmtool.flows.images import bring_up_to_date
    from cvmtool.flows.prepare import read_job
    from cvmtool.owner.fit import CLOSE, require_fit

    settings, file, console = load_settings(host=host), read_job(job), error_console()
    with nullcontext() if as_json else console.status("[bold]fit[/] looking at inputs, disks and host"):
        bundle = bring_up_to_date(file.image, settings, progress=lambda _: None, notice=lambda _: None)
        base = job.resolve().parent
        lines = survey(file, base, bundle, settings=settings, simulated=dry_run, results=results)
    if as_json:
        emit_schema("fit", dry_run=dry_run, close_from=CLOSE, lines=[asdict(line) for line in lines])
    else:
        _show(lines)
    require_fit(lines)


def _show(lines: tuple[Line, ...]) -> None:
    from rich.console import Console
    from rich.text import Text

    from cvmtool.owner.fit import amount

    out = Console(highlight=False, markup=False, soft_wrap=True, emoji=False)
    rows = [
        (line, amount(line.needs, line.unit), "" if line.has is None else amount(line.has, line.unit)) for line in lines
    ]
    code, needs, has = (
        max(map(len, column)) for column in zip(*((row[0].code, *row[1:]) for row in rows), strict=True)
    )
    out.print(Text(f"{'':<7}  {'LINE':<{code}}  {'NEEDS':>{needs}}  {'HAS':>{has}}", style="bold"))
    for line, needed, there in rows:
        cells = f"  {line.code:<{code}}  {needed:>{needs}}  {there:>{has}}  {line.because}"
        out.print(Text.assemble((f"{line.verdict:<7}", _STYLES[line.verdict]), cells))
        if line.remedy:
            out.print(Text.assemble(" " * (7 + 2 + code + 2), ("> ", "bold"), line.remedy))
