# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Show a run of any process as if it ran here.

Zone: cli. What is shown is in the run's record: texts of container, guest and host are made printable as elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from cvmtool.cli.render import JsonReporter, TerminalReporter
    from cvmtool.flows.jobfollow import Happened, Latest
    from cvmtool.flows.jobs import JobDir
    from cvmtool.formats.control import LogRecord

_INTERRUPTED = 130


def attach(job: JobDir, *, as_json: bool, after: int = -1) -> None:
    """Show a run, from the event behind number `after`, until it is over; then end as `cvmtool train` would have.

    Raises:
        CvmError: with which the run ended.
        HostError: the process that ran it was killed.
        SystemExit: the user looked away, and the run goes on; or it was ended.
    """
    from cvmtool.cli.render import JsonReporter, TerminalReporter
    from cvmtool.flows.jobfollow import follow

    reporter = JsonReporter() if as_json else TerminalReporter()
    if job.record.simulated and isinstance(reporter, TerminalReporter):
        reporter.banner()
    ended: dict[str, Any] = {}
    try:
        for item in follow(job, after=after):
            _show(item, reporter, ended)
    except KeyboardInterrupt:
        if isinstance(reporter, TerminalReporter):
            reporter.close()
        name = job.record.id
        typer.echo(
            f"cvmtool: detached; job {name} goes on: cvmtool jobs attach {name}, cvmtool jobs cancel {name}", err=True
        )
        raise SystemExit(_INTERRUPTED) from None  # all was said, which of a typer.Exit would not be known
    if isinstance(reporter, TerminalReporter):
        reporter.close()
    _conclude(job, ended, reporter)


def _show(
    item: Happened | LogRecord | Latest, reporter: JsonReporter | TerminalReporter, ended: dict[str, Any]
) -> None:
    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.flows.jobevents import PROGRESS, USAGE
    from cvmtool.flows.jobfollow import Happened, Latest

    if isinstance(item, Latest):
        if isinstance(reporter, TerminalReporter):
            if progress := item.values.get(PROGRESS):
                reporter.progress(progress["done"], progress["total"])
            if usage := item.values.get(USAGE):
                reporter.usage(usage)
    elif not isinstance(item, Happened):
        reporter.log(item)
    elif item.event["event"] == "ended":
        ended.update(item.event)
    elif isinstance(reporter, TerminalReporter):
        _show_event(item.event, reporter)
    else:
        emit_schema("event", **item.event)


def _show_event(event: dict[str, Any], reporter: TerminalReporter) -> None:
    from cvmtool.owner.checks import Check

    match event["event"], event.get("state"):
        case "stage", "begun":
            reporter.begin(event["stage"], event["text"])
        case "stage", state:
            reporter.end(done=state == "done", seconds=event["seconds"])
        case "step", _:
            reporter.step(event["text"])
        case "notice", _:
            reporter.notice(event["text"])
        case "verdict", _:
            checks = tuple(Check(**{name: check[name] for name in Check._fields}) for check in event["checks"])
            reporter.show_checks(checks, tuple(event["unchecked"]), simulated=event["simulated"])


def _conclude(job: JobDir, ended: dict[str, Any], reporter: JsonReporter | TerminalReporter) -> None:
    from cvmtool.cli.train import summarise
    from cvmtool.errors import HostError
    from cvmtool.flows.jobevents import revive_error
    from cvmtool.flows.jobrecord import JobState

    record = job.record
    if record.state is JobState.DONE:
        summarise(job, reporter)
        return
    if record.state is JobState.LOST:
        raise HostError(
            f"the process that ran job {record.id} was killed",
            hint=f"take it up again: cvmtool jobs resume {record.id}",
        )
    if record.state is JobState.INTERRUPTED:
        typer.echo(f"cvmtool: job {record.id} was ended: cvmtool jobs resume {record.id} begins it again", err=True)
        raise SystemExit(_INTERRUPTED)
    if ended.get("error") is None:
        raise HostError(f"job {record.id} is {record.state}: {record.error}", hint=f"cvmtool jobs show {record.id}")
    raise revive_error(ended["error"])
