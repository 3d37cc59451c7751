# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool drill`: see every attack refused, here or by a verifier of your own.

Zone: cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cvmtool.cli.groups import DefaultsTo
from cvmtool.cli.options import Host, Json


class _DefaultsToRun(DefaultsTo):
    """`drill NAME` is `drill run NAME`, and `drill` runs them all."""

    default = "run"


app = typer.Typer(
    help="Attack a dry run in every way we know, and see each attack refused: `drill NAME`, or `drill` for all of them.",
    cls=_DefaultsToRun,
)


@app.command()
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Drills to run; all by default.", metavar="NAME")] = None,
    *,
    show: Annotated[bool, typer.Option("--list", help="List the drills and run none.")] = False,
    image: Annotated[str, typer.Option("--image", help="The guest image to attack.")] = "base",
    host: Host = None,
    as_json: Json = False,
) -> None:
    """Attack a dry run in every way we know, and show the refusal that each attack meets."""
    from contextlib import AbstractContextManager, nullcontext

    from rich.console import Console

    from cvmtool.cli.render import TerminalReporter, emit_schema, shortened
    from cvmtool.config import load_settings
    from cvmtool.errors import AppraisalError, Finding
    from cvmtool.flows.attacks import select
    from cvmtool.flows.drill import run_drills
    from cvmtool.flows.images import bring_up_to_date
    from cvmtool.flows.reporter import Stage

    drills = select(names or [])
    console = Console(highlight=False, soft_wrap=True)
    if show:
        for item in drills:
            if as_json:
                emit_schema("drill-list", name=item.name, attack=item.attack, exit_code=item.exit_code)
            else:
                console.print(f"{item.name:<28} exit {item.exit_code}  {item.attack}", markup=False)
        return
    settings = load_settings(host=host)
    reporter = TerminalReporter()
    reporter.banner()
    with reporter.console.status("starting") as status:

        def stage(_stage: Stage, text: str) -> AbstractContextManager[None]:
            status.update(text)
            return nullcontext()

        bundle = bring_up_to_date(image, settings, progress=status.update, notice=reporter.notice)
        missed = []
        for result in run_drills(drills, bundle, settings=settings, reporter=reporter, stage=stage):
            if not result.refused:
                missed.append(result)
            if as_json:
                emit_schema(
                    "drill",
                    name=result.drill.name,
                    attack=result.drill.attack,
                    refused=result.refused,
                    exit_code=result.exit_code,
                    required_exit_code=result.drill.exit_code,
                    message=result.message,
                )
                continue
            mark = "[green]refused[/]" if result.refused else "[bold red]NOT AS REQUIRED[/]"
            console.print(f"{mark} {result.drill.name}: {result.drill.attack}")
            console.print(
                f"        exit {result.exit_code}: {shortened(result.message)[:400]}", markup=False, style="dim"
            )
    if not missed and not as_json:
        reporter.console.print(f"{len(drills)} of {len(drills)} attacks were refused as required")
    if missed:
        raise AppraisalError(
            f"{len(missed)} of {len(drills)} attacks were not refused as required",
            findings=tuple(
                Finding(
                    code=f"drill-{item.drill.name}",
                    field=item.drill.attack,
                    actual=f"exit {item.exit_code}: {item.message}",
                    required=f"exit {item.drill.exit_code}",
                )
                for item in missed
            ),
        )


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where the launches go, a folder each.", metavar="DIR")],
    *,
    image: Annotated[str, typer.Option("--image", help="The guest image that is launched.")] = "base",
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    as_json: Json = False,
) -> None:
    """Write simulated launches, honest and faulty, for other verifiers: report, certificates, and the verdict they must reach."""
    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.export import export_launches, require_room
    from cvmtool.flows.images import bring_up_to_date

    require_room(folder, force=force)
    reporter = TerminalReporter()
    reporter.banner()
    with reporter.console.status("starting") as status:
        bundle = bring_up_to_date(image, load_settings(), progress=status.update, notice=reporter.notice)
        cases = export_launches(folder, bundle, force=force, progress=status.update)
    if as_json:
        emit_schema("drill-export", folder=str(folder), simulated=True, cases=[case.name for case in cases])
        return
    typer.echo(f"{folder}: {len(cases)} simulated launches; README.txt says what they are")
