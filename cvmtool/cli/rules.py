# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool rules`: what a run may take, where it may run and what may come out.

Zone: cli. Not `attest policy`, which says what is accepted of a guest: rules say what is allowed of a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.options import Json

if TYPE_CHECKING:
    from cvmtool.owner.pipeline import Decision

app = typer.Typer(help="What a run may take, where it may run and what may come out.", no_args_is_help=True)


@app.command("check")
def check(
    rules: Annotated[Path, typer.Argument(help="Rules, YAML.", metavar="FILE")],
    job: Annotated[Path | None, typer.Argument(help="A job file to judge by them.", metavar="JOB.yaml")] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge the job as a dry run.")] = False,
    as_json: Json = False,
) -> None:
    """Read rules strictly and say what they leave to anybody; with a job, judge it as far as it goes before it is sealed."""
    from cvmtool.cli.render import emit_schema, printable
    from cvmtool.config import load_settings
    from cvmtool.flows.decisions import judge_job, read_rules
    from cvmtool.flows.prepare import load_keys, read_job
    from cvmtool.owner.pipeline import RulesError
    from cvmtool.owner.pipelinefile import unrestricted

    read = read_rules(rules)
    decisions: tuple[Decision, ...] = ()
    if job is not None:
        decisions = judge_job(read, read_job(job), owner_key=load_keys(load_settings()).public.hex(), simulated=dry_run)
    if as_json:
        emit_schema(
            "rules-check", any=list(unrestricted(read)), decisions=[decision.to_json() for decision in decisions]
        )
    else:
        typer.echo(f"any: {', '.join(unrestricted(read)) or 'nothing'}")
        for decision in decisions:
            word = "allowed" if decision.allowed else "DENIED "
            typer.echo(printable(f"{decision.stage:<9} {word} {decision.rule}: {decision.reason}"))
    if not all(decision.allowed for decision in decisions):
        raise RulesError(decisions)
