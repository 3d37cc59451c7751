# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What people and scripts see: errors, stages, verdicts, tables. Text from guest or host is made printable here.

Zone: cli. Data goes to standard output, everything else to standard error. `--json` writes one document, or JSON lines for a
run; docs/reference/json.md has their schemas.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from cvmtool.cli.pace import ProgressLine
from cvmtool.cli.rate import Rate
from cvmtool.errors import AppraisalError, CvmError
from cvmtool.flows.reporter import Stage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from cvmtool.formats.control import LogRecord
    from cvmtool.owner.appraise import VerifiedGuest
    from cvmtool.owner.checks import Check
    from cvmtool.owner.gpu import VerifiedGpus

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

    # rich would turn a container's ":100:" into a picture.
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


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
        console.print(f"[bold]cvmtool: hint:[/] {_escape(printable(error.hint))}")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _one_line(text: str) -> str:
    return printable(text).replace("\n", " ").replace("\t", " ")


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, to: TextIO | None = None) -> None:
    """Write rows in aligned columns, to standard output or to `to`. Nothing is cut or folded: half a digest is no use."""
    lines = [tuple(head), *(tuple(map(_one_line, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        (to or sys.stdout).write(text.rstrip() + "\n")


def checks_lines(checks: tuple[Check, ...], unchecked: tuple[str, ...], width: int) -> list[Text]:
    """Return the verdict, one line a check, none longer than `width` cells. What is cut stands whole in verdict.json."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    rows = [("CHECK", "FOUND", "REQUIRED")]
    rows += [(_one_line(item.title), shortened(item.actual), shortened(item.required)) for item in checks]
    title, found, required = (max(cell_len(row[column]) for row in rows) for column in range(3))
    # A long title gives way first; then what was found and what was required share the rest.
    room = width - len("ok ") - 2 * len("  ")
    title = min(title, max(16, room // 3 - 2))
    found = min(found, max(room - title - required, (room - title) // 2))
    required = min(required, room - title - found)
    lines = []
    for mark, row in zip(("", *("ok" if item.passed else "NO" for item in checks)), rows, strict=True):
        cells = [
            cell if cell_len(cell) <= size else f"{set_cell_size(cell, size - 1)}\u2026"
            for cell, size in zip(row, (title, found, required), strict=True)
        ]
        padded = "  ".join(
            set_cell_size(cell, size) for cell, size in zip(cells, (title, found, required), strict=True)
        )
        style = {"ok": "green", "NO": "bold red"}.get(mark, "bold")
        lines.append(Text.assemble((f"{mark:<3}", style), (padded.rstrip(), "" if mark == "ok" else style)))
    if unchecked:
        lines.append(Text.assemble(("-- ", "yellow"), f"not asked for by this policy: {', '.join(unchecked)}"))
    return lines


_HEX = re.compile(r"\b[0-9a-f]{20,}\b")
_FRACTION = re.compile(r"(?<=:[0-9]{2})\.[0-9]+(?=[+Z])")  # of a second


def shortened(text: str) -> str:
    """Shorten what nobody reads to its end: digests, and fractions of seconds."""
    text = _FRACTION.sub("", _one_line(text))
    return _HEX.sub(lambda digits: f"{digits[0][:8]}..{digits[0][-4:]}", text)


class TerminalReporter:
    """Stages with their durations, the verdict check by check, and the container's own output on standard output."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = error_console()
        self._out = Console(highlight=False, markup=False, soft_wrap=True, emoji=False)
        # A line that is drawn anew may stand below what is printed where both go to a screen.
        self._screen = self.console.is_terminal and self._out.is_terminal
        self._status: Any = None
        self._line: ProgressLine | None = None
        self._text = ""
        self._rate = Rate()
        self._noticed: set[str] = set()
        self._lines = {1: "", 2: ""}
        # A character may be cut in two by the records' borders.
        self._decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in self._lines}

    def banner(self) -> None:
        """Say that nothing here is confidential."""
        self.console.print(f"[bold black on yellow] {BANNER} [/] dry run: no memory encryption, no AMD signature")

    @contextmanager
    def stage(self, stage: Stage, text: str) -> Iterator[None]:
        """Show a spinner while the stage runs, then its duration."""
        begun = time.monotonic()
        self.begin(stage.value, text)
        try:
            yield
        except BaseException:
            self.end(done=False, seconds=time.monotonic() - begun)
            raise
        self.end(done=True, seconds=time.monotonic() - begun)

    def begin(self, stage: str, text: str) -> None:
        """Show that a stage has begun."""
        self._stop()
        self._text = f"[bold]{stage:<8}[/] {_escape(printable(text))}"
        if stage == Stage.TRAIN.value:
            # The container's own lines are the progress; a line of what it says of itself stands below them.
            self.console.print(f"  {self._text}")
            self._line = ProgressLine() if self._screen else None
        if self._line is not None or stage != Stage.TRAIN.value:
            self._status = self.console.status(self._text)
            self._status.start()

    def end(self, *, done: bool, seconds: float) -> None:
        """Show how the stage that was begun last ended, and what it took."""
        self._stop()
        if done:
            self.flush()
        mark = "[green]+[/]" if done else "[red]x[/]"
        self.console.print(f"{mark} {self._text} [dim]({seconds:.1f} s)[/]")

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()
        self._status = self._line = None

    def close(self) -> None:
        """Let go of the terminal, with all lines printed."""
        self._stop()
        self.flush()

    def usage(self, usage: Mapping[str, object]) -> None:
        """Show what the guest says it uses."""
        if self._line is not None:
            self._line.use(usage, time.monotonic())
            self._draw(self._line)

    def _draw(self, line: ProgressLine) -> None:
        self._status.update(f"[bold]{Stage.TRAIN.value:<8}[/] {_escape(printable(line.text or 'training'))}")

    def step(self, text: str) -> None:
        """Show a detail beside the spinner."""
        if self._status is not None:
            self._status.update(f"{self._text}: {_escape(text)}")

    def progress(self, done: int, total: int) -> None:
        """Show how far it is and how fast it goes."""
        if self._status is not None and total >= 1 << 22:
            self._status.update(f"{self._text}: {self._rate.text(done, total)}")

    def notice(self, text: str) -> None:
        """Print a notice, once."""
        if text in self._noticed:
            return
        self._noticed.add(text)
        self.console.print(f"[yellow]![/] {_escape(printable(text))}")

    def verdict(self, guest: VerifiedGuest) -> None:
        """Print the table of checks."""
        self.show_checks(guest.checks, guest.unchecked, simulated=guest.simulated)

    def gpu_verdict(self, gpus: VerifiedGpus) -> None:
        """Print the table of checks of a machine's GPUs."""
        self.show_checks(gpus.checks, gpus.unchecked, simulated=False)

    def show_checks(self, checks: tuple[Check, ...], unchecked: tuple[str, ...], *, simulated: bool) -> None:
        """Print the table of checks."""
        for line in checks_lines(checks, unchecked, self.console.width):
            self.console.print(line)
        if simulated:
            self.banner()

    def log(self, record: LogRecord) -> None:
        """Print whole lines of the container's output: its stdout to ours, its stderr to ours."""
        stream = int(record.stream)
        if stream not in self._lines:
            self.notice("the container's log reached its limit; the rest is dropped")
            return
        text = self._lines[stream] + self._decoders[stream].decode(record.data)
        *lines, self._lines[stream] = text.split("\n")
        for line in lines:
            self._print_line(stream, line, record.microseconds)

    def flush(self) -> None:
        """Print the last line of each stream even without its end."""
        for stream, begun in self._lines.items():
            line = begun + self._decoders[stream].decode(b"", final=True)
            if line:
                self._print_line(stream, line, 0)
                self._lines[stream] = ""

    def _print_line(self, stream: int, line: str, microseconds: int) -> None:
        if self._line is not None and stream == 1 and self._line.take(line, microseconds):
            self._draw(self._line)
            return
        console = self._out if stream == 1 and self._line is None else self.console
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

    def usage(self, usage: Mapping[str, object]) -> None:
        """Say nothing: `jobs show --json` has it."""

    def notice(self, text: str) -> None:
        """Emit a notice."""
        emit_schema("event", event="notice", text=text)

    def verdict(self, guest: VerifiedGuest) -> None:
        """Emit every check."""
        checks = _check_fields(guest.checks)
        emit_schema("event", event="verdict", simulated=guest.simulated, checks=checks, unchecked=list(guest.unchecked))

    def gpu_verdict(self, gpus: VerifiedGpus) -> None:
        """Emit every check of a machine's GPUs."""
        checks = _check_fields(gpus.checks)
        devices, unchecked = list(gpus.devices), list(gpus.unchecked)
        emit_schema("event", event="gpu-verdict", devices=devices, checks=checks, unchecked=unchecked)

    def log(self, record: LogRecord) -> None:
        """Emit what the container printed."""
        text = record.data.decode("utf-8", "replace")
        emit_schema(
            "event", event="log", stream=record.stream.name.lower(), microseconds=record.microseconds, text=text
        )


def _check_fields(checks: Iterable[Check]) -> list[dict[str, str | bool]]:
    return [
        {"code": check.code, "passed": check.passed, "actual": check.actual, "required": check.required}
        for check in checks
    ]


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 3)
