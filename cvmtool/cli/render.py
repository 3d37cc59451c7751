# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What people and scripts see: errors, stages, verdicts, tables. Text from guest or host is made printable here.

Zone: cli. Data goes to standard output, everything else to standard error. `--json` writes one document, or JSON lines for a
run; docs/reference/json.md has their schemas.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cvmtool.errors import AppraisalError, CvmError
from cvmtool.flows.reporter import Stage

if TYPE_CHECKING:
    from rich.console import Console

    from cvmtool.formats.control import LogRecord
    from cvmtool.owner.appraise import VerifiedGuest
    from cvmtool.owner.checks import Check

BANNER = "SIMULATED / NOT CONFIDENTIAL"


def printable(text: str) -> str:
    """Replace what a terminal would act on (escape sequences, other control characters) by its code."""
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)


def emit(document: dict[str, Any]) -> None:
    """Write one JSON document on one line to standard output."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def emit_schema(schema: str, **fields: object) -> None:
    """Write one JSON document with its schema's name."""
    emit({"schema": f"cvmtool/{schema}/v1", **fields})


def error_console() -> Console:
    """Return a console on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def show_error(error: CvmError, *, as_json: bool) -> None:
    """Say what went wrong, why, and what to do next."""
    findings = error.findings if isinstance(error, AppraisalError) else ()
    if as_json:
        emit_schema(
            "error",
            exit_code=error.exit_code,
            error=type(error).__name__,
            message=error.message,
            detail=error.detail,
            hint=error.hint,
            findings=[
                {"code": f.code, "field": f.field, "actual": f.actual, "required": f.required, "why": f.why}
                for f in findings
            ],
        )
        return
    console = error_console()
    console.print(f"[bold red]cvmtool: error:[/] {_escape(printable(error.message))}")
    for finding in findings:
        console.print(f"  [red]{_escape(finding.code)}[/]: {_escape(printable(finding.field))}")
        console.print(f"    actual    {_escape(printable(finding.actual))}")
        console.print(f"    required  {_escape(printable(finding.required))}")
        if finding.why:
            console.print(f"    [dim]{_escape(finding.why)}[/]")
    if error.detail:
        for line in printable(error.detail).splitlines()[-12:]:
            console.print(f"  [dim]{_escape(line)}[/]")
    if error.hint:
        console.print(f"[bold]cvmtool: hint:[/] {_escape(error.hint)}")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def checks_table(checks: tuple[Check, ...], unchecked: tuple[str, ...]) -> Any:  # noqa: ANN401 - rich's table
    """Return the verdict as a table, one line a check."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "CHECK", "ACTUAL", "REQUIRED", box=None, pad_edge=False, title_justify="left")
    for check in checks:
        mark = Text("ok", "green") if check.passed else Text("NO", "bold red")
        table.add_row(mark, check.title, _short(check.actual), _short(check.required))
    for name in unchecked:
        table.add_row(Text("--", "yellow"), name, "", "unchecked by this policy")
    return table


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= 48 else f"{text[:32]}...{text[-12:]}"


class TerminalReporter:
    """Stages with their durations, a verdict table, and the container's own output on standard output."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = error_console()
        self._out = Console(highlight=False, markup=False, soft_wrap=True)
        self._status: Any = None
        self._noticed: set[str] = set()
        self._lines = {1: "", 2: ""}

    def banner(self) -> None:
        """Say that nothing here is confidential."""
        self.console.print(
            f"[bold black on yellow] {BANNER} [/] a dry run: memory encryption and AMD's signature are simulated"
        )

    @contextmanager
    def stage(self, stage: Stage, text: str) -> Iterator[None]:
        """Show a spinner while the stage runs, then its duration."""
        begun = time.monotonic()
        self._status = self.console.status(f"[bold]{stage.value:<8}[/] {text}")
        self._text = f"[bold]{stage.value:<8}[/] {text}"
        if stage is Stage.TRAIN:
            # The container's own lines are the progress; a spinner would fight with them.
            self.console.print(self._text)
            self._status = None
        else:
            self._status.start()
        try:
            yield
        except BaseException:
            self._stop()
            self.console.print(f"[red]x[/] [bold]{stage.value:<8}[/] {text} [dim]{time.monotonic() - begun:.1f} s[/]")
            raise
        self._stop()
        self.flush()
        self.console.print(f"[green]+[/] [bold]{stage.value:<8}[/] {text} [dim]{time.monotonic() - begun:.1f} s[/]")

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def step(self, text: str) -> None:
        """Show a detail beside the spinner."""
        if self._status is not None:
            self._status.update(f"{self._text}: {_escape(text)}")

    def progress(self, done: int, total: int) -> None:
        """Show how far it is, in MiB."""
        if self._status is not None and total >= 1 << 22:
            self._status.update(f"{self._text}: {done >> 20} of {total >> 20} MiB")

    def notice(self, text: str) -> None:
        """Print a notice, once."""
        if text in self._noticed:
            return
        self._noticed.add(text)
        self.console.print(f"[yellow]![/] {_escape(printable(text))}")

    def verdict(self, guest: VerifiedGuest) -> None:
        """Print the table of checks."""
        self.console.print(checks_table(guest.checks, guest.unchecked))
        if guest.simulated:
            self.banner()

    def log(self, record: LogRecord) -> None:
        """Print whole lines of the container's output: its stdout to ours, its stderr to ours."""
        stream = int(record.stream)
        if stream not in self._lines:
            self.notice("the container's log reached its limit; the rest is dropped")
            return
        text = self._lines[stream] + record.data.decode("utf-8", "replace")
        *lines, self._lines[stream] = text.split("\n")
        for line in lines:
            self._print_line(stream, line)

    def flush(self) -> None:
        """Print the last line of each stream even without its end."""
        for stream, line in self._lines.items():
            if line:
                self._print_line(stream, line)
                self._lines[stream] = ""

    def _print_line(self, stream: int, line: str) -> None:
        console = self._out if stream == 1 else self.console
        console.print(printable(line.rstrip("\r")), markup=False)


class JsonReporter:
    """The same as JSON lines on standard output."""

    @contextmanager
    def stage(self, stage: Stage, text: str) -> Iterator[None]:
        """Emit an event when the stage begins and when it ends."""
        begun = time.monotonic()
        emit_schema("event", event="stage", stage=stage.value, state="begun", text=text)
        try:
            yield
        except BaseException:
            emit_schema("event", event="stage", stage=stage.value, state="failed", seconds=_since(begun))
            raise
        emit_schema("event", event="stage", stage=stage.value, state="done", seconds=_since(begun))

    def step(self, text: str) -> None:
        """Emit a step."""
        emit_schema("event", event="step", text=text)

    def progress(self, done: int, total: int) -> None:
        """Say nothing: scripts do not watch bars."""

    def notice(self, text: str) -> None:
        """Emit a notice."""
        emit_schema("event", event="notice", text=text)

    def verdict(self, guest: VerifiedGuest) -> None:
        """Emit every check."""
        checks = [
            {"code": check.code, "passed": check.passed, "actual": check.actual, "required": check.required}
            for check in guest.checks
        ]
        emit_schema("event", event="verdict", simulated=guest.simulated, checks=checks, unchecked=list(guest.unchecked))

    def log(self, record: LogRecord) -> None:
        """Emit what the container printed."""
        text = record.data.decode("utf-8", "replace")
        emit_schema(
            "event", event="log", stream=record.stream.name.lower(), microseconds=record.microseconds, text=text
        )


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 3)
