# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What identifies a person, found in text: named patterns with their check digits, and a pipeline's own.

Zone: data (the owner's machine). Pure.

The named ones are Python's expressions without an unbounded repetition, so each is linear in the text. A pipeline's own run in
RE2, which is linear whatever they say; Python's engine would let an expression hang a run. Text is compared in a plain
form: full-width and other digits and letters as ASCII's, any dash as "-", any space as " ", invisible characters left out.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from cvmtool.errors import ConfigError, FormatError

MAX_ROUNDS = 8
_FOREIGN = re.compile(r"[^\x00-\x7f\u00c0-\u024f]")  # all but ASCII and the letters of Latin scripts

Span = tuple[int, int]


class Finder(Protocol):
    """Finds something in text."""

    @property
    def name(self) -> str:
        """What it finds; stands in its place afterwards."""
        ...

    def spans(self, text: str) -> Iterator[Span]:
        """Yield where it stands, front to back, none over another."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """An expression, and a check of what it found: the longest part of a match that passes and ends at a border counts."""

    name: str
    expression: re.Pattern[str]
    check: Callable[[str], bool] | None = None
    least: int = 0
    """Characters that pass at least."""
    border: re.Pattern[str] = re.compile(r"(?![0-9A-Za-z])")
    needs: str = ""
    """What text must hold to be searched at all."""

    def spans(self, text: str) -> Iterator[Span]:
        """Yield where it stands."""
        if self.needs not in text:
            return
        at = 0
        while found := self.expression.search(text, at):
            end = found.end() if self.check is None else self._end(text, found.start(), found.end())
            if end is None:
                at = found.start() + 1
            else:
                yield found.start(), end
                at = end

    def _end(self, text: str, start: int, end: int) -> int | None:
        for stop in range(end, start + self.least - 1, -1):
            if self.border.match(text, stop) and self.check is not None and self.check(text[start:stop]):
                return stop
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A pipeline's own expression, in RE2."""

    name: str
    search: Callable[[str], Iterator[Span]]

    def spans(self, text: str) -> Iterator[Span]:
        """Yield where it stands."""
        return self.search(text)


def _digits(text: str) -> list[int]:
    return [int(char) for char in text if char.isdigit()]


def _luhn(text: str) -> bool:
    """ISO/IEC 7812-1 annex B."""
    digits = _digits(text)[::-1]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[0::2]) + sum(doubled)) % 10 == 0


def _iban(text: str) -> bool:
    """ISO 7064 MOD 97-10, as ISO 13616-1 uses it."""
    plain = "".join(char for char in text if char.isalnum()).upper()
    return int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1


def _steuer_id(text: str) -> bool:
    """ISO 7064 MOD 11,10 over the eleven digits of an identification number (139b AO)."""
    *digits, last = _digits(text)
    product = 10
    for digit in digits:
        product = ((digit + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == last


def _insurance_number(text: str) -> bool:
    """The check digit of a pension insurance number (VKVV 2): weighed digits, the letter as its place in the alphabet."""
    plain = "".join(char for char in text if char.isalnum()).upper()
    digits = _digits(f"{plain[:8]}{ord(plain[8]) - 64:02}{plain[9:11]}")
    weighed = (digit * weight for digit, weight in zip(digits, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1), strict=True))
    return sum(sum(divmod(value, 10)) for value in weighed) % 10 == int(plain[11])


def _ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_NO_DIGIT = re.compile(r"(?![0-9])")

NAMED: Mapping[str, Named] = {
    pattern.name: pattern
    for pattern in (
        Named(
            name="email",
            expression=re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,63}"),
            needs="@",
        ),
        Named(
            name="phone",
            expression=re.compile(
                r"(?<![0-9A-Za-z+])(?:(?:\+|00)[1-9](?:[ ()./-]{0,3}[0-9]){6,14}"
                r"|01[5-7][0-9]{8,9}"
                r"|\(?0[1-9][0-9]{1,4}[ )/-]{1,3}[0-9](?:[ -]?[0-9]){3,9}"
                r"|(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[-. ])[2-9][0-9]{2}[-. ][0-9]{4})(?![0-9])"
            ),
        ),
        Named(
            name="iban",
            expression=re.compile(r"(?<![0-9A-Za-z])[A-Za-z]{2}[0-9]{2}(?:[ -]?[0-9A-Za-z]){11,30}"),
            check=_iban,
            least=15,
        ),
        Named(
            name="card",
            expression=re.compile(r"(?<![0-9])[2-6](?:[ -]?[0-9]){12,18}"),
            check=_luhn,
            least=13,
            border=_NO_DIGIT,
        ),
        Named(name="ipv4", expression=re.compile(rf"(?<![0-9])(?:{_OCTET}\.){{3}}{_OCTET}(?![0-9])")),
        Named(
            name="ipv6",
            expression=re.compile(r"(?<![0-9A-Za-z:.])[0-9A-Fa-f:.]{3,45}"),
            check=_ipv6,
            least=3,
            border=re.compile(r"(?![0-9A-Za-z:])"),
            needs=":",
        ),
        Named(
            name="us-ssn",
            expression=re.compile(r"(?<![0-9])(?!000|666|9)[0-9]{3}[- ](?!00)[0-9]{2}[- ](?!0000)[0-9]{4}(?![0-9])"),
        ),
        Named(
            name="de-steuer-id",
            expression=re.compile(r"(?<![0-9])[1-9](?: ?[0-9]){10}"),
            check=_steuer_id,
            least=11,
            border=_NO_DIGIT,
        ),
        Named(
            name="de-insurance-number",
            expression=re.compile(r"(?<![0-9A-Za-z])[0-9]{2} ?[0-9]{6} ?[A-Za-z] ?[0-9]{2} ?[0-9]"),
            check=_insurance_number,
            least=12,
        ),
        Named(
            name="date",
            expression=re.compile(
                r"(?<![0-9])(?:[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}|[0-9]{1,2}[-./][0-9]{1,2}[-./](?:[0-9]{4}|[0-9]{2}))(?![0-9])"
            ),
        ),
        Named(
            name="url",
            expression=re.compile(r"(?<![A-Za-z])[A-Za-z]{1,16}://[^\s<>\"]{0,2047}[^\s<>\".,;:!?)\]]"),
            needs="://",
        ),
    )
}
"""The patterns that a pipeline need not state."""


def own_pattern(name: str, expression: str) -> Own:
    """Compile a pipeline's own expression.

    Raises:
        ConfigError: it is none, finds nothing at all, or RE2 is not installed.
    """
    try:
        import re2  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigError(
            f"pattern {name!r} needs RE2, which is not installed", hint="pip install 'cvmtool[scrub]'"
        ) from None
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(expression, options)
    except re2.error as error:
        raise ConfigError(f"pattern {name!r} is no expression of RE2: {error}") from None
    if compiled.search(""):
        raise ConfigError(f"pattern {name!r} finds the empty text; required: at least one character")
    return Own(name=name, search=lambda text: (found.span() for found in compiled.finditer(text) if found.group()))


class Redactor:
    """Replaces what its patterns find by their names in brackets, until none finds anything."""

    def __init__(self, patterns: Sequence[Finder], first: Sequence[Finder] = ()) -> None:
        """Take patterns that are asked until nothing is left, and finders that are asked once, of text as it came.

        Raises:
            ConfigError: a pattern finds something in what stands for another's finds, and would never come to an end.
        """
        self.patterns = (*first, *patterns)
        self._patterns = tuple(patterns)
        for pattern in patterns:
            for other in self.patterns:
                mark = f"[{other.name}]"
                if any(pattern.spans(mark)):
                    raise ConfigError(f"pattern {pattern.name!r} finds something in {mark}, which stands for a find")

    def __call__(self, text: str, counts: Counter[str]) -> str:
        """Return the text without what was found; `counts` is told how often, by pattern.

        Raises:
            FormatError: something is found again and again.
        """
        finders = self.patterns
        for _ in range(MAX_ROUNDS):
            redacted = _replace(finders, text, counts)
            if redacted == text:
                return text
            text, finders = redacted, self._patterns
        raise FormatError(f"what is redacted makes new finds, {MAX_ROUNDS} times over; required: that this ends")

    def found(self, text: str) -> str | None:
        """Return the name of a pattern that finds something, or None."""
        return next(
            (pattern.name for view in _views(text) for pattern in self._patterns if any(pattern.spans(view.text))), None
        )


def _replace(finders: Sequence[Finder], text: str, counts: Counter[str]) -> str:
    """Replace all finds at once. Finds that overlap are one: the half of an IBAN that is no telephone number goes with it."""
    found = sorted(
        (view.begin(first), view.end(last), finder.name)
        for view in _views(text)
        for finder in finders
        for first, last in finder.spans(view.text)
    )
    pieces, at, next_one = [], 0, 0
    while next_one < len(found):
        start, end, name = found[next_one]
        longest = end - start
        next_one += 1
        while next_one < len(found) and found[next_one][0] < end:
            first, last, other = found[next_one]
            end = max(end, last)
            longest, name = max((longest, name), (last - first, other))
            next_one += 1
        pieces += [text[at:start], f"[{name}]"]
        counts[name] += 1
        at = end
    return "".join((*pieces, text[at:])) if at else text


@dataclass(frozen=True, slots=True)
class _View:
    """Text in a plain form; `positions`: where each of its characters comes from, None if from the same place."""

    text: str
    positions: Sequence[int] | None = None

    def begin(self, first: int) -> int:
        return first if self.positions is None else self.positions[first]

    def end(self, last: int) -> int:
        return last if self.positions is None else self.positions[last - 1] + 1


def _views(text: str) -> tuple[_View, ...]:
    """Return text in its plain forms, more than one if it has characters that may cut a number as well as be nothing or a digit.

    Those are invisible ones, and numbers that are no decimal digits: the mark of a footnote behind a card's number.
    """
    if not _FOREIGN.search(text):
        return (_View(text),)
    plain = [_plain_character(character) for character in text]
    cut = [
        "\0" if unicodedata.category(character) == "No" else form for character, form in zip(text, plain, strict=True)
    ]
    views: list[_View] = []
    for forms in (plain,) if cut == plain else (plain, cut):
        for invisible in ("", "\0"):
            view = _view(forms, invisible)
            if view not in views:
                views.append(view)
    return tuple(views)


def _view(plain: Sequence[str], invisible: str) -> _View:
    characters, positions = [], []
    for position, forms in enumerate(plain):
        for character in forms or invisible:
            characters.append(character)
            positions.append(position)
    return _View("".join(characters), positions)


@lru_cache(1 << 16)
def _plain_character(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Cf", "Mn", "Me"):
        return ""
    if category == "Pd":
        return "-"
    if category == "Zs":
        return " "
    if category == "Nd":
        return str(unicodedata.decimal(character))
    return unicodedata.normalize("NFKC", character)
