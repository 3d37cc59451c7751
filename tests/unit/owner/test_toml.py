# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Every way to take a key, what each refuses, and what is said then."""

import datetime as dt
import re
from enum import StrEnum

import pytest

from cvmtool.errors import ConfigError
from cvmtool.owner.toml import MAX_BYTES, load_table


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


TEXT = """
text = "word"
number = 3
truth = true
date = 2026-01-31
moment = 2026-01-31T12:00:00Z
choice = "red"
choices = ["blue", "red"]
texts = ["a", "b"]
numbers = [0, 3]
hex = "00ff"
hexes = ["00ff", "00ff00ff"]
[table]
x = 1
[[tables]]
x = 1
[[tables]]
x = 2
"""
TAKES = {
    "text": lambda table: table.text("text"),
    "number": lambda table: table.integer("number", 3, 3),
    "truth": lambda table: table.boolean("truth"),
    "date": lambda table: table.date("date"),
    "moment": lambda table: table.moment("moment"),
    "choice": lambda table: table.choice("choice", Colour),
    "choices": lambda table: table.choices("choices", Colour),
    "texts": lambda table: table.texts("texts"),
    "numbers": lambda table: table.integers("numbers", 0, 3),
    "hex": lambda table: table.hex("hex", 2),
    "hexes": lambda table: table.hexes("hexes", 2, 4),
    "table": lambda table: table.table("table").integer("x", 1, 1),
    "tables": lambda table: tuple(row.integer("x", 1, 2) for row in table.tables("tables")),
}
VALUES = {
    "text": "word",
    "number": 3,
    "truth": True,
    "date": dt.date(2026, 1, 31),
    "moment": dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC),
    "choice": Colour.RED,
    "choices": (Colour.BLUE, Colour.RED),
    "texts": ("a", "b"),
    "numbers": (0, 3),
    "hex": b"\x00\xff",
    "hexes": (b"\x00\xff", b"\x00\xff\x00\xff"),
    "table": 1,
    "tables": (1, 2),
}


def test_every_key_is_taken_once_and_none_is_left():
    table = load_table(TEXT, "sample")
    assert {key: take(table) for key, take in TAKES.items()} == VALUES
    table.finish()


def test_a_key_that_was_asked_about_is_known():
    table = load_table("a = 1", "sample")
    assert table.has("a")
    assert not table.has("b")
    table.finish()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("text", "1", "sample.text is '1'; required: text"),
        ("number", "4", "sample.number is '4'; required: an integer from 3 to 3"),
        ("number", "2", "sample.number is '2'"),
        ("number", "true", "sample.number is 'True'"),
        ("number", "3.0", "sample.number is '3.0'"),
        ("number", "0x" + "f" * 5000, "sample.number is 'a very long number'"),
        ("truth", "1", "required: true or false"),
        ("date", "2026-01-31T00:00:00Z", "required: a date without a time"),
        ("date", '"2026-01-31"', "required: a date"),
        ("moment", "2026-01-31T12:00:00", "required: a time with its zone, such as"),
        ("moment", "2026-01-31", "required: a time with its zone"),
        ("choice", '"green"', "sample.choice is 'green'; required: one of red, blue"),
        ("choices", "[]", "required: a list of text with one entry or more"),
        ("choices", '["red", "green"]', "required: one of red, blue"),
        ("choices", '["red", "red"]', "sample.choices holds a value twice"),
        ("texts", "[]", "required: a list of text with one entry or more"),
        ("texts", '["a", 1]', "required: a list of text"),
        ("texts", '["a", "a"]', "sample.texts holds a value twice"),
        ("texts", '"a"', "required: a list of text"),
        ("numbers", "[]", "required: a list of integers from 0 to 3, one or more"),
        ("numbers", "[4]", "required: a list of integers"),
        ("numbers", "[-1]", "required: a list of integers"),
        ("numbers", "[1, true]", "required: a list of integers"),
        ("numbers", '[1, "2"]', "required: a list of integers"),
        ("numbers", "[1, 1]", "sample.numbers holds a value twice"),
        ("hex", '"00FF"', "required: 4 hex digits in lower case"),
        ("hex", '"00f"', "required: 4 hex digits in lower case"),
        ("hex", '"00fg"', "required: 4 hex digits in lower case"),
        ("hex", '"00fX"', "required: 4 hex digits in lower case"),
        ("hexes", '["00ff00"]', "required: 4 or 8 hex digits in lower case"),
        ("hexes", '["00ff", "00ff"]', "sample.hexes holds a value twice"),
        ("table", "1", "required: a table"),
        ("tables", "[]", "required: an array of tables, one or more"),
        ("tables", "[{x = 1}, 2]", "required: an array of tables, one or more"),
        ("tables", "{x = 1}", "required: an array of tables"),
    ],
)
def test_what_is_no_such_thing_is_refused(key, value, said):
    table = load_table(f"{key} = {value}", "sample")
    with pytest.raises(ConfigError, match=re.escape(said)):
        TAKES[key](table)


@pytest.mark.parametrize("digits", ["0123456789abcdef"])
def test_every_digit_is_hex(digits):
    assert load_table(f'a = "{digits}"', "sample").hex("a", 8) == bytes.fromhex(digits)


@pytest.mark.parametrize("key", TAKES)
def test_a_missing_key_is_named(key):
    with pytest.raises(ConfigError, match=f"sample lacks the key '{key}'; required: "):
        TAKES[key](load_table("other = 1", "sample"))


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("measurment = 1", "measurements", "is 'measurment' a misspelling of it?"),
        ("zzz = 1", "measurements", None),
    ],
)
def test_a_misspelt_key_is_guessed(text, key, hint):
    with pytest.raises(ConfigError) as refusal:
        load_table(text, "sample").text(key)
    assert refusal.value.hint == hint


def test_a_key_that_was_taken_is_nobodys_misspelling():
    table = load_table("vmpls = 1", "sample")
    table.integer("vmpls", 1, 1)
    with pytest.raises(ConfigError) as refusal:
        table.text("vmpl")
    assert refusal.value.hint is None


def test_a_key_that_nobody_took_is_refused_with_the_nearest_or_all():
    table = load_table("vmpll = 1", "sample")
    assert not table.has("vmpl")
    assert not table.has("host_data")
    with pytest.raises(ConfigError, match="sample has the unknown key 'vmpll'") as refusal:
        table.finish()
    assert refusal.value.hint == "did you mean 'vmpl'?"
    table = load_table("zzz = 1", "sample")
    assert not table.has("vmpl")
    assert not table.has("host_data")
    with pytest.raises(ConfigError) as refusal:
        table.finish()
    assert refusal.value.hint == "known are: host_data, vmpl"


def test_a_choice_is_guessed_too():
    with pytest.raises(ConfigError) as refusal:
        load_table('a = "blu"', "sample").choice("a", Colour)
    assert refusal.value.hint == "did you mean 'blue'?"
    with pytest.raises(ConfigError) as refusal:
        load_table('a = "zzzz"', "sample").choice("a", Colour)
    assert refusal.value.hint is None


def test_where_a_table_stands_is_said():
    document = load_table("[a]\nb = 1\n[[c]]\nd = 1\n", "sample")
    assert document.table("a").where == "sample.a"
    assert document.tables("c")[0].where == "sample.c[0]"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "sample is empty; an empty sample would accept everything"),
        ("# nothing\n", "sample is empty"),
        ("a", "sample is not toml"),
        ("a = " + "9" * 5000, "sample is not toml"),
        ("a = " + "[" * 5000, "sample is not toml"),
        ("#" * (MAX_BYTES + 1), f"sample has {MAX_BYTES + 1} characters; required: at most {MAX_BYTES}"),
        ("#" * MAX_BYTES, "sample is empty"),
    ],
    ids=["nothing", "a comment", "a word", "long", "deep", "too long", "as long as may be"],
)
def test_what_is_no_table_is_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        load_table(text, "sample")


def test_a_long_value_is_cut_where_it_is_shown():
    with pytest.raises(ConfigError) as refusal:
        load_table(f'a = "{"x" * 1000}"', "sample").integer("a", 0, 1)
    assert len(refusal.value.message) < 140
