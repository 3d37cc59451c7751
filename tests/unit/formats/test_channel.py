# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.channel import (
    MAX_ANSWER,
    OPEN_SIZE,
    Open,
    Refusal,
    answer_to,
    closed_line,
    find_last_open,
    ready_line,
    refused_line,
)
from cvmtool.formats.evidence import MAX_CERT_TABLE, Evidence
from cvmtool.formats.wire import to_base64

NONCE = b"N" * 32
OPEN = Open(nonce=NONCE, owner_key=b"O" * 32, manifest_sha256=b"M" * 32)
OTHER = Open(nonce=b"2" * 32, owner_key=b"P" * 32, manifest_sha256=b"Q" * 32)
EVIDENCE = Evidence(
    report=bytes(1184), cert_table=b"", ssh_host_key=bytes(32), hpke_key=bytes(32), receipt_key=bytes(32)
)
LONGEST = Evidence(
    report=b"\xff" * 1184,
    cert_table=b"\xff" * MAX_CERT_TABLE,
    ssh_host_key=bytes(32),
    hpke_key=bytes(32),
    receipt_key=bytes(32),
)


def test_an_open_line_is_spelled_as_the_protocol_says():
    line = OPEN.encode()
    assert line == f"\nCVM1 OPEN {NONCE.hex()} {(b'O' * 32).hex()} {(b'M' * 32).hex()}\n".encode()
    assert len(line) == OPEN_SIZE


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_an_open_is_found_in_any_garbage(before, after):
    found = find_last_open(before + OPEN.encode() + after)
    assert found == (OPEN, len(before) + OPEN_SIZE)


def test_the_last_of_several_opens_counts():
    for between in (b"", b"SSH-2.0-x\r\n", b"\nCVM1 OPEN "):
        data = OPEN.encode() + between + OTHER.encode()
        assert find_last_open(data + b"rest") == (OTHER, len(data))


def test_two_opens_may_share_a_line_feed():
    data = OPEN.encode() + OTHER.encode()[1:]
    assert find_last_open(data) == (OTHER, len(data))


def test_no_part_of_an_open_is_one():
    line = OPEN.encode()
    for end in range(OPEN_SIZE):
        assert find_last_open(line[:end]) is None
    for start in range(1, OPEN_SIZE):
        assert find_last_open(line[start:]) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b"CVM1", b"CVM2"),
        lambda line: line.replace(b"4e", b"4E", 1),
        lambda line: line.replace(b" ", b"  ", 1),
        lambda line: line[:-1] + b"\r\n",
        lambda line: line[:-1] + b" 00\n",
        lambda line: line[:-3] + b"\n",
    ],
)
def test_a_line_that_is_nearly_an_open_is_not(change):
    assert change(OPEN.encode()) != OPEN.encode()
    assert find_last_open(change(OPEN.encode())) is None


ANSWERS = [(ready_line(NONCE, EVIDENCE), EVIDENCE), (ready_line(NONCE, LONGEST), LONGEST)]
ANSWERS += [(refused_line(NONCE, word), word) for word in Refusal]


@pytest.mark.parametrize(("line", "meaning"), ANSWERS, ids=["ready", "longest", *Refusal])
def test_an_answer_is_read_and_what_follows_it_is_left(line, meaning):
    assert answer_to(line + b"SSH-2.0-OpenSSH\r\n", NONCE) == (meaning, len(line))
    assert len(line) <= MAX_ANSWER


@given(st.binary(max_size=300).filter(lambda data: NONCE.hex().encode() not in data))
def test_an_answer_is_found_behind_any_garbage(garbage):
    line = refused_line(NONCE, Refusal.BUSY)
    assert answer_to(garbage + line, NONCE) == (Refusal.BUSY, len(garbage) + len(line))


def test_answers_to_other_nonces_and_closed_lines_are_passed_over():
    old = ready_line(b"o" * 32, LONGEST) + closed_line(b"o" * 32) + refused_line(b"p" * 32, Refusal.BUSY)
    assert answer_to(old, NONCE) is None
    line = ready_line(NONCE, EVIDENCE)
    assert answer_to(old + line, NONCE) == (EVIDENCE, len(old + line))


def test_an_answer_is_read_when_its_last_byte_is_there_and_not_before():
    line = b"garbage\n" + ready_line(NONCE, EVIDENCE)
    for end in range(len(line)):
        assert answer_to(line[:end], NONCE) is None
    assert answer_to(line, NONCE) is not None


@pytest.mark.parametrize(
    "text",
    [
        f"READY {NONCE.hex()} !!!!",
        f"READY {NONCE.hex()} ",
        f"READY {NONCE.hex()} {to_base64(EVIDENCE.encode()[:-1])}",
        f"READY {NONCE.hex()} {to_base64(EVIDENCE.encode())} ",
        f"READY {NONCE.hex()} {to_base64(EVIDENCE.encode())}\r",
        f"REFUSED {NONCE.hex()} tired",
        f"REFUSED {NONCE.hex()} BUSY",
        f"REFUSED {NONCE.hex()} ",
    ],
)
def test_a_malformed_answer_to_this_nonce_is_a_format_error(text):
    with pytest.raises(FormatError):
        answer_to(f"\nCVM1 {text}\n".encode(), NONCE)


def test_an_answer_without_end_is_refused_at_its_limit():
    begun = f"\nCVM1 READY {NONCE.hex()} ".encode()
    assert answer_to(begun + b"A" * MAX_ANSWER, NONCE) is None
    with pytest.raises(FormatError):
        answer_to(begun + b"A" * (MAX_ANSWER + 1), NONCE)
    with pytest.raises(FormatError):
        answer_to(begun + b"A" * (MAX_ANSWER + 1) + b"\n", NONCE)


@given(st.binary(max_size=100))
def test_any_answer_is_a_value_or_a_format_error(data):
    for begun in (b"", b"\nCVM1 READY %b " % NONCE.hex().encode(), b"\nCVM1 REFUSED %b " % NONCE.hex().encode()):
        with contextlib.suppress(FormatError):
            answer_to(begun + data, NONCE)


def test_a_closed_line_names_its_session():
    assert closed_line(NONCE) == f"\nCVM1 CLOSED {NONCE.hex()}\n".encode()


@pytest.mark.parametrize("word", [b"READY", b"REFUSED"])
def test_an_answer_that_is_not_ascii_is_refused(word):
    with pytest.raises(FormatError):
        answer_to(b"\nCVM1 %b %b \xff\xfe\n" % (word, NONCE.hex().encode()), NONCE)
