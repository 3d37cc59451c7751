# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What identifies a person is found, what only looks so is not, and nothing that a pattern finds is left."""

import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmtool.data.patterns import NAMED, Redactor, own_pattern
from cvmtool.errors import ConfigError, FormatError


def wide(text):
    """Full-width forms, as East Asian input methods write them."""
    return "".join(chr(ord(char) + 0xFEE0) for char in text)


FOUND = {
    "email": ["a@b.de", "anna.miller+x@mail.example.org", "anna@müller.example", wide("anna@example.org"),
              "an\u200bna@ex\u00adample.org"],
    "phone": ["+49 170 1234567", "0049-170-1234567", "01701234567", "030/1234567", "(030) 1234-567", "+1 (212) 555-0100",
              "212-555-0100", "(212) 555-0100", wide("+49") + " 170 1234567", "+49\u00a0170\u20111234567"],
    "iban": ["DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "gb82 west 1234 5698 7654 32", "FR1420041010050500013M02606"],
    "card": ["4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "340000000000009", "x4111111111111111y"],
    "ipv4": ["192.168.0.1", "255.255.255.255", "v10.0.0.1"],
    "ipv6": ["2001:db8::1", "::1", "fe80::1:2:3:4", "::ffff:10.0.0.1", "2001:0db8:0000:0000:0000:0000:0000:0001"],
    "us-ssn": ["078-05-1120", "219 09 9999"],
    "de-steuer-id": ["86095742719", "86 095 742 719"],
    "de-insurance-number": ["15070649C103", "15 070649 C 10 3", "15070649c103"],
    "date": ["2024-05-06", "6.5.2024", "06/05/24", "2024/5/6"],
    "url": ["https://example.org/x?y=1", "ftp://a"],
}  # fmt: skip
NOT_FOUND = {
    "email": ["a@b", "@example.org", "a at b.de"],
    "phone": ["12345", "1.2.3.4", "2024-05-06"],
    "iban": ["DE88370400440532013000", "DE89", "XDE89370400440532013000"],
    "card": ["4111111111111112", "41111111111111111111111", "411111111111"],
    "ipv4": ["256.1.1.1", "1.2.3", "1.2.3.4567"],
    "ipv6": ["12:30:45", "std::vector", "a:b", "::"],
    "us-ssn": ["000-12-3456", "666-12-3456", "900-12-3456", "078-00-1120", "078051120"],
    "de-steuer-id": ["86095742718", "06095742719"],
    "de-insurance-number": ["15070649C104"],
    "date": ["1.2", "12345-01-01"],
    "url": ["example.org", "://x"],
}


def redact(text, *names):
    return Redactor([NAMED[name] for name in names or NAMED])(text, Counter())


def test_every_pattern_has_samples():
    assert FOUND.keys() == NOT_FOUND.keys() == NAMED.keys()


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in FOUND.items() for text in texts])
def test_found(name, text):
    redacted = redact(f"before, {text}, behind", name)
    assert f"[{name}]" in redacted
    assert text not in redacted
    assert redacted.startswith("before, ")
    assert redacted.endswith(", behind")


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in NOT_FOUND.items() for text in texts])
def test_not_found(name, text):
    assert redact(f"before {text} behind", name) == f"before {text} behind"


def test_finds_that_overlap_are_one():
    assert redact("IBAN DE89 3704 0044 0532 0130 00.", "phone", "iban") == "IBAN [iban]."
    assert redact("IBAN DE89 3704 0044 0532 0130 00.", "iban", "phone") == "IBAN [iban]."


def test_what_a_find_uncovers_is_found():
    """The number has a border only when the address before it is gone."""
    assert redact("a@example.org4111111111111111", "card", "email") == "[email][card]"


def test_finds_are_counted():
    counts = Counter()
    Redactor([NAMED["email"], NAMED["ipv4"]])("a@b.de c@d.de 10.0.0.1", counts)
    assert counts == {"email": 2, "ipv4": 1}


# An independent scanner: written from what the patterns mean, without an expression of theirs.


def luhn(digits):
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def holds_card(text):
    runs = re.split(r"[^0-9 -]|[ -][ -]", text)
    for run in runs:
        groups = [group for group in re.split(r"[ -]", run) if group]
        for first in range(len(groups)):
            for last in range(first + 1, len(groups) + 1):
                digits = "".join(groups[first:last])
                if 13 <= len(digits) <= 19 and digits[0] in "23456" and luhn(digits):
                    return True
    return False


def holds_ipv4(text):
    for run in re.split(r"[^0-9.]", text):
        parts = run.split(".")
        for at in range(len(parts) - 3):
            if all(part.isdigit() and str(int(part)) == part and int(part) < 256 for part in parts[at : at + 4]):
                return True
    return False


def holds_email(text):
    for at, char in enumerate(text):
        domain = re.split(r"[^A-Za-z0-9.-]", text[at + 1 :])[0]
        labels = domain.split(".")
        if char == "@" and at and text[at - 1] in string.ascii_letters + string.digits and len(labels) > 1:
            end = re.match("[A-Za-z]*", labels[1])[0]
            if labels[0] and len(end) >= 2:
                return True
    return False


PIECES = st.one_of(
    st.sampled_from([text for name in ("card", "ipv4", "email", "iban", "phone") for text in FOUND[name]]),
    st.text("0123456789 -.@adeDE", max_size=12),
    st.sampled_from(["[", "]", "[card]", " ", "-", "4", "\u200b", "\u00a0", "ü"]),
)


def test_an_invisible_character_cuts_and_joins():
    assert redact("4111111111111111\u200b4111111111111111", "card") == "[card]\u200b[card]"
    assert redact("41111111\u200b11111111", "card") == "[card]"


@pytest.mark.parametrize("mark", ["\u00b2", "\u2461", "\u00bd", "\u2075"])
def test_the_mark_of_a_footnote_hides_no_number(mark):
    """It reads as a digit, and is none of the number's; or it is."""
    assert redact(f"4111 1111 1111 1111{mark}", "card") == f"[card]{mark}"
    assert redact(f"{mark}4111\u200b1111 1111 1111{mark}", "card") == f"{mark}[card]{mark}"


def test_a_number_in_raised_digits_is_one():
    assert redact("4111 1111 1111 111\u00b9", "card") == "[card]"


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=6).map("".join))
def test_nothing_that_was_to_go_is_left(text):
    redacted = redact(text, "card", "ipv4", "email")
    assert not holds_card(redacted)
    assert not holds_ipv4(redacted)
    assert not holds_email(redacted)
    assert redact(redacted, "card", "ipv4", "email") == redacted


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_any_text_comes_to_an_end(text):
    try:
        redacted = redact(text)
    except FormatError:
        return
    assert Redactor(list(NAMED.values())).found(redacted) is None


def test_the_scanner_finds_what_is_there():
    assert all(holds_card(text) for text in FOUND["card"])
    assert all(holds_ipv4(text) for text in FOUND["ipv4"])
    assert holds_email(FOUND["email"][0])


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("text", ["1", "a", "a.", "1 ", "a@", ":", "0:", "+1", "DE", "DE89", "4 ", "x://"])
def test_a_hostile_line_costs_no_more_than_its_length(name, text):
    """Steps, not seconds: twice the text is searched from at most twice as many places."""

    class Counting:
        def __init__(self, expression):
            self.expression, self.calls = expression, 0

        def search(self, *arguments):
            self.calls += 1
            return self.expression.search(*arguments)

    calls = []
    for size in (2000, 4000):
        pattern = NAMED[name]
        counting = Counting(pattern.expression)
        copy = type(pattern)(
            name=name,
            expression=counting,
            check=pattern.check,
            least=pattern.least,
            border=pattern.border,
            needs=pattern.needs,
        )
        list(copy.spans(text * (size // len(text))))
        calls.append(counting.calls)
    assert calls[1] <= 2.1 * calls[0] + 2


def test_no_pattern_repeats_without_a_bound():
    for pattern in NAMED.values():
        bare = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "x", pattern.expression.pattern)
        assert not re.search(r"(?<!\()[*+](?!\))", bare), pattern.name
        assert ",}" not in bare


def test_a_pattern_of_ones_own():
    found = Redactor([own_pattern("case", "C-[0-9]{3,}")])
    counts = Counter()
    assert found("C-1234, C-12 ü C-777", counts) == "[case], C-12 ü [case]"
    assert counts == {"case": 2}


def test_an_expression_that_would_hang_pythons_engine():
    found = Redactor([own_pattern("trap", "(a+)+$")])
    assert found("a" * 50_000 + "!", Counter()) == "a" * 50_000 + "!"


@pytest.mark.parametrize("expression", ["(", r"(a)\1", "(?=a)", "a*", "", "x|"])
def test_what_is_no_expression(expression):
    with pytest.raises(ConfigError, match="bad"):
        own_pattern("bad", expression)


def test_a_pattern_that_finds_what_stands_for_finds():
    with pytest.raises(ConfigError, match="word"):
        Redactor([own_pattern("word", "[a-z]+")])


def test_a_pattern_without_end():
    with pytest.raises(FormatError, match="makes new finds"):
        Redactor([own_pattern("tail", r"\].")])("".join("].." for _ in range(40)), Counter())
