# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError
from cvmtool.formats.scrubbing import (
    Bins,
    Dates,
    Drop,
    Encoding,
    FileFormat,
    Hash,
    Keep,
    Others,
    Period,
    Prefix,
    Recogniser,
    Redact,
    Tokenise,
    Unreadable,
)
from cvmtool.owner.scrubfile import parse_pipeline

TEXT = """\
schema = "cvmtool/scrub/v1"
key = "study 17"

[[patterns]]
name = "case"
regex = 'C-[0-9]+'

[[files]]
match = "*.csv"
format = "csv"
encoding = "latin-1"
others = "refuse"
columns = ["id", "name", "born", "zip", "age", "note", "plain"]

[[files.rules]]
action = "hash"
fields = ["id"]
as = "patient"
digits = 16

[[files.rules]]
action = "drop"
fields = ["name"]

[[files.rules]]
action = "generalise"
fields = ["born"]
to = "month"
written = "%d.%m.%Y"
unreadable = "empty"

[[files.rules]]
action = "generalise"
fields = ["zip"]
to = "prefix"
characters = 3

[[files.rules]]
action = "generalise"
fields = ["age"]
to = "bins"
width = "10"
top = "90"

[[files.rules]]
action = "redact"
fields = ["note"]
patterns = ["email", "case"]

[[files.rules]]
action = "keep"
fields = ["plain"]

[[files]]
match = "*.txt"
format = "text"

[[files.rules]]
action = "redact"
presidio = { language = "en", model = "en_core_web_lg", entities = ["PERSON"] }

[[files]]
match = "*.jsonl"
format = "jsonl"
others = "keep"

[[files.rules]]
action = "tokenise"
fields = ["id"]
as = "patient"

[[files]]
match = "*"
format = "drop"
"""


def test_every_rule():
    pipeline = parse_pipeline(TEXT)
    assert pipeline.digest == "sha256:" + hashlib.sha256(TEXT.encode()).hexdigest()
    assert (pipeline.key, pipeline.expressions) == ("study 17", {"case": "C-[0-9]+"})
    table, prose, lines, rest = pipeline.files
    assert (table.match, table.format, table.encoding, table.others) == (
        "*.csv",
        FileFormat.CSV,
        Encoding.LATIN_1,
        Others.REFUSE,
    )
    assert table.rules == (
        Hash(fields=("id",), identity="patient", digits=16),
        Drop(fields=("name",)),
        Dates(fields=("born",), to=Period.MONTH, written="%d.%m.%Y", unreadable=Unreadable.EMPTY),
        Prefix(fields=("zip",), characters=3),
        Bins(fields=("age",), width=Decimal(10), top=Decimal(90), unreadable=Unreadable.REFUSE),
        Redact(fields=("note",), patterns=("email", "case"), recogniser=None),
        Keep(fields=("plain",)),
    )
    recogniser = Recogniser(language="en", model="en_core_web_lg", entities=("PERSON",))
    assert prose.rules == (Redact(fields=(), patterns=(), recogniser=recogniser),)
    assert lines.rules == (Tokenise(fields=("id",), identity="patient"),)
    assert (rest.format, rest.rules) == (FileFormat.DROP, ())


CHANGES = {
    "schema": ('"cvmtool/scrub/v1"', '"cvmtool/scrub/v2"', "schema"),
    "a key that cannot be printed": ("study 17", "study\\u200717", "key"),
    "no key": ('key = "study 17"', "", "key"),
    "another action": ('action = "drop"', 'action = "remove"', "action"),
    "another format": ('format = "text"', 'format = "xml"', "format"),
    "two rules for one field": ('fields = ["name"]', 'fields = ["id"]', "rules"),
    "redacting what is hashed": ('fields = ["note"]', 'fields = ["id"]', "redact"),
    "a field that is no column": ('fields = ["note"]', 'fields = ["notes"]', "columns"),
    "text with fields": ("presidio = {", 'fields = ["x"]\npresidio = {', "text"),
    "no others": ('others = "keep"\n', "", "others"),
    "an identity with spaces": ('as = "patient"', 'as = "the patient"', "as"),
    "a float": ('width = "10"', "width = 10.0", "width"),
    "no width": ('width = "10"', 'width = "0"', "width"),
    "a width of another kind": ('width = "10"', 'width = "ten"', "width"),
    "an enormous width": ('width = "10"', 'width = "1e999999"', "width"),
    "top between bins": ('top = "90"', 'top = "95"', "top"),
    "an unused pattern": ('"email", "case"', '"email"', "case"),
    "one match twice": ('match = "*.txt"', 'match = "*.csv"', "match"),
    "no entities": ('["PERSON"]', "[]", "entities"),
    "an entity of another kind": ('["PERSON"]', '["person"]', "entities"),
    "a model's path": ("en_core_web_lg", "../model", "model"),
    "a pattern's name": ('name = "case"', 'name = "Case"', "name"),
    "a field that cannot be printed": ('fields = ["name"]', 'fields = ["na\\u0000me"]', "fields"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_refused(name):
    old, new, word = CHANGES[name]
    assert old in TEXT
    with pytest.raises(ConfigError) as refusal:
        parse_pipeline(TEXT.replace(old, new, 1))
    assert word in f"{refusal.value.message} {refusal.value.hint}"


HEAD = 'schema = "cvmtool/scrub/v1"\nkey = "x"\n'
ENTRY = '[[files]]\nmatch = "*"\n'
OTHER = '\n[[files]]\nmatch = "other"\nformat = "drop"\n'
"""What makes a pipeline one that changes something, whatever else it says."""


def rule_of(text):
    """The rule of a table that has no other."""
    entry = f'{ENTRY}format = "csv"\nothers = "keep"\n[[files.rules]]\n'
    return parse_pipeline(HEAD + entry + text).files[0].rules[0]


def names(count):
    return ", ".join(f'"n{number}"' for number in range(count))


@pytest.mark.parametrize(
    "entry",
    [
        'format = "keep"',
        'format = "csv"\nothers = "keep"\n[[files.rules]]\naction = "keep"\nfields = ["a"]',
        'format = "csv"\nothers = "refuse"\n[[files.rules]]\naction = "keep"\nfields = ["a"]',
        'format = "jsonl"\nothers = "keep"',
    ],
)
def test_a_pipeline_that_changes_nothing_is_none(entry):
    """A pack of it would count as scrubbed."""
    with pytest.raises(ConfigError, match="changes nothing"):
        parse_pipeline(HEAD + ENTRY + entry)
    parse_pipeline(HEAD + ENTRY + entry + OTHER)


@pytest.mark.parametrize(
    "entry",
    [
        'format = "drop"',
        'format = "jsonl"\nothers = "drop"\n[[files.rules]]\naction = "keep"\nfields = ["a"]',
        'format = "json"\nothers = "keep"\n[[files.rules]]\naction = "drop"\nfields = ["a"]',
    ],
)
def test_to_drop_is_a_change(entry):
    parse_pipeline(HEAD + ENTRY + entry)


def test_a_table_needs_a_column_by_which_its_names_are_known():
    entry, rule = 'format = "csv"\nothers = "keep"', '\n[[files.rules]]\naction = "redact"\npatterns = ["email"]'
    with pytest.raises(ConfigError, match="names a column"):
        parse_pipeline(HEAD + ENTRY + entry + rule)
    parse_pipeline(HEAD + ENTRY + entry + '\ncolumns = ["a"]' + rule)


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ('format = "jsonl"\nothers = "keep"\ncolumns = ["a"]', "'columns'"),
        ('format = "keep"\n[[files.rules]]\naction = "drop"\nfields = ["a"]', "'rules'"),
        ('format = "drop"\n[[files.rules]]\naction = "drop"\nfields = ["a"]', "'rules'"),
        ('format = "text"', "rules"),
    ],
    ids=["columns of what is no table", "rules for what is kept", "rules for what is dropped", "text without rules"],
)
def test_what_an_entry_lacks_or_cannot_have(entry, place):
    with pytest.raises(ConfigError, match=place):
        parse_pipeline(HEAD + ENTRY + entry + OTHER)


def test_a_pattern_is_stated_once():
    with pytest.raises(ConfigError, match=r"patterns\[1\]\.name"):
        parse_pipeline(TEXT.replace("[[files]]", "[[patterns]]\nname = \"case\"\nregex = 'D'\n[[files]]", 1))


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ('key = "study 17"', 'key = "study 17"\nkeys = "x"', "pipeline"),
        ("regex = ", "flags = 1\nregex = ", "pipeline.patterns[0]"),
        ('format = "text"', 'format = "text"\nothers = "keep"', "pipeline.files[1]"),
        ('action = "tokenise"', 'action = "tokenise"\ndigits = 16', "pipeline.files[2].rules[0]"),
        ('language = "en"', 'language = "en", score = "0.5"', "pipeline.files[1].rules[0].presidio"),
    ],
)
def test_an_unknown_key_is_refused_where_it_stands(old, new, where):
    with pytest.raises(ConfigError) as refusal:
        parse_pipeline(TEXT.replace(old, new, 1))
    assert refusal.value.message.startswith(f"{where} has the unknown key")


# ---- rules ----

BINS = 'action = "generalise"\nfields = ["a"]\nto = "bins"\n'


def test_what_a_rule_leaves_unsaid():
    refuse = Unreadable.REFUSE
    assert rule_of('action = "hash"\nfields = ["a"]\nas = "x"') == Hash(fields=("a",), identity="x", digits=64)
    assert rule_of(BINS + 'width = "1"') == Bins(fields=("a",), width=Decimal(1), top=None, unreadable=refuse)
    assert rule_of('action = "generalise"\nfields = ["a"]\nto = "year"') == Dates(
        fields=("a",), to=Period.YEAR, written=None, unreadable=refuse
    )


def test_patterns_and_a_recogniser_in_one_rule():
    presidio = 'presidio = { language = "en", model = "en_core_web_sm", entities = ["PERSON"] }'
    rule = rule_of(f'action = "redact"\nfields = ["a"]\npatterns = ["email"]\n{presidio}')
    recogniser = Recogniser(language="en", model="en_core_web_sm", entities=("PERSON",))
    assert rule == Redact(fields=("a",), patterns=("email",), recogniser=recogniser)


@pytest.mark.parametrize(
    ("rule", "place"),
    [
        ('action = "redact"\nfields = ["a"]', r"lacks the key 'patterns'"),
        ('action = "redact"\nfields = ["a"]\npatterns = ["E mail"]', r"\.patterns is"),
        ('action = "generalise"\nfields = ["a"]\nto = "day"', r"\.to is"),
        (BINS + 'width = "0"', r"\.width is"),
        (BINS + 'width = "-1"', r"\.width is"),
        (BINS + 'width = "NaN"', r"\.width is"),
    ],
)
def test_a_rule_that_says_too_little_or_nonsense(rule, place):
    with pytest.raises(ConfigError, match=place):
        rule_of(rule)


# ---- bounds: what just passes, and what just does not ----

BOUNDS = {
    "the key, shortest": (lambda n: TEXT.replace("study 17", "k" * n), 1, 0),
    "the key, longest": (lambda n: TEXT.replace("study 17", "k" * n), 256, 257),
    "an expression, shortest": (lambda n: TEXT.replace("C-[0-9]+", "C" * n), 1, 0),
    "an expression, longest": (lambda n: TEXT.replace("C-[0-9]+", "C" * n), 256, 257),
    "a field, longest": (lambda n: TEXT.replace('"name"', f'"{"f" * n}"'), 256, 257),
    "fewest digits": (lambda n: TEXT.replace("digits = 16", f"digits = {n}"), 16, 15),
    "most digits": (lambda n: TEXT.replace("digits = 16", f"digits = {n}"), 64, 65),
    "fewest characters": (lambda n: TEXT.replace("characters = 3", f"characters = {n}"), 1, 0),
    "most characters": (lambda n: TEXT.replace("characters = 3", f"characters = {n}"), 256, 257),
    "the largest width": (lambda n: TEXT.replace('width = "10"\ntop = "90"', f'width = "1e{n}"'), 15, 16),
    "the smallest width": (lambda n: TEXT.replace('width = "10"\ntop = "90"', f'width = "1e{n}"'), -15, -16),
    "entries": (
        lambda n: HEAD + "".join(f'[[files]]\nmatch = "{name}"\nformat = "drop"\n' for name in range(n)),
        64,
        65,
    ),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name):
    text, passes, fails = BOUNDS[name]
    parse_pipeline(text(passes))
    with pytest.raises(ConfigError):
        parse_pipeline(text(fails))


@pytest.mark.parametrize(
    "rule",
    [
        lambda n: f'action = "drop"\nfields = [{names(n)}]',
        lambda n: f'action = "redact"\nfields = ["a"]\npatterns = [{names(n)}]',
        lambda n: (
            f'action = "redact"\nfields = ["a"]\npatterns = [{names(n - 2)}]\n'
            'presidio = { language = "en", model = "m", entities = ["PERSON", "NRP"] }'
        ),
    ],
    ids=["fields", "patterns", "patterns and entities"],
)
def test_no_more_rules_than_a_header_counts(rule):
    """It counts 256: one for each field, pattern or kind of entity, and one for what becomes of the rest."""
    rule_of(rule(255))
    with pytest.raises(ConfigError, match="256 rules; required: at most 255"):
        rule_of(rule(256))


@given(st.text(max_size=60), st.integers(0, len(TEXT)), st.integers(0, 80))
def test_any_text_is_a_pipeline_or_refused(text, at, length):
    for candidate in (text, TEXT[:at] + text + TEXT[at + length :]):
        try:
            parse_pipeline(candidate)
        except ConfigError:
            continue
