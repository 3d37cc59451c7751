# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool vm`: the virtual machines themselves.

Zone: cli.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cvmtool.cli.options import Host, Json

app = typer.Typer(help="Look at the virtual machines that cvmtool started, and stop them.", no_args_is_help=True)


@app.command("list")
def list_machines(as_json: Json = False) -> None:
    """List the machines that were started from this account."""
    from dataclasses import asdict

    from cvmtool.cli.render import emit_schema, print_table
    from cvmtool.config import load_settings
    from cvmtool.flows.machine import list_machines as find

    found = find(load_settings())
    if as_json:
        emit_schema("vm-list", machines=[{**asdict(item), "simulated": True} for item in found])
        return
    if not found:
        typer.echo("no machine", err=True)
        return
    rows = ((item.name, item.state, item.job, item.stage, item.uri) for item in found)
    print_table(("MACHINE", "STATE", "JOB", "LAST STAGE", "HOST"), rows)


@app.command()
def destroy(
    machine: Annotated[str, typer.Argument(help="The machine's name.", metavar="MACHINE")],
    *,
    host: Host = None,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Drop the record of a machine whose host is gone for good; nobody is asked."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Stop a machine at once and delete what its host holds of it. Idempotent. --host: for one that is not on record here."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.machine import destroy_machine

    found = destroy_machine(machine, load_settings(host=host), forget=forget)
    if as_json:
        emit_schema("vm-destroy", machine=machine, found=found)
    else:
        typer.echo(f"{machine}: {'gone' if found else 'there was none'}", err=True)


@app.command()
def render(
    job: Annotated[str, typer.Argument(help="The job file.", metavar="JOB.yaml")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The machine of a dry run; no host is asked.")] = False,
    host: Host = None,
    argv: Annotated[bool, typer.Option("--argv", help="The arguments that libvirt would give QEMU, instead.")] = False,
    as_json: Json = False,
) -> None:
    """Print the libvirt domain that a job would define. Nothing is started; the salt differs each time."""
    from pathlib import Path

    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.images import bring_up_to_date
    from cvmtool.flows.machine import render_argv, render_machine
    from cvmtool.flows.prepare import prepare, read_job
    from cvmtool.formats.manifest import Mode

    settings = load_settings(host=host)
    reporter = TerminalReporter()
    bundle = bring_up_to_date(read_job(Path(job)).image, settings, progress=reporter.step, notice=reporter.notice)
    prepared = prepare(Path(job), bundle, settings=settings, reporter=reporter)
    launch = prepared.launch(Mode.DRYRUN if dry_run else Mode.PRODUCTION)
    show = render_argv if argv else render_machine
    text = show("cvmtool-render", launch, settings)
    if as_json:
        emit_schema("vm-render", **({"argv": text} if argv else {"xml": text}))
    else:
        typer.echo(text, nl=False)
