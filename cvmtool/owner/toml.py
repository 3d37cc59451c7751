# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Read a TOML table strictly: every key is taken once, by type, and none may be left.

Zone: owner (trusted). Pure: no I/O.

A misspelt key in a policy would silently drop a check. So a key that nobody asked for is an error, with the nearest
name that somebody did ask for.
"""

from __future__ import annotations

import datetime as dt
import difflib
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from cvmtool.errors import ConfigError

MAX_BYTES = 1 << 20

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


class Table:
    """A table whose keys are taken one by one; `where` names it in refusals."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._values = dict(values)
        self._known: set[str] = set()
        self.where = where

    def has(self, key: str) -> bool:
        """Whether `key` is stated (it counts as known from now on)."""
        self._known.add(key)
        return key in self._values

    def text(self, key: str) -> str:
        """Return a string. Each of these raises ConfigError when the key is missing or holds something else."""
        return self._take(key, str, "text")

    def integer(self, key: str, least: int, most: int) -> int:
        """Return an integer from `least` to `most`."""
        value = self._take(key, int, "an integer")
        if isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(key, value, f"an integer from {least} to {most}")
        return value

    def boolean(self, key: str) -> bool:
        """Return true or false."""
        return self._take(key, bool, "true or false")

    def date(self, key: str) -> dt.date:
        """Return a date without a time."""
        value = self._take(key, dt.date, "a date")
        if isinstance(value, dt.datetime):
            raise self.wrong(key, value, "a date without a time")
        return value

    def moment(self, key: str) -> dt.datetime:
        """Return a time with its zone."""
        value = self._take(key, dt.datetime, "a time with its zone")
        if value.tzinfo is None:
            raise self.wrong(key, value, "a time with its zone, such as 2026-01-31T12:00:00Z")
        return value

    def choice(self, key: str, kind: type[E]) -> E:
        """Return a member of `kind` by its value."""
        return self._member(key, self.text(key), kind)

    def choices(self, key: str, kind: type[E]) -> tuple[E, ...]:
        """Return members of `kind`, at least one, none twice."""
        return self._distinct(key, tuple(self._member(key, text, kind) for text in self.texts(key)))

    def texts(self, key: str) -> tuple[str, ...]:
        """Return strings, at least one, none twice."""
        values = self._take(key, list, "a list of text")
        texts = tuple(value for value in values if isinstance(value, str))
        if not values or len(texts) != len(values):
            raise self.wrong(key, values, "a list of text with one entry or more")
        return self._distinct(key, texts)

    def integers(self, key: str, least: int, most: int) -> tuple[int, ...]:
        """Return integers from `least` to `most`, at least one, none twice."""
        values = self._take(key, list, "a list of integers")
        numbers = tuple(v for v in values if isinstance(v, int) and not isinstance(v, bool) and least <= v <= most)
        if not values or len(numbers) != len(values):
            raise self.wrong(key, values, f"a list of integers from {least} to {most}, one or more")
        return self._distinct(key, numbers)

    def hexes(self, key: str, *sizes: int) -> tuple[bytes, ...]:
        """Return byte strings of one of `sizes`, at least one, none twice."""
        return self._distinct(key, tuple(self._hex(key, text, sizes) for text in self.texts(key)))

    def hex(self, key: str, size: int) -> bytes:
        """Return a byte string of `size` bytes."""
        return self._hex(key, self.text(key), (size,))

    def table(self, key: str) -> Table:
        """Return a table below this one."""
        return Table(self._take(key, dict, "a table"), f"{self.where}.{key}")

    def tables(self, key: str) -> tuple[Table, ...]:
        """Return an array of tables, at least one."""
        values = self._take(key, list, "an array of tables")
        rows = tuple(
            Table(value, f"{self.where}.{key}[{n}]") for n, value in enumerate(values) if isinstance(value, dict)
        )
        if not values or len(rows) != len(values):
            raise self.wrong(key, values, "an array of tables, one or more")
        return rows

    def finish(self) -> None:
        """Refuse keys that nobody took.

        Raises:
            ConfigError: there is one; the hint names the nearest that is known.
        """
        for key in self._values:
            if key not in self._known:
                near = difflib.get_close_matches(key, sorted(self._known), 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(self._known))}"
                raise ConfigError(f"{self.where} has the unknown key {key!r}; required: a known one", hint=hint)

    def wrong(self, key: str, value: object, required: str) -> ConfigError:
        """Return the error that says what `key` holds and what it must hold."""
        try:
            shown = str(value)[:80]
        except ValueError:  # Python writes no integer of more than 4300 digits, and hex may say one
            shown = "a very long number"
        return ConfigError(f"{self.where}.{key} is {shown!r}; required: {required}")

    def _take(self, key: str, kind: type[T], required: str) -> T:
        self._known.add(key)
        if key not in self._values:
            near = difflib.get_close_matches(key, [name for name in self._values if name not in self._known], 1)
            hint = f"is {near[0]!r} a misspelling of it?" if near else None
            raise ConfigError(f"{self.where} lacks the key {key!r}; required: {required}", hint=hint)
        value = self._values[key]
        if not isinstance(value, kind):
            raise self.wrong(key, value, required)
        return value

    def _member(self, key: str, text: str, kind: type[E]) -> E:
        try:
            return kind(text)
        except ValueError:
            near = difflib.get_close_matches(text, [member.value for member in kind], 1)
            hint = f"did you mean {near[0]!r}?" if near else None
            required = ", ".join(member.value for member in kind)
            raise ConfigError(f"{self.where}.{key} is {text[:80]!r}; required: one of {required}", hint=hint) from None

    def _distinct(self, key: str, values: tuple[T, ...]) -> tuple[T, ...]:
        if len(set(values)) != len(values):
            raise ConfigError(f"{self.where}.{key} holds a value twice; required: each once")
        return values

    def _hex(self, key: str, text: str, sizes: tuple[int, ...]) -> bytes:
        required = f"{' or '.join(str(2 * size) for size in sizes)} hex digits"
        if len(text) not in {2 * size for size in sizes} or not set(text) <= set("0123456789abcdef"):
            raise self.wrong(key, text, required + " in lower case")
        return bytes.fromhex(text)


def load_table(text: str, what: str) -> Table:
    """Parse TOML text of at most 1 MiB; `what` names the document in refusals.

    Raises:
        ConfigError: too long, not TOML, or nothing in it.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{what} has {len(text)} characters; required: at most {MAX_BYTES}")
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError alone: an integer of thousands of digits
        raise ConfigError(f"{what} is not toml: {error}") from None
    if not values:
        raise ConfigError(f"{what} is empty; an empty {what} would accept everything")
    return Table(values, what)
