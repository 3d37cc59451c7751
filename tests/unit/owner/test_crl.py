# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
from datetime import UTC, datetime
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.dryrun import x509
from cvmtool.errors import FormatError
from cvmtool.owner.certificate import parse_certificate, rsa_key
from cvmtool.owner.crl import parse_crl, signed_by_root
from tests import fakes


def test_reads_and_verifies(genoa):
    root = parse_certificate(genoa.ark)
    crl = parse_crl(genoa.crl(revoke_ask=True))
    assert crl.revoked == {0x20001}
    assert parse_crl(genoa.crl()).revoked == frozenset()
    assert signed_by_root(crl, root, rsa_key(root.spki))
    assert not signed_by_root(crl, parse_certificate(genoa.ask), rsa_key(root.spki))
    other = parse_certificate(fakes.fake_amd().ask)
    assert not signed_by_root(crl, root, rsa_key(other.spki))


def swapped(old, new):
    der = fakes.fake_amd().crl(revoke_ask=True)
    assert old in der
    return der.replace(old, new)


NOW = datetime.now(UTC).replace(microsecond=0)


def entry(serial, *extensions, more=b""):
    tail = x509._extensions(extensions) if extensions else b""
    return x509.sequence(x509.integer(serial), x509.time(NOW), tail, more)


EXTENSION = x509.sequence(x509.oid("2.5.29.20"), x509.octets(x509.integer(1)))


VERSION, NEXT_UPDATE = x509.integer(1), x509.time(NOW)


def by_hand(*, version=VERSION, next_update=NEXT_UPDATE, entries=b"", extensions=(), tail=b""):
    """A list with any part replaced; parsing does not look at the signature."""
    tail = x509.tlv(0xA0, x509._extensions(extensions)) if extensions else tail
    issuer = x509.name("ARK-Genoa")
    body = x509.sequence(version, x509._PSS, issuer, x509.time(NOW), next_update, entries, tail)
    return x509.sequence(body, x509._PSS, x509.bits(bytes(512)))


def test_a_list_made_by_hand_is_read():
    listed = x509.sequence(entry(5), entry(7, ("2.5.29.21", False, b"x")))
    assert parse_crl(by_hand(entries=listed, extensions=(("2.5.29.20", False, x509.integer(1)),))).revoked == {5, 7}
    assert parse_crl(by_hand()).revoked == frozenset()


@pytest.mark.parametrize(
    ("der", "said"),
    [
        (lambda: swapped(bytes.fromhex("0609608648016503040202"), bytes.fromhex("0609608648016503040201")), "crl"),
        (lambda: fakes.fake_amd().crl() + b"\0", "1 bytes too many"),
        (lambda: fakes.fake_amd().crl()[:-1], "der element"),
        (lambda: bytes((64 << 10) + 1), "crl has 65537 bytes"),
        (lambda: bytes(64 << 10), "crl has 0x00 at byte 0"),
        (lambda: swapped(x509.integer(0x20001), b"\x02\x03\x82\x00\x01"), "not negative"),
        (lambda: by_hand(extensions=(("2.5.29.27", True, x509.integer(1)),)), "extension 2.5.29.27 is critical"),
        (lambda: by_hand(next_update=b""), "no next update"),
        (lambda: by_hand(version=b""), "crl has 0x30"),
        (lambda: by_hand(version=x509.integer(0)), "crl version is not 2"),
        (lambda: by_hand(version=x509.integer(2)), "crl version is not 2"),
        (lambda: by_hand(entries=x509.sequence(*(entry(n) for n in range(1, 1026)))), "more than 1024 entries"),
        (
            lambda: by_hand(entries=x509.sequence(entry(5, ("2.5.29.29", True, b"x")))),
            "extension 2.5.29.29 is critical",
        ),
        (lambda: by_hand(entries=x509.sequence(entry(5, ("2.5.29.21", False, b"x"), more=b"\0"))), "1 bytes too many"),
        (lambda: by_hand(tail=x509.tlv(0xA0, x509.sequence(EXTENSION), b"\0")), "1 bytes too many"),
        (lambda: by_hand(tail=x509.tlv(0xA0, x509.sequence(EXTENSION)) + b"\0"), "1 bytes too many"),
    ],
)
def test_one_wrong_part_is_refused(der, said):
    with pytest.raises(FormatError, match=said):
        parse_crl(der())


def test_the_longest_list_is_read():
    assert len(parse_crl(by_hand(entries=x509.sequence(*(entry(n) for n in range(1, 1025))))).revoked) == 1024


@given(st.binary(max_size=60))
def test_any_bytes_give_a_list_or_format_error(data):
    with contextlib.suppress(FormatError):
        parse_crl(data)


@cache
def whole() -> bytes:
    return fakes.fake_amd().crl(revoke_ask=True)


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_gives_a_list_or_format_error(damage):
    der = bytearray(whole())
    for position, value in damage:
        der[position % len(der)] = value
    with contextlib.suppress(FormatError):
        parse_crl(bytes(der))
