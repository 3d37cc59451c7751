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


@app.command("init")
def init(
    job: Annotated[Path, typer.Argument(help="The job file.", metavar="JOB.yaml")],
    *,
    as_json: Json = False,
) -> None:
    """Write commented rules to standard output that allow this job and little else, to be read and changed."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.decisions import starting_rules
    from cvmtool.flows.prepare import load_keys, read_job
    from cvmtool.owner.pipelinefile import unrestricted
    from cvmtool.owner.pipelinetext import commented_rules

    settings, file = load_settings(), read_job(job)
    rules = starting_rules(file, job.resolve().parent, settings=settings, keys=load_keys(settings))
    text = commented_rules(rules, preface=f"For job {file.name}, as it was when these were written.")
    if as_json:
        emit_schema("rules-init", any=list(unrestricted(rules)), rules=text)
    else:
        typer.echo(text, nl=False)


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
    from cvmtool.flows.decisions import input_headers, judge_job, read_rules
    from cvmtool.flows.prepare import load_keys, read_job
    from cvmtool.owner.pipeline import RulesError
    from cvmtool.owner.pipelinefile import unrestricted

    settings, read = load_settings(), read_rules(rules).rules
    decisions: tuple[Decision, ...] = ()
    if job is not None:
        file = read_job(job)
        headers = input_headers(file, job.resolve().parent)
        owner_key = load_keys(settings).public.hex()
        decisions = judge_job(read, file, headers, owner_key=owner_key, simulated=dry_run)
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
