# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Say less precisely what a value says: a bin for a number, a month or year for a date, the beginning of a code.

Zone: data (the owner's machine). Pure.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import ROUND_FLOOR, Decimal, InvalidOperation

from cvmtool.formats.scrubbing import Bins, Dates, Period

_ISO = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})(?:[T ].{0,40})?")
_MOST_DIGITS = 40


def to_bin(rule: Bins, value: str) -> str:
    """Return the bin of a number, such as 30..40: from 30 to below 40; 90.. is the last one.

    Raises:
        ValueError: it is no number.
    """
    try:
        number = Decimal(value.strip())
    except InvalidOperation:
        raise ValueError("no number") from None
    # Longer ones have an exact bin too, whose digits would say more than the bin does.
    if not number.is_finite() or (number and abs(number.adjusted()) > _MOST_DIGITS):
        raise ValueError("no number of at most 40 digits")
    if rule.top is not None and number >= rule.top:
        return f"{_plain(rule.top)}.."
    low = (number / rule.width).to_integral_value(ROUND_FLOOR) * rule.width
    return f"{_plain(low)}..{_plain(low + rule.width)}"


def to_period(rule: Dates, value: str) -> str:
    """Return the month (2026-01) or year of a date.

    Raises:
        ValueError: it is none, as the rule says that dates are written.
    """
    text = value.strip()
    if rule.written is None:
        found = _ISO.fullmatch(text)
        if not found:
            raise ValueError("no date such as 2026-01-31")
        when = date(*map(int, found.groups()))
    else:
        when = datetime.strptime(text, rule.written).replace(tzinfo=UTC).date()
    return f"{when.year:04}" if rule.to is Period.YEAR else f"{when.year:04}-{when.month:02}"


def _plain(number: Decimal) -> str:
    return f"{number.normalize() + 0:f}"
