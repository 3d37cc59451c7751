# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What OpenSSL says first, as it says it and changed."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.clienthello import MAX_HELLO, read_client_hello

NAME = "api.example.org"


def openssl(name=NAME, **versions):
    """Return the first flight of a real client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    for attribute, value in versions.items():
        setattr(context, attribute, value)
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def vector(width, data):
    return len(data).to_bytes(width, "big") + data


def records(message, size=1 << 14, version=b"\3\1"):
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16" + version + vector(2, piece) for piece in pieces)


def sni(name, kind=0):
    return vector(2, bytes([kind]) + vector(2, name))


def extension(kind, content):
    return kind.to_bytes(2, "big") + vector(2, content)


NAMED = extension(0, sni(b"a.example"))


def hello(extensions=NAMED, *, session=b"", suites=b"\x13\x01", methods=b"\0", version=b"\3\3"):
    tail = b"" if extensions is None else vector(2, extensions)
    body = version + bytes(32) + vector(1, session) + vector(2, suites) + vector(1, methods) + tail
    return b"\1" + vector(3, body)


REAL = openssl()


@pytest.mark.parametrize(
    ("flight", "name"),
    [
        (REAL, NAME),
        (openssl("API.Example.Org"), NAME),
        (openssl(None), None),
        (openssl("192.0.2.1"), None),  # RFC 6066: no address is a server's name
        (openssl(maximum_version=ssl.TLSVersion.TLSv1_2), NAME),
        (openssl(minimum_version=ssl.TLSVersion.TLSv1_3), NAME),
    ],
)
def test_a_real_client_is_understood(flight, name):
    assert read_client_hello(flight).server_name == name


@pytest.mark.parametrize("size", [1, 3, 4, 5, 100, len(REAL)])
def test_fragments_are_put_together(size):
    message = REAL[5:]
    assert read_client_hello(records(message, size)[:MAX_HELLO]).server_name == NAME


def test_every_beginning_is_one_and_what_follows_is_not_looked_at():
    assert all(read_client_hello(REAL[:size]) is None for size in range(len(REAL)))
    assert read_client_hello(REAL + b"anything").server_name == NAME


@given(st.integers(0, 60), st.integers(1, 40), st.binary(max_size=50))
def test_the_answer_does_not_depend_on_how_it_is_cut(cut, size, more):
    flight = records(hello(), size)
    assert read_client_hello(flight[:cut]) is None
    assert read_client_hello(flight + more) == read_client_hello(records(hello()))


def test_a_name_of_253_characters_is_the_longest():
    assert read_client_hello(records(hello(extension(0, sni(b"a" * 253))))).server_name == "a" * 253


@pytest.mark.parametrize("version", [b"\3\1", b"\3\3"])
def test_a_record_has_one_of_two_versions(version):
    assert read_client_hello(records(hello(), version=version)).server_name == "a.example"


@pytest.mark.parametrize("extensions", [None, b"", extension(0x0A0A, b""), extension(0xFE0D, b"encrypted")])
def test_a_name_may_be_absent(extensions):
    assert read_client_hello(records(hello(extensions))).server_name is None


def test_of_an_encrypted_hello_the_outer_name_is_seen():
    both = extension(0, sni(b"outer.example")) + extension(0xFE0D, b"\0 inner.example")
    assert read_client_hello(records(hello(both))).server_name == "outer.example"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\n", "type 71"),
        (b"SSH-2.0-x\r\n", "type 83"),
        (b"\x80\x2e\1\0\2", "type 128"),  # SSL 2
        (b"\x17\3\3\0\1x", "type 23"),
        (b"\x16\3\0\0\1\1", "version 0300"),
        (b"\x16\3\4\0\1\1", "version 0304"),
        (b"\x16\3\1\0\0", "0 bytes"),
        (b"\x16\3\1\x40\1", "16385 bytes"),
        (records(b"\2" + hello()[1:]), "type 2"),
        (records(hello()[:10]) + b"\x15\3\3\0\2\1\0", "type 21"),
        (records(b"\1\xff\xff\xff"), "16777219 bytes"),
        (records(b"\1" + vector(3, bytes(MAX_HELLO - 3))), "16385 bytes"),
        (records(hello(version=b"\3\1")), "legacy_version is 0301"),
        (records(hello(version=b"\3\4")), "legacy_version is 0304"),
        (records(hello(session=bytes(33))), "more than 32"),
        (records(hello(suites=b"")), "cipher suites have 0"),
        (records(hello(suites=b"\0\1\2")), "cipher suites have 3"),
        (records(hello(methods=b"\1")), "lack null"),
        (records(hello(methods=b"")), "lack null"),
        (records(b"\1" + vector(3, hello()[4:] + b"x")), "1 bytes follow"),
        (records(b"\1" + vector(3, hello()[4:-1])), "are left"),
        (records(b"\1\0\0\1\3"), "are left"),
        (records(hello(extension(0, sni(b"a")) * 2)), "extension 0 is there twice"),
        (records(hello(extension(5, b"") * 2)), "extension 5 is there twice"),
        (records(hello(b"\0")), "are left"),
        (records(hello(b"\0\0\0\5x")), "are left"),
        (records(hello(extension(0, b""))), "are left"),  # an empty server_name is a server's word
        (records(hello(extension(0, sni(b"")))), "name is none"),
        (records(hello(extension(0, sni(b"a" * 254)))), "name is none"),
        (records(hello(extension(0, sni("ä".encode())))), "name is none"),
        (records(hello(extension(0, sni(b"a", kind=1)))), "name is none"),
        (records(hello(extension(0, vector(2, b"\0\0\1a\0\0\1b")))), "4 bytes follow"),
        (records(hello(extension(0, sni(b"a") + b"x"))), "1 bytes follow"),
    ],
)
def test_what_is_no_client_hello_is_refused(data, said):
    with pytest.raises(FormatError) as refused:
        read_client_hello(data)
    assert said in refused.value.message


def test_it_is_refused_as_soon_as_it_can_be():
    for size in range(1, 3):
        with pytest.raises(FormatError):
            read_client_hello(b"GE"[:size])


def test_one_that_does_not_end_is_refused():
    endless = records(b"\1" + vector(3, bytes(MAX_HELLO // 2)), size=1)
    assert read_client_hello(endless[: MAX_HELLO - 1]) is None
    with pytest.raises(FormatError) as refused:
        read_client_hello(endless[:MAX_HELLO])
    assert "more than 16384 bytes" in refused.value.message


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_refusal(data):
    for given_bytes in (data, REAL[:40] + data, records(b"\1" + vector(3, data)) if data else data):
        try:
            read_client_hello(given_bytes)
        except FormatError:
            continue
