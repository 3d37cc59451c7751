# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Scrub JSON: one document, or one a line.

Zone: data (the owner's machine).
A field is named by the keys that lead to it, with dots between them, and `*` for any place in a list: visits.*.date.
Numbers are JSON's: integers exactly, others as IEEE 754 doubles.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from cvmtool.data.fields import FieldRules, Treatment
from cvmtool.errors import FormatError
from cvmtool.formats.scrubbing import Encoding

MAX_DOCUMENT = 16 << 20  # bytes: it is in memory whole, at some ten times that
_GONE = object()


def scrub_json_lines(source: Iterable[str], rules: FieldRules) -> Iterator[tuple[bytes, int]]:
    """Yield what becomes of each line, with 1 for it; blank lines are left out.

    Raises:
        FormatError: a line is no JSON, a field has no rule, a value cannot be changed as its rule says.
    """
    for number, line in enumerate(source, 1):
        if line.strip():
            try:
                yield scrub_document(line, rules) + b"\n", 1
            except FormatError as error:
                raise FormatError(f"line {number}: {error.message}", hint=error.hint) from None


def read_document(file: BinaryIO, encoding: Encoding) -> str:
    """Return the text of a whole file.

    Raises:
        FormatError: it is longer than 16 MiB, or is no text in this encoding.
    """
    data = file.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise FormatError(f"the document has more than {MAX_DOCUMENT} bytes; required: at most as many, or JSON lines")
    try:
        return data.decode("utf-8-sig" if encoding is Encoding.UTF_8 else encoding)
    except UnicodeError:
        raise FormatError(f"the document is not {encoding}; required: text in it") from None


def scrub_document(text: str, rules: FieldRules) -> bytes:
    """Return what becomes of a JSON document, in UTF-8.

    Raises:
        FormatError: as above; also a key that is there twice, and NaN.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
        if "\\ud" in text.lower():  # an escape can name half a surrogate pair, which no UTF-8 can carry on
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        scrubbed = _scrub(value, "", rules)
        written = json.dumps(None if scrubbed is _GONE else scrubbed, ensure_ascii=False, allow_nan=False)
        return written.encode("utf-8")
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        # Of the decoder's words only those without a piece of the document.
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep, a key twice, or no number or text"
        raise FormatError(f"no JSON: {reason}") from None


def _scrub(value: Any, name: str, rules: FieldRules, inherited: Treatment | None = None) -> Any:  # noqa: ANN401 - JSON
    """Return what becomes of a value, or _GONE. `inherited`: what a rule says of all that is around it."""
    inner = isinstance(value, dict | list)
    named = name in rules.named
    if inner and not named:
        return _scrub_inner(value, name, rules, inherited)
    treatment = inherited if inherited is not None and not named else rules.of(name)
    if treatment.dropped:
        rules.drop(treatment)
        return _GONE
    if inner:
        if treatment.change is not None:
            raise FormatError(f"field {name!r} is an object or a list; required by its rule: a value")
        return _scrub_inner(value, name, rules, treatment)
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    changed = rules.value(treatment, text)
    return value if changed == text else changed


def _scrub_inner(value: Any, name: str, rules: FieldRules, inherited: Treatment | None) -> Any:  # noqa: ANN401 - JSON
    before = f"{name}." if name else ""
    if isinstance(value, list):
        items = (_scrub(item, f"{before}*", rules, inherited) for item in value)
        return [item for item in items if item is not _GONE]
    made: dict[str, Any] = {}
    for key, item in value.items():
        scrubbed = _scrub(item, f"{before}{key}", rules, inherited)
        if scrubbed is not _GONE:
            said = rules.text(rules.whole, key)
            if said in made:
                raise FormatError(
                    f"two keys of {name or 'the document'!r} are {said!r} when redacted; required: drop it"
                )
            made[said] = scrubbed
    return made


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("duplicate key")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
