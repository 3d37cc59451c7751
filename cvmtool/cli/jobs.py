# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool jobs`: the owner's records of runs.

Zone: cli.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvmtool.cli.options import Json

if TYPE_CHECKING:
    from cvmtool.flows.jobrecord import JobRecord

app = typer.Typer(help="Look at the runs that were started from this account.", no_args_is_help=True)

Job = Annotated[
    str, typer.Argument(help="A run's id, the beginning of it, or the job's name (its latest run).", metavar="JOB")
]


@app.command("list")
def list_jobs(as_json: Json = False) -> None:
    """List every run, oldest first."""
    from cvmtool.cli.render import emit_schema, print_table
    from cvmtool.config import load_settings
    from cvmtool.flows.jobs import load_jobs

    records = [job.record for job in load_jobs(load_settings().jobs_dir)]
    if as_json:
        emit_schema("jobs-list", jobs=[_as_json(record) for record in records])
        return
    if not records:
        typer.echo("no job yet: cvmtool train JOB.yaml --dry-run", err=True)
        return
    rows = (
        (
            record.id,
            record.state.value,
            record.created,
            f"{sum(record.stages.values()):7.0f}",
            "SIMULATED" if record.simulated else "",
        )
        for record in records
    )
    print_table(("JOB", "STATE", "STARTED", "SECONDS", ""), rows)


@app.command()
def show(job: Job, as_json: Json = False) -> None:
    """Show one run: how it ended, what each stage took, where its results are."""
    from cvmtool.cli.render import emit_schema, printable
    from cvmtool.config import load_settings
    from cvmtool.flows.decisions import read_decisions
    from cvmtool.flows.jobs import load_job

    found = load_job(load_settings().jobs_dir, job)
    document = _as_json(found.record)
    decisions = read_decisions(found)
    if as_json:
        emit_schema("jobs-show", folder=str(found.path), decisions=decisions, **document)
        return
    for key, value in {**document, "record": str(found.path)}.items():
        if key == "stages":
            for stage, seconds in value.items():
                typer.echo(f"{stage:<12} {seconds:8.1f} s")
        elif key == "attempts":
            for number, attempt in enumerate(value, start=1):
                if len(value) > 1 or attempt["cause"]:
                    keys = sum(session["released"] for session in attempt["sessions"])
                    ending = printable(attempt["cause"] or "came to its end")
                    typer.echo(f"attempt {number}    {attempt['started']}: {ending}; keys released {keys} times")
        elif value is not None:
            typer.echo(f"{key:<12} {printable(str(value))}")
    for decision in decisions:
        word = "allowed" if decision["allowed"] else "DENIED"
        typer.echo(printable(f"{decision['stage']:<12} {word}: {decision['rule']}: {decision['reason']}"))


@app.command()
def logs(job: Job, as_json: Json = False) -> None:
    """Print what the container printed, its stdout to stdout and its stderr to stderr."""
    from cvmtool.cli.render import JsonReporter, TerminalReporter
    from cvmtool.config import load_settings
    from cvmtool.errors import ConfigError
    from cvmtool.flows.jobs import LOG_FILE, load_job
    from cvmtool.formats.control import LogReader

    found = load_job(load_settings().jobs_dir, job)
    path = found.path / LOG_FILE
    if not path.exists():
        raise ConfigError(
            f"job {found.record.id} has no log: its container never started",
            hint=f"cvmtool jobs show {found.record.id}",
        )
    reporter = JsonReporter() if as_json else TerminalReporter()
    reader = LogReader()
    with path.open("rb") as file:
        while data := file.read(1 << 16):
            for record in reader.feed(data):
                reporter.log(record)
    if isinstance(reporter, TerminalReporter):
        reporter.flush()


def _as_json(record: JobRecord) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(record), "state": record.state.value}
