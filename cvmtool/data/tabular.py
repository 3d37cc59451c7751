# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Scrub a table, row by row: RFC 4180, commas or tabs.

Zone: data (the owner's machine).
What comes out is quoted where it must be and ends its rows with LF, whatever the source did; blank lines are left out.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from cvmtool.data.fields import FieldRules, Treatment
from cvmtool.errors import CvmError, FormatError

_PIECE = 1 << 16  # characters that are written at once


def scrub_table(source: Iterable[str], rules: FieldRules, *, delimiter: str) -> Iterator[tuple[bytes, int]]:
    """Yield what becomes of a table, piece by piece, each with the number of rows in it.

    Raises:
        FormatError: a row is malformed or has another number of cells, a column has no rule or is there twice, a rule's
            column is missing, a value cannot be changed as its rule says. It names the line, never a value.
    """
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    written = io.StringIO()
    plain = csv.writer(written, delimiter=delimiter, lineterminator="\n")
    # A writer quotes what its own line ends are made of, and a reader ends a row at a CR as well.
    quoted = csv.writer(written, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    columns = _columns(rules.entry.columns, rules) if rules.entry.columns else None
    rows = 0
    try:
        for row in reader:
            if not row:
                continue
            if columns is None:
                columns = _columns(row, rules)
                kept = [name for name, column in zip(row, columns, strict=True) if not column.dropped]
                (quoted if _has_cr(kept) else plain).writerow(kept)
                continue
            if len(row) != len(columns):
                raise FormatError(f"the row has {len(row)} cells; required: {len(columns)}")
            kept = _row(row, columns, rules)
            (quoted if _has_cr(kept) else plain).writerow(kept)
            rows += 1
            if written.tell() >= _PIECE:
                yield _taken(written), rows
                rows = 0
    except (CvmError, csv.Error) as error:
        known = error if isinstance(error, CvmError) else FormatError(f"no row of a table: {error}")
        raise FormatError(f"line {reader.line_num}: {known.message}", hint=known.hint) from None
    yield _taken(written), rows


def _columns(names: Sequence[str], rules: FieldRules) -> list[Treatment]:
    """Return what happens to the columns, in their order."""
    if len(set(names)) != len(names):
        raise FormatError("two columns have one name; required: a name for each")
    if missing := sorted(rules.named - set(names)):
        raise FormatError(
            f"there is no column {missing[0]!r}; required: each that a rule names",
            hint="a table without a line of names needs columns = [...]",
        )
    if rules.whole is not None and (found := next(filter(None, map(rules.whole.found, names)), None)):
        raise FormatError(
            f"the name of a column holds what pattern {found!r} finds; required: names that tell nothing",
            hint="a table without a line of names needs columns = [...]",
        )
    return [rules.of(name) for name in names]


def _row(row: Sequence[str], columns: Sequence[Treatment], rules: FieldRules) -> list[str]:
    kept = []
    for treatment, value in zip(columns, row, strict=True):
        if treatment.dropped:
            rules.drop(treatment)
        else:
            kept.append(rules.value(treatment, value))
    return kept


def _has_cr(row: Sequence[str]) -> bool:
    return any("\r" in value for value in row)


def _taken(written: io.StringIO) -> bytes:
    piece = written.getvalue().encode("utf-8")
    written.seek(0)
    written.truncate()
    return piece
