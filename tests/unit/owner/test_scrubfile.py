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
    "no key": ('key = "study 17"', "", "key"),
    "unknown key": ('key = "study 17"', 'key = "x"\nkeys = "x"', "keys"),
    "another action": ('action = "drop"', 'action = "remove"', "action"),
    "another format": ('format = "text"', 'format = "xml"', "format"),
    "two rules for one field": ('fields = ["name"]', 'fields = ["id"]', "rules"),
    "redacting what is hashed": ('fields = ["note"]', 'fields = ["id"]', "redact"),
    "a field that is no column": ('fields = ["note"]', 'fields = ["notes"]', "columns"),
    "text with fields": ("presidio = {", 'fields = ["x"]\npresidio = {', "text"),
    "no others": ('others = "keep"\n', "", "others"),
    "others of text": ('format = "text"', 'format = "text"\nothers = "keep"', "others"),
    "few digits": ("digits = 16", "digits = 8", "digits"),
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


HEAD = 'schema = "cvmtool/scrub/v1"\nkey = "x"\n[[files]]\nmatch = "*"\n'


@pytest.mark.parametrize(
    "rest",
    [
        'format = "keep"',
        'format = "csv"\nothers = "keep"\n[[files.rules]]\naction = "keep"\nfields = ["a"]',
        'format = "jsonl"\nothers = "keep"',
    ],
)
def test_a_pipeline_that_changes_nothing_is_none(rest):
    """A pack of it would count as scrubbed."""
    with pytest.raises(ConfigError, match="changes nothing"):
        parse_pipeline(HEAD + rest)


def test_a_table_needs_a_column_by_which_its_names_are_known():
    rest = 'format = "csv"\nothers = "keep"\n[[files.rules]]\naction = "redact"\npatterns = ["email"]'
    with pytest.raises(ConfigError, match="names a column"):
        parse_pipeline(HEAD + rest)
    parse_pipeline(HEAD + rest.replace('others = "keep"', 'others = "keep"\ncolumns = ["a"]'))


def test_no_more_rules_than_a_header_holds():
    fields = ", ".join(f'"f{number}"' for number in range(300))
    with pytest.raises(ConfigError, match="rules"):
        parse_pipeline(HEAD + f'format = "csv"\nothers = "keep"\n[[files.rules]]\naction = "drop"\nfields = [{fields}]')


@given(st.text(max_size=60), st.integers(0, len(TEXT)), st.integers(0, 80))
def test_any_text_is_a_pipeline_or_refused(text, at, length):
    for candidate in (text, TEXT[:at] + text + TEXT[at + length :]):
        try:
            parse_pipeline(candidate)
        except ConfigError:
            continue
