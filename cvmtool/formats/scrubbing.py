# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A scrubbing pipeline: what happens to each field of each file before it is sealed. And the count of what it changed.

Zone: shared. Pure: no I/O. `cvmtool.owner.scrubfile` reads one, `cvmtool.data.scrub` carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from cvmtool.formats.packheader import RuleCount
from cvmtool.formats.wire import JsonObject

SCRUB_SCHEMA = "cvmtool/scrub/v1"


class FileFormat(StrEnum):
    """How a file is read; the last two are not read at all."""

    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    JSON = "json"
    TEXT = "text"
    KEEP = "keep"
    DROP = "drop"

    @property
    def has_fields(self) -> bool:
        """Whether rules can name fields of it."""
        return self in (FileFormat.CSV, FileFormat.TSV, FileFormat.JSONL, FileFormat.JSON)


class Encoding(StrEnum):
    """How text is encoded. What is written is UTF-8, always."""

    UTF_8 = "utf-8"
    UTF_16 = "utf-16"
    LATIN_1 = "latin-1"
    WINDOWS_1252 = "windows-1252"


class Others(StrEnum):
    """What becomes of fields that no rule names."""

    KEEP = "keep"
    DROP = "drop"
    REFUSE = "refuse"


class Unreadable(StrEnum):
    """What becomes of a value that is no number or date where one is required."""

    EMPTY = "empty"
    REFUSE = "refuse"


class Period(StrEnum):
    """To what a date is cut."""

    MONTH = "month"
    YEAR = "year"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Leave a field, but for what `Redact` finds in it."""

    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Take a field out."""

    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hash:
    """Replace a value by a keyed hash: the same value under the same key and identity is the same hash, in any run."""

    fields: tuple[str, ...]
    identity: str
    digits: int
    """Hex digits that are left of 64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenise:
    """Replace a value by a short pseudonym, such as patient-000123: the same within one run."""

    fields: tuple[str, ...]
    identity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """Replace a number by the bin that it is in: from a multiple of `width` to below the next one."""

    fields: tuple[str, ...]
    width: Decimal
    top: Decimal | None
    """From here on there is one bin."""
    unreadable: Unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Dates:
    """Cut a date to its month or year."""

    fields: tuple[str, ...]
    to: Period
    written: str | None
    """As in strptime; None for ISO 8601."""
    unreadable: Unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Keep the first characters of a code."""

    fields: tuple[str, ...]
    characters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recogniser:
    """Presidio's analyser: its language, the spaCy model that is installed, and what it looks for."""

    language: str
    model: str
    entities: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redact:
    """Replace what a pattern finds in text by the pattern's name."""

    fields: tuple[str, ...]
    """None named: all that are kept."""
    patterns: tuple[str, ...]
    recogniser: Recogniser | None


Rule = Keep | Drop | Hash | Tokenise | Bins | Dates | Prefix | Redact


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRules:
    """What happens to the files whose path matches."""

    match: str
    """As in fnmatch, over the path from the source on; `*` crosses `/`."""
    format: FileFormat
    encoding: Encoding
    others: Others
    columns: tuple[str, ...]
    """Of a table without a line of names; else empty."""
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What happens to a source. The first entry of `files` that matches a path counts; a path without one is refused."""

    digest: str
    """`sha256:` and 64 hex digits, of the pipeline's file."""
    key: str
    """Names the key of hashes and tokens: what is to be joined later is scrubbed under one name."""
    expressions: dict[str, str]
    """The pipeline's own patterns by name: RE2's syntax."""
    files: tuple[FileRules, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """What became of one file."""

    path: str
    match: str
    format: FileFormat
    records: int
    """Rows, lines or documents; 0 for what was not read."""
    counts: tuple[RuleCount, ...]

    def to_json(self) -> JsonObject:
        """Return the report of the file."""
        return {
            "path": self.path,
            "match": self.match,
            "format": self.format.value,
            "records": self.records,
            "counts": [count.to_json() for count in self.counts],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a pipeline changed: counts, never a value."""

    digest: str
    """Of the content that came out, as a pack's header has it."""
    files: tuple[FileReport, ...]
    counts: tuple[RuleCount, ...]
    """By rule, over all files; rules that changed nothing are there with 0."""
