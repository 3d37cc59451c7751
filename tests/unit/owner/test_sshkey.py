# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.owner.sshkey import parse_ssh_key, render_ssh_key

LINE = render_ssh_key(b"k" * 32)


@given(st.binary(min_size=32, max_size=32))
def test_what_is_written_is_read(key):
    assert parse_ssh_key(render_ssh_key(key)) == key


def test_it_is_the_line_that_others_write():
    public = Ed25519PrivateKey.generate().public_key()
    theirs = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert render_ssh_key(public.public_bytes_raw()) == theirs


def test_a_comment_may_stand_behind_it():
    assert parse_ssh_key(f"{LINE} anna@example.org of the lab\n") == b"k" * 32


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        LINE.replace("ed25519", "rsa"),
        LINE[:-4],
        LINE + "AAAA",
        LINE[:-1] + "é",
        LINE[:20] + "*" + LINE[20:],
        LINE.split()[1],
        f"ssh-ed25519 {'A' * 68}",
    ],
    ids=["empty", "no key", "kind", "short", "long", "letter", "mark within", "key alone", "another kind within"],
)
def test_what_is_no_such_line(text):
    with pytest.raises(FormatError):
        parse_ssh_key(text)


@given(st.text() | st.text().map(lambda text: f"ssh-ed25519 {text}"))
@example("ssh-ed25519 AAAA\0")
def test_any_text_is_a_key_or_refused(text):
    with contextlib.suppress(FormatError):
        assert len(parse_ssh_key(text)) == 32
