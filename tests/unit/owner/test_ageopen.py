# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Changed and cut age files. That age itself opens what we seal, and we what age seals: the end of this file."""

import io
import shutil
import subprocess

import pytest

from cvmtool.errors import CvmError, FormatError, VerificationError
from cvmtool.formats.age import (
    CHUNK,
    NONCE,
    SEALED_CHUNK,
    Stanza,
    encode_mac,
    encode_stanzas,
    parse_header,
    unpadded,
)
from cvmtool.guest.age import AgeFile
from cvmtool.owner.age import parse_identities, parse_recipient, render_recipient
from cvmtool.owner.ageopen import open_age
from cvmtool.owner.keystore import OwnerKeys
from tests.unit.guest.samples import filling

READER = OwnerKeys(b"reader__" * 4)
CONTENT = b"0123456789abcdef" * (2 * CHUNK // 16)


SHARE = unpadded(OwnerKeys(b"somebody" * 4).recipient).decode()


def seal(data):
    return b"".join(AgeFile(filling(data), len(data), (READER.recipient,)).read_from(0))


SEALED = seal(CONTENT)
HEAD = parse_header(SEALED).size + NONCE


def open_(sealed):
    return b"".join(open_age(io.BytesIO(sealed).read, [READER.age_identity]))


def test_a_reader_that_gives_little_at_a_time_is_enough():
    file = io.BytesIO(SEALED)
    assert b"".join(open_age(lambda size: file.read(min(size, 1000)), [READER.age_identity])) == CONTENT


@pytest.mark.parametrize(
    "at", [*range(0, HEAD, 7), HEAD, HEAD + SEALED_CHUNK - 1, HEAD + SEALED_CHUNK, len(SEALED) - 1]
)
def test_every_changed_byte_is_noticed(at):
    changed = bytearray(SEALED)
    changed[at] ^= 1
    with pytest.raises((FormatError, VerificationError)):
        open_(bytes(changed))


@pytest.mark.parametrize("size", [0, 40, HEAD - NONCE, HEAD - 1, HEAD, HEAD + 9, HEAD + SEALED_CHUNK, len(SEALED) - 1])
def test_a_file_that_was_cut_short_is_refused(size):
    with pytest.raises((FormatError, VerificationError)):
        open_(SEALED[:size])


@pytest.mark.parametrize(("size", "where"), [(HEAD - 1, "nonce"), (HEAD, "chunk 0"), (HEAD + SEALED_CHUNK, "chunk 0")])
def test_a_refusal_says_where_a_file_ends(size, where):
    with pytest.raises(VerificationError, match=where):
        open_(SEALED[:size])


def test_a_reader_is_asked_for_a_chunk_at_a_time():
    """A header is at most as long; and whoever asks a stream for nothing takes its answer for the end."""
    file, asked = io.BytesIO(SEALED), []

    def read(size):
        asked.append(size)
        return file.read(size)

    assert b"".join(open_age(read, [READER.age_identity])) == CONTENT
    assert 0 < min(asked) <= max(asked) <= SEALED_CHUNK + 1


def test_a_chunk_that_nothing_needed_is_refused(monkeypatch):
    """age allows one text for each content: its last chunk is empty only if all of it is."""
    monkeypatch.setattr("cvmtool.guest.age.chunks_of", lambda _: 2)
    with pytest.raises(VerificationError, match="chunk 1 is empty"):
        open_(seal(CONTENT[:CHUNK]))


def test_chunks_in_another_order_are_refused():
    one, two = SEALED[HEAD : HEAD + SEALED_CHUNK], SEALED[HEAD + SEALED_CHUNK :]
    with pytest.raises(VerificationError, match="chunk 0"):
        open_(SEALED[:HEAD] + two + one)


def test_nothing_follows_the_last_chunk():
    with pytest.raises(VerificationError, match="chunk 1"):
        open_(SEALED + b"x")


def test_a_file_for_a_passphrase_is_refused_by_name():
    stanza = Stanza(kind="scrypt", arguments=("c2FsdA", "18"), body=bytes(32))
    with pytest.raises(FormatError, match="passphrase"):
        open_(encode_stanzas([stanza]) + encode_mac(bytes(32)))


@pytest.mark.parametrize(
    "stanza",
    [
        Stanza(kind="X25519", arguments=(), body=bytes(32)),
        Stanza(kind="X25519", arguments=("c2FsdA",), body=bytes(32)),
        Stanza(kind="X25519", arguments=("A" * 43,), body=bytes(32)),
        Stanza(kind="X25519", arguments=(SHARE,), body=bytes(31)),
        Stanza(kind="X25519", arguments=(SHARE,), body=bytes(33)),
        Stanza(kind="X25519", arguments=(SHARE, SHARE), body=bytes(32)),
    ],
)
def test_a_malformed_stanza_is_refused(stanza):
    with pytest.raises(CvmError) as refused:
        open_(encode_stanzas([stanza]) + encode_mac(bytes(32)))
    assert isinstance(refused.value, FormatError)


def test_stanzas_of_other_kinds_are_passed_over():
    with pytest.raises(VerificationError, match="sealed to 1 keys"):
        open_(encode_stanzas([Stanza(kind="ssh-ed25519", arguments=("x",), body=b"")]) + encode_mac(bytes(32)))


@pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed")
class TestAgeItself:
    """The program that everybody else has (Debian's, 1.1.1 and later)."""

    @pytest.fixture
    def made(self, tmp_path):
        """An identity file of age-keygen's, and the recipient in it."""
        subprocess.run(["age-keygen", "-o", str(tmp_path / "key")], check=True, capture_output=True)
        return tmp_path / "key", next(
            word for word in (tmp_path / "key").read_text().split() if word.startswith("age1")
        )

    @pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 16 * CHUNK])
    def test_opens_what_we_seal(self, made, size):
        identity, recipient = made
        data = (CONTENT * 8)[:size]
        readers = (READER.recipient, parse_recipient(recipient))
        sealed = b"".join(AgeFile(filling(data), size, readers).read_from(0))
        opened = subprocess.run(["age", "-d", "-i", str(identity)], input=sealed, capture_output=True, check=True)
        assert opened.stdout == data
        assert open_(sealed) == data

    @pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 16 * CHUNK])
    def test_writes_what_we_open(self, made, size):
        identity, recipient = made
        own, data = render_recipient(READER.recipient), (CONTENT * 8)[:size]
        sealed = subprocess.run(["age", "-r", recipient, "-r", own], input=data, capture_output=True, check=True).stdout
        assert open_(sealed) == data
        (other,) = parse_identities(identity.read_text())
        assert b"".join(open_age(io.BytesIO(sealed).read, [other])) == data

    def test_opens_nothing_that_is_sealed_to_others(self, made):
        done = subprocess.run(["age", "-d", "-i", str(made[0])], input=SEALED, capture_output=True, check=False)
        assert done.returncode == 1
        assert done.stdout == b""
