# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import hmac
import itertools

import pytest

from cvmtool.data import pseudonyms
from cvmtool.data.pseudonyms import Pseudonyms
from cvmtool.errors import FormatError

KEY = b"key!" * 8


def test_a_hash_is_the_documented_one():
    """docs/howto/scrub-data.md: who has the key can compute it elsewhere."""
    fields = (b"hash", b"person", "Müller".encode())
    message = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    expected = hmac.new(KEY, message, hashlib.sha256).hexdigest()
    assert Pseudonyms(KEY).hash("person", "Müller", 64) == expected
    assert Pseudonyms(KEY).hash("person", "Müller", 16) == expected[:16]


def test_a_hash_depends_on_key_identity_and_value():
    one = Pseudonyms(KEY)
    hashes = {
        one.hash("a", "x", 64),
        one.hash("b", "x", 64),
        one.hash("a", "y", 64),
        Pseudonyms(b"k" * 32).hash("a", "x", 64),
    }
    assert len(hashes) == 4


def test_tokens_are_consistent_and_distinct():
    one = Pseudonyms(KEY)
    tokens = [one.token("patient", str(number)) for number in range(5000)]
    assert tokens == [one.token("patient", str(number)) for number in range(5000)]
    assert len(set(tokens)) == 5000
    assert all(len(token) == len("patient-000000") for token in tokens)
    assert one.token("doctor", "1").startswith("doctor-")


def test_tokens_do_not_tell_the_order_of_first_sight():
    one = Pseudonyms(KEY)
    numbers = [int(one.token("p", str(number))[2:]) for number in range(1000)]
    rises = sum(before < behind for before, behind in itertools.pairwise(numbers))
    assert 430 < rises < 570
    assert max(numbers) > 900_000


def test_the_permutation_is_one(monkeypatch):
    monkeypatch.setattr(pseudonyms, "MOST_TOKENS", 100)
    monkeypatch.setattr(pseudonyms, "_HALF", 10)
    one = Pseudonyms(KEY)
    assert {one.token("p", str(number)) for number in range(100)} == {f"p-{number:06}" for number in range(100)}
    with pytest.raises(FormatError, match="more than 100 values of p"):
        one.token("p", "another")
