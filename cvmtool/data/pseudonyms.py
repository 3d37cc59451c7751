# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What stands for a value: a keyed hash, or a short token.

Zone: data (the owner's machine). Pure: the key comes in as bytes.

A hash needs no memory and is the same in every run under one key, so that data that was scrubbed apart can be joined. A
token is short; the table that makes it so lives as long as the run. Its number is the value's place in the order of first
sight behind a keyed permutation: without it, tokens of a sorted file would be in the order of the names that they hide.
"""

from __future__ import annotations

import hashlib
import hmac

from cvmtool.errors import FormatError
from cvmtool.formats.wire import lp

MOST_TOKENS = 1_000_000  # of one identity: six digits
_HALF = 1 << 10  # the permutation is over the square of it, the least that holds all tokens
_ROUNDS = 8
_KEY_BYTES = 16  # of a value in the table: the value itself is not kept


class Pseudonyms:
    """The hashes and tokens of one run."""

    def __init__(self, key: bytes) -> None:
        """Take the key: 32 bytes, which the owner's key store derives for a pipeline."""
        self._key = key
        self._tokens: dict[str, dict[bytes, str]] = {}

    def hash(self, identity: str, value: str, digits: int) -> str:
        """Return the first `digits` hex digits of HMAC-SHA-256 over identity and value."""
        return self._mac(b"hash", identity, value.encode("utf-8")).hex()[:digits]

    def token(self, identity: str, value: str) -> str:
        """Return the token of a value: its identity and six digits.

        Raises:
            FormatError: this is the value after a million others.
        """
        table = self._tokens.setdefault(identity, {})
        known = self._mac(b"token", identity, value.encode("utf-8"))[:_KEY_BYTES]
        if known not in table:
            if len(table) == MOST_TOKENS:
                raise FormatError(
                    f"more than {MOST_TOKENS} values of {identity} are to be tokens; hash has no such limit"
                )
            table[known] = f"{identity}-{self._permuted(identity, len(table)):06}"
        return table[known]

    def _permuted(self, identity: str, number: int) -> int:
        """Return another number below MOST_TOKENS, each for one: a Feistel network, gone through until it ends there."""
        while True:
            left, right = divmod(number, _HALF)
            for step in range(_ROUNDS):
                mixed = self._mac(b"order", identity, bytes((step, *right.to_bytes(2, "big"))))
                left, right = right, (left + int.from_bytes(mixed[:4], "big")) % _HALF
            number = left * _HALF + right
            if number < MOST_TOKENS:
                return number

    def _mac(self, use: bytes, identity: str, value: bytes) -> bytes:
        return hmac.digest(self._key, lp(use, identity.encode("ascii"), value), hashlib.sha256)
