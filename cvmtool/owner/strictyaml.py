# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""YAML that people write, read strictly: no tag, no key twice, no number that is not decimal, no key that nobody knows.

Zone: owner. Pure: the text comes in.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from typing import Any

import yaml

from cvmtool.errors import ConfigError
from cvmtool.formats.job import MAX_ARGUMENTS, MAX_MIB, MAX_SECONDS, MAX_TEXT

MAX_YAML = 1 << 20  # characters
_DECIMAL = re.compile("0|-?[1-9][0-9]{0,17}")
_SIZE = re.compile(r"([1-9][0-9]{0,8})(KiB|MiB|GiB|TiB)")
_TIME = re.compile(r"([1-9][0-9]{0,8})(s|m|h|d)")
_SIZE_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key may stand once, a number is decimal and nothing carries a tag of its own."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - yaml's signature
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise ConfigError(f"line {event.start_mark.line + 1}: the tag {event.tag!r} is not allowed; leave it out")
        return super().compose_node(parent, index)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    pairs = [(loader.construct_object(key, deep=True), key) for key, _ in node.value]
    seen: set[object] = set()
    for key, where in pairs:
        if not isinstance(key, str):
            raise ConfigError(f"line {where.start_mark.line + 1}: the key {key!r} is not a string; quote it")
        if key in seen:
            raise ConfigError(f"line {where.start_mark.line + 1}: the key {key!r} stands twice")
        seen.add(key)
    return {loader.construct_object(key): loader.construct_object(value, deep=True) for key, value in node.value}


def _integer(_loader: _Loader, node: yaml.ScalarNode) -> int:
    # YAML reads 010 as 8, 1_0 as 10 and 1:30 as 90.
    if not _DECIMAL.fullmatch(node.value):
        raise ConfigError(
            f"line {node.start_mark.line + 1}: the number {node.value[:40]} is not decimal; write it so, or quote it"
        )
    return int(node.value)


def _string(_loader: _Loader, node: yaml.ScalarNode) -> str:
    if any("\ud800" <= char <= "\udfff" for char in node.value):
        raise ConfigError(f"line {node.start_mark.line + 1}: half a surrogate pair is no character")
    return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor("tag:yaml.org,2002:str", _string)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_yaml(text: str, what: str) -> object:
    """Return the document of at most 1 MiB; `what` names it in refusals.

    Raises:
        ConfigError: too long, not YAML, or what this module's first line names.
    """
    if len(text) > MAX_YAML:
        raise ConfigError(f"{what} has {len(text)} characters; at most {MAX_YAML} are allowed")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise ConfigError(f"{what} is not YAML", detail=str(error)) from error


class Reader:
    """A mapping that knows where it stands, for errors that say so. `page` documents its keys; everything raises ConfigError."""

    def __init__(self, value: object, where: str, *, page: str, prefix: str = "") -> None:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is a {type(value).__name__}; a mapping of keys is required")
        self.value: dict[str, Any] = value
        self.page = page
        self._prefix = prefix

    def name(self, key: str) -> str:
        """Return what refusals call `key`."""
        return self._prefix + key

    def only(self, *known: str) -> None:
        """Refuse a key that is not `known`."""
        for key in self.value:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
                raise ConfigError(f"unknown key {self.name(key)!r}", hint=hint)

    def require(self, key: str) -> object:
        """Return whatever stands at `key`."""
        if key not in self.value:
            raise ConfigError(f"the key {self.name(key)!r} is missing", hint=f"{self.page} shows every key")
        return self.value[key]

    def child(self, key: str, default: dict[str, Any] | None = None) -> Reader:
        """Return the mapping at `key`."""
        value = self.require(key) if default is None else self.value.get(key, default)
        return type(self)(value, self.name(key), page=self.page, prefix=f"{self.name(key)}.")

    def text(
        self, key: str, pattern: re.Pattern[str] | None = None, expected: str = "a string", default: str | None = None
    ) -> str:
        """Return a string that `pattern` matches whole; `expected` says so in words."""
        value = self.require(key) if default is None else self.value.get(key, default)
        if not isinstance(value, str) or (pattern and not pattern.fullmatch(value)):
            raise ConfigError(f"{self.name(key)} is {in_short(value)}; {expected} is required")
        return value

    def number(self, key: str, default: int, least: int, most: int) -> int:
        """Return an integer from `least` to `most`."""
        value = self.value.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ConfigError(f"{self.name(key)} is {in_short(value)}; a number from {least} to {most} is required")
        return value

    def boolean(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self.value.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.name(key)} is {in_short(value)}; true or false is required")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """Return a list of strings; none if the key is missing."""
        value = self.value.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and is_text(item) for item in value):
            raise ConfigError(
                f"{self.name(key)} is {in_short(value)}; a list of strings is required",
                hint='quote numbers: ["--epochs", "3"]',
            )
        if len(value) > MAX_ARGUMENTS:
            raise ConfigError(f"{self.name(key)} has {len(value)} entries; at most {MAX_ARGUMENTS} are allowed")
        return tuple(value)

    def size(self, key: str, most: int, default: str | None = None) -> int:
        """Return a size in bytes, at most `most`."""
        return self._quantity(key, _SIZE, _SIZE_UNITS, "a size such as 64MiB", most=most, default=default)

    def mib(self, key: str, default: str, *, most: int = MAX_MIB) -> int:
        """Return a size in whole MiB, at most `most`."""
        size = self.size(key, most << 20, default)
        if size % (1 << 20):
            raise ConfigError(f"{self.name(key)} is {self.value[key]!r}; whole MiB are required")
        return size >> 20

    def seconds(self, key: str, default: str, *, most: int = MAX_SECONDS) -> int:
        """Return a time in seconds, at most `most`."""
        return self._quantity(key, _TIME, _TIME_UNITS, "a time such as 10m", most=most, default=default)

    def _quantity(
        self,
        key: str,
        pattern: re.Pattern[str],
        units: dict[str, int],
        expected: str,
        *,
        most: int,
        default: str | None,
    ) -> int:
        text = self.text(key, pattern, expected, default)
        match = pattern.fullmatch(text)
        quantity = int(match[1]) * units[match[2]] if match else 0
        if quantity > most:
            unit = "bytes" if units is _SIZE_UNITS else "seconds"
            raise ConfigError(f"{self.name(key)} is {text}; at most {most} {unit} are allowed")
        return quantity


def in_short(value: object) -> str:
    """A value for a message: short, however large an alias has made it."""
    return reprlib.repr(value) if isinstance(value, list | dict) else repr(value)[:200]


def is_text(value: str) -> bool:
    """Whether `value` is no longer than a manifest takes, and without a NUL."""
    return "\0" not in value and len(value) <= MAX_TEXT
