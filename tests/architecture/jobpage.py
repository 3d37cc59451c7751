# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""docs/reference/job.md's table as the readers of job.yaml tell it: they read the page's own examples, and are listened to.

What a key means stands in cvmtool/owner/jobkeys.py; its type, bounds and default are the arguments of the call that reads it.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from cvmtool.formats.job import MAX_MIB, MAX_SECONDS
from cvmtool.owner import jobfile
from cvmtool.owner.jobkeys import KEYS, Key
from cvmtool.owner.strictyaml import Reader

REQUIRED = "required"
START, END = "<!-- the keys -->\n", "<!-- the end of the keys -->\n"
_SIZES = ((1 << 50, "PiB"), (1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_TIMES = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))


@dataclass
class Heard:
    """What was said of keys while files were read."""

    calls: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name -> type and default."""
    known: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a mapping -> the keys that may stand in it."""

    def name(self, written: str) -> str:
        """Return what the table calls a key: a name that the file chose is NAME."""
        longest_first = sorted((key.name for key in KEYS), key=len, reverse=True)
        return next((name for name in longest_first if _pattern(name).fullmatch(written)), written)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace("NAME", ".+?"))


def listen(monkeypatch: Any, texts: list[str]) -> Heard:
    """Read job files; return what their readers asked for."""
    heard = Heard()

    class Listening(Reader):
        def note(self, key: str, kind: str, default: object) -> None:
            said = REQUIRED if default is None else "" if default == "" else f"`{default}`"
            heard.calls.setdefault(heard.name(self.name(key)), (kind, said))

        def only(self, *known: str) -> None:
            heard.known[heard.name(self._prefix.removesuffix("."))] = known
            super().only(*known)

        def child(self, key: str, default: dict[str, Any] | None = None) -> Reader:
            self.note(key, "keys", None if default is None else "")
            return super().child(key, default)

        def text(self, key: str, pattern: Any = None, expected: str = "a string", default: str | None = None) -> str:
            words = expected.removesuffix(",")
            self.note(key, words if words.startswith("a ") else f"string: {words}", default)
            return super().text(key, pattern, expected, default)

        def number(self, key: str, default: int, least: int, most: int) -> int:
            self.note(key, f"number, {least:,} to {most:,}", default if least <= default <= most else None)
            return super().number(key, default, least, most)

        def boolean(self, key: str, *, default: bool) -> bool:
            self.note(key, "`true` or `false`", str(default).lower())
            return super().boolean(key, default=default)

        def strings(self, key: str) -> tuple[str, ...]:
            self.note(key, "list of strings", "")
            return super().strings(key)

        def mib(self, key: str, default: str, *, most: int = MAX_MIB) -> int:
            self.note(key, f"size in whole MiB, at most {_amount(most << 20, _SIZES)}", default)
            return super().mib(key, default, most=most)

        def size(self, key: str, most: int, default: str | None = None) -> int:
            self.note(key, f"size, at most {_amount(most, _SIZES)}", default)
            return super().size(key, most, default)

        def seconds(self, key: str, default: str, *, most: int = MAX_SECONDS) -> int:
            self.note(key, "time" if most == MAX_SECONDS else f"time, at most {_amount(most, _TIMES)}", default)
            return super().seconds(key, default, most=most)

    monkeypatch.setattr(jobfile, "Reader", Listening)
    for text in texts:
        jobfile.parse_job_file(text)
    monkeypatch.undo()
    return heard


def _amount(value: int, units: tuple[tuple[int, str], ...]) -> str:
    size, unit = next((size, unit) for size, unit in units if value >= size)
    return f"{value // size:,}{unit}"


def told(key: Key, heard: Heard) -> tuple[str, str]:
    """Return the type and the default of a key, in words."""
    kind, default = heard.calls.get(key.name, ("", ""))
    return key.kind or kind, key.default or default


def render_keys(heard: Heard) -> str:
    """Return the table."""
    rows = [f"| `{key.name}` | {' | '.join(told(key, heard))} | {key.meaning} |" for key in KEYS]
    return "\n".join(["| key | type | default | what it is |", "|---|---|---|---|", *rows]) + "\n"
