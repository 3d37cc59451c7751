# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Say what an error of QEMU, libvirt, the kernel or the secure processor means, and what to do about it.

Zone: host. Pure. The text comes from a host and is hostile: bounded and matched, never believed; a decoded cause is a hint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from cvmtool.host.failure_table import ROWS, Row
from cvmtool.host.firmware_status import STATUS

MAX_MESSAGE = 1 << 16  # characters that are looked at: the last ones, since a log ends in its error
_LINE = 2_000  # of one line: patterns backtrack, and no message is longer
_QUOTED = 200

_STATUS = re.compile(
    r"\b(?:fw_err(?:or)?[=:] ?|error(?:[=:]| ) ?#?)(0x[0-9a-f]{1,4}|[0-9]{1,5})\b", re.IGNORECASE | re.ASCII
)
_ABOUT_FIRMWARE = re.compile(r"fw_err|SNP_|\bSEV\b|SEV-|ccp ", re.ASCII)

_LIBVIRT_HINTS = {
    9: "is another cvmtool at work on this machine? cvmtool vm list",  # VIR_ERR_OPERATION_FAILED
    38: "does the host still run? cvmtool vm list",  # VIR_ERR_SYSTEM_ERROR
    42: "cvmtool vm list shows the machines there are",  # VIR_ERR_NO_DOMAIN
    67: "cvmtool doctor says what is missing on the host",  # VIR_ERR_CONFIG_UNSUPPORTED
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What a message means. `quoted` is the part of it that was recognised, as the host wrote it."""

    code: str
    cause: str
    remedy: str
    source: str
    quoted: str


def decode(message: str) -> tuple[Cause, ...]:
    """Return what is known of a message, the likeliest first; nothing if nothing of it is known."""
    lines = [line[:_LINE] for line in message[-MAX_MESSAGE:].splitlines()]
    found: list[Cause] = []
    for row, pattern in _patterns():
        match = next((match for line in lines if (match := pattern.search(line))), None)
        if match is not None:
            found.append(_cause(row, match[0]))
    if not found:
        found += (cause for line in lines if (cause := _firmware_status(line)) is not None)
    return tuple(found)


def hint(message: str, code: int | None) -> str | None:
    """Return the next step after an error of libvirt's: from its text if that is known, else from its number."""
    causes = decode(message)
    if causes:
        return f"{causes[0].cause}: {causes[0].remedy}"
    return None if code is None else _LIBVIRT_HINTS.get(code)


@cache
def _patterns() -> tuple[tuple[Row, re.Pattern[str]], ...]:
    return tuple((row, re.compile(row.pattern, re.ASCII)) for row in ROWS)


def _cause(row: Row, quoted: str) -> Cause:
    return Cause(code=row.code, cause=row.cause, remedy=row.remedy, source=row.source, quoted=quoted[:_QUOTED])


def _firmware_status(line: str) -> Cause | None:
    """Read the number that the secure processor gave, where a line speaks of it."""
    match = _STATUS.search(line)
    if match is None or not _ABOUT_FIRMWARE.search(line):
        return None
    number = int(match[1], 0) if match[1].lower().startswith("0x") else int(match[1])
    status = STATUS.get(number)
    if status is None:
        return None
    return Cause(
        code=f"firmware-{status.name.lower().replace('_', '-')}",
        cause=f"the secure processor's firmware says {status.name} ({number:#x}): {status.meaning}",
        remedy="cvmtool doctor looks at the whole host",
        source="AMD 56860, status codes",
        quoted=match[0][:_QUOTED],
    )
