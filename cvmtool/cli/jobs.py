# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool jobs`: runs that were started from this account, whichever process carries them out.

Zone: cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvmtool.cli import tunnel
from cvmtool.cli.options import Json

if TYPE_CHECKING:
    from cvmtool.flows.jobrecord import JobRecord
    from cvmtool.flows.jobs import JobDir

_MIB = 1 << 20

app = typer.Typer(help="Look at runs, reach into them, end them, take them up again.", no_args_is_help=True)

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
def show(
    job: Job,
    *,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Every line of metrics that its container printed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show one run: how it ended, what each stage took, where its results are."""
    from cvmtool.cli.render import emit_schema, printable
    from cvmtool.config import load_settings
    from cvmtool.flows.decisions import read_decisions
    from cvmtool.flows.jobevents import USAGE
    from cvmtool.flows.jobs import load_job

    found = load_job(load_settings().jobs_dir, job)
    if metrics:
        _show_metrics(found, as_json=as_json)
        return
    document = _as_json(found.record)
    decisions = read_decisions(found)
    latest = found.database.latest(found.record.id).get(USAGE)
    if as_json:
        emit_schema("jobs-show", folder=str(found.path), decisions=decisions, usage=latest, **document)
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
    if latest is not None:
        typer.echo(f"{'used':<12} {_used(latest)}")
    if not decisions:
        typer.echo(f"{'rules':<12} none")
    for decision in decisions:
        word = "allowed" if decision["allowed"] else "DENIED"
        typer.echo(printable(f"{decision['stage']:<12} {word}: {decision['rule']}: {decision['reason']}"))


def _used(usage: dict[str, int]) -> str:
    memory, outputs = usage["memory_peak_bytes"] / _MIB, usage["outputs_bytes"] / _MIB
    return f"{usage['cpu_microseconds'] / 1e6:.0f} s of CPU, at most {memory:.0f} MiB of memory, {outputs:.0f} MiB of outputs"


def _show_metrics(found: JobDir, *, as_json: bool) -> None:
    from cvmtool.cli.render import emit_schema

    metrics = found.database.metrics(found.record.id)
    if not metrics:
        typer.echo(f"job {found.record.id} has printed no metrics: docs/howto/detach-and-resume.md", err=True)
    for item in metrics:
        if as_json:
            emit_schema("jobs-metrics", microseconds=item.microseconds, values=item.values)
        else:
            values = "  ".join(f"{name} {value}" for name, value in item.values.items())
            typer.echo(f"{item.microseconds / 1e6:10.3f} s  {values}")


@app.command()
def logs(
    job: Job,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print what comes, until the run is over.")] = False,
    as_json: Json = False,
) -> None:
    """Print what the container printed, its stdout to stdout and its stderr to stderr."""
    from cvmtool.cli.render import JsonReporter, TerminalReporter
    from cvmtool.config import load_settings
    from cvmtool.errors import ConfigError
    from cvmtool.flows.jobfollow import LogTail
    from cvmtool.flows.jobfollow import follow as look_on
    from cvmtool.flows.jobs import LOG_FILE, load_job
    from cvmtool.formats.control import LogRecord

    found = load_job(load_settings().jobs_dir, job)
    if not follow and not (found.path / LOG_FILE).exists():
        raise ConfigError(
            f"job {found.record.id} has no log: its container has not started",
            hint=f"cvmtool jobs show {found.record.id}",
        )
    reporter = JsonReporter() if as_json else TerminalReporter()
    for item in look_on(found) if follow else LogTail(found.path).read():
        if isinstance(item, LogRecord):
            reporter.log(item)
    if isinstance(reporter, TerminalReporter):
        reporter.close()


@app.command()
def attach(job: Job, as_json: Json = False) -> None:
    """Look on at a run until it is over; end as `train` would have. Ctrl-C looks away, and the run goes on."""
    from cvmtool.cli.follow import attach as look_on
    from cvmtool.config import load_settings
    from cvmtool.flows.jobs import load_job

    look_on(load_job(load_settings().jobs_dir, job), as_json=as_json)


@app.command()
def cancel(job: Job, as_json: Json = False) -> None:
    """End a run in order, and remove its machine. Works where the process that ran it was killed, too.

    A container with checkpoints is asked first, and has the grace that its job gives it.
    """
    from cvmtool.cli.render import emit_schema, printable
    from cvmtool.config import load_settings
    from cvmtool.flows.jobcontrol import cancel as end
    from cvmtool.flows.jobrecord import JobState
    from cvmtool.flows.jobs import load_job

    settings = load_settings()
    found = load_job(settings.jobs_dir, job)
    end(found, settings, notice=lambda text: typer.echo(f"cvmtool: {printable(text)}", err=True))
    if as_json:
        emit_schema("jobs-cancel", id=found.record.id, state=found.record.state.value)
        return
    name, state = found.record.id, found.record.state
    again = f": cvmtool jobs resume {name} takes it up again" if state is JobState.INTERRUPTED else ""
    typer.echo(f"job {name} is {state}{again}", err=True)


@app.command()
def results(
    job: Job,
    *,
    out: Annotated[Path | None, typer.Option("--out", help="Copy them, and the receipt, here.", metavar="DIR")] = None,
    as_json: Json = False,
) -> None:
    """Say where a run's outputs are, and that they are still what came home; copy them."""
    from cvmtool.cli.render import emit_schema, printable
    from cvmtool.config import load_settings
    from cvmtool.flows.jobcontrol import results as brought_home
    from cvmtool.flows.jobs import load_job

    found = brought_home(load_job(load_settings().jobs_dir, job), out=out)
    if as_json:
        emit_schema("jobs-results", folder=str(found.folder), outputs=list(found.outputs))
        return
    for item in found.outputs:
        typer.echo(printable(str(item["path"])))


@app.command()
def resume(
    job: Job,
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not look on.")] = False,
    as_json: Json = False,
) -> None:
    """Take a run up again that was lost, interrupted or failed: with its guest if that still runs, else from its beginning.

    A run whose guest was done when its owner's process died only has its results fetched.
    """
    from cvmtool.cli.follow import attach as look_on
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.jobs import load_job
    from cvmtool.flows.supervise import resume as take_up

    settings = load_settings()
    found = load_job(settings.jobs_dir, job)
    before = take_up(found, settings)
    if not detach:
        look_on(found, as_json=as_json, after=before)
    elif as_json:
        emit_schema("jobs-resume", id=found.record.id, folder=str(found.path))
    else:
        typer.echo(f"job {found.record.id} runs in the background: cvmtool jobs attach {found.record.id}", err=True)


app.command()(tunnel.tunnel)
app.command("exec", context_settings={"allow_interspersed_args": False})(tunnel.execute)
app.command()(tunnel.share)


def _as_json(record: JobRecord) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(record), "state": record.state.value}
