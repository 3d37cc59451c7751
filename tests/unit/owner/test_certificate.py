# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Our reader against the library's, and one wrong field at a time."""

import base64
import contextlib
import warnings
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509 as library
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvmtool.dryrun import x509
from cvmtool.errors import FormatError
from cvmtool.owner import certificate
from cvmtool.owner.certificate import (
    amd_common_name,
    p384_key,
    parse_certificate,
    rsa_key,
    signed_by,
    split_certificates,
)
from tests import fakes, vectors
from tests.fuzz.mutate import read_der, write_der


def spki(key):
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.vectors
def test_reads_what_the_library_reads():
    folder = vectors.need()
    blobs = [path.read_bytes() for path in (*folder.glob("*/*.vek.der"), *folder.glob("amd-roots/*.pem"))]
    ders = {der for blob in blobs for der in split_certificates(blob)}
    assert len(ders) >= 25
    for der in ders:
        ours = parse_certificate(der)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library objects to serial number 0
            theirs = library.load_der_x509_certificate(der)
            assert ours.serial == theirs.serial_number
        assert ours.signed == theirs.tbs_certificate_bytes
        assert ours.signature == theirs.signature
        assert ours.subject == theirs.subject.public_bytes()
        assert ours.issuer == theirs.issuer.public_bytes()
        assert ours.not_before == theirs.not_valid_before_utc
        assert ours.not_after == theirs.not_valid_after_utc
        assert ours.spki == spki(theirs.public_key())
        assert {oid: e.critical for oid, e in ours.extensions.items()} == {
            e.oid.dotted_string: e.critical for e in theirs.extensions
        }


def test_reads_its_own_and_verifies_it(genoa):
    ark, ask = parse_certificate(genoa.ark), parse_certificate(genoa.ask)
    assert (ark.common_name, ask.common_name) == ("ARK-Genoa", "SEV-Genoa")
    assert signed_by(rsa_key(ark.spki), ask.signature, ask.signed)
    assert not signed_by(rsa_key(ask.spki), ask.signature, ask.signed)


def test_a_name_that_is_not_amds_has_no_common_name():
    name = x509.name("ARK-Genoa")
    assert amd_common_name(name) == "ARK-Genoa"
    assert amd_common_name(name.replace(b"Micro", b"Macro")) is None
    assert amd_common_name(x509.sequence()) is None


def test_the_name_in_der_is_the_name_in_text():
    assert certificate._name_parts(certificate._AMD_RDNS) == certificate._AMD_NAME


def test_a_name_in_other_string_types_is_the_same_name():
    rdns = certificate._AMD_RDNS.replace(b"\x0c", b"\x13") + bytes.fromhex("310c300a06035504030c03") + b"ARK"
    assert amd_common_name(bytes((0x30, len(rdns))) + rdns) == "ARK"
    assert amd_common_name(bytes((0x30, len(rdns))) + rdns.replace(b"\x13", b"\x0c")) == "ARK"
    with pytest.raises(FormatError):
        amd_common_name(bytes((0x30, len(certificate._AMD_RDNS) + 1)) + certificate._AMD_RDNS + b"1")


@pytest.mark.parametrize("text", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----"])
def test_neither_der_nor_pem_is_refused(text):
    with pytest.raises(FormatError):
        split_certificates(text)


def pem(der):
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def test_pem_holds_one_or_more(genoa):
    assert split_certificates(pem(genoa.ask) + pem(genoa.ark)) == (genoa.ask, genoa.ark)
    assert split_certificates(genoa.ark) == (genoa.ark,)
    with pytest.raises(FormatError):
        split_certificates(pem(genoa.ark) * 17)
    with pytest.raises(FormatError):
        split_certificates(pem(genoa.ark) + b"-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(FormatError):
        split_certificates(pem(genoa.ark).replace(b"MII", b"M=I", 1))


@pytest.mark.parametrize(
    ("blob", "said"),
    [
        (b"", "neither der nor pem"),
        (bytes((16 << 14) + 1), "certificates have 262145 bytes"),
        (bytes(16 << 14), "neither der nor pem"),
        (b"-----BEGIN CERTIFICATE-----\nMAA=\n", "neither der nor pem"),
        (b"-----BEGIN CERTIFICATE-----\nMAA\n-----END CERTIFICATE-----\n", "pem is not base64"),
    ],
    ids=["nothing", "too long", "as long as may be", "no end", "base64"],
)
def test_what_holds_no_certificate_is_refused(blob, said):
    with pytest.raises(FormatError, match=said):
        split_certificates(blob)


def test_sixteen_certificates_are_read(genoa):
    assert len(split_certificates(pem(genoa.ark) * 16)) == 16
    assert split_certificates(b"\x30" * (16 << 14)) == (b"\x30" * (16 << 14),)


def test_keys_of_another_kind_are_none():
    assert rsa_key(spki(rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key())) is None
    small = ec.generate_private_key(ec.SECP256R1()).public_key()
    right = ec.generate_private_key(ec.SECP384R1()).public_key()
    assert p384_key(spki(small)) is None
    assert rsa_key(spki(right)) is None
    assert p384_key(spki(right)) is not None
    assert p384_key(b"\x30\x00") is None


def made(extensions=(("1.2.3", False, b"x"),), **changes):
    """A certificate made by hand, with any part replaced."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    now = datetime.now(UTC).replace(microsecond=0)
    subject = x509.Subject(
        serial=0,
        common_name="SEV-VCEK",
        spki=spki(key),
        not_before=now,
        not_after=now + timedelta(days=1),
        extensions=extensions,
    )
    parts = fakes.fake_amd()._keys.ask
    der = x509.certificate(subject, "SEV-Genoa", parts)
    for old, new in changes.get("swap", ()):
        assert old in der
        der = der.replace(old, new)
    return der


SHA384 = bytes.fromhex("0609608648016503040202")
SHA256 = bytes.fromhex("0609608648016503040201")


@pytest.mark.parametrize(
    "der",
    [
        lambda: made(swap=[(SHA384, SHA256)]),
        lambda: made(swap=[(b"\xa2\x03\x02\x01\x30", b"\xa2\x03\x02\x01\x20")]),
        lambda: made(swap=[(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01")]),
        lambda: made(extensions=[("1.2.3", False, b"x"), ("1.2.3", False, b"y")]),
        lambda: made(extensions=[]),
        lambda: made(
            extensions=[("1.2.3", True, b"xyz")], swap=[(b"\x01\x01\xff\x04\x03xyz", b"\x01\x01\x00\x04\x03xyz")]
        ),
        lambda: made() + b"\0",
        lambda: made()[:-1],
        lambda: bytes((0x30,)) + bytes(1 << 15),
    ],
)
def test_one_wrong_part_is_refused(der):
    with pytest.raises(FormatError):
        parse_certificate(der())


def test_a_certificate_has_a_longest_size():
    with pytest.raises(FormatError, match="certificate has 16385 bytes; required: at most 16384"):
        parse_certificate(bytes((16 << 10) + 1))
    with pytest.raises(FormatError, match="certificate has 0x00 at byte 0"):
        parse_certificate(bytes(16 << 10))


def test_one_algorithm_inside_and_another_outside_is_refused(genoa):
    der = bytearray(genoa.ark)
    position = der.rindex(SHA384)
    der[position : position + len(SHA384)] = SHA256
    with pytest.raises(FormatError):
        parse_certificate(bytes(der))


@given(st.binary(max_size=60))
def test_any_bytes_give_a_certificate_or_format_error(data):
    with contextlib.suppress(FormatError):
        parse_certificate(data)
    with contextlib.suppress(FormatError):
        split_certificates(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_gives_a_certificate_or_format_error(damage):
    der = bytearray(fakes.fake_amd().ark)
    for position, value in damage:
        der[position % len(der)] = value
    with contextlib.suppress(FormatError):
        parsed = parse_certificate(bytes(der))
        assert parsed.der == bytes(der)


def inside(der, path, change):
    """The DER with the elements at a path of positions changed, and the lengths above put right."""
    nodes = elements = read_der(der)
    for step in path:
        elements = elements[step][1]
    change(elements)
    return write_der(nodes)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ((), "certificate has 2 bytes too many"),
        ((0,), "certificate has 2 bytes too many"),
        ((0, 0), "certificate has 2 bytes too many"),
        ((0, 0, 0), "certificate has 2 bytes too many"),
        ((0, 0, 4), "certificate has 2 bytes too many"),
        ((0, 0, 7), "certificate has 2 bytes too many"),
        ((0, 0, 7, 0, 0), "certificate has 2 bytes too many"),
        ((0, 0, 5, 0), "certificate name has 2 bytes too many"),
        ((0, 0, 5, 0, 0), "certificate name has 2 bytes too many"),
    ],
    ids=[
        "file",
        "outside",
        "signed",
        "version",
        "validity",
        "wrapper",
        "extension",
        "part of a name",
        "value of a part",
    ],
)
def test_nothing_may_follow_in_any_structure(path, said):
    changed = inside(made(), path, lambda elements: elements.append((5, b"")))
    with pytest.raises(FormatError, match=said):
        parse_certificate(changed)


def test_the_last_part_of_a_name_is_the_common_name():
    name = parse_certificate(made()).subject
    assert amd_common_name(name) == "SEV-VCEK"
    common, unit = bytes.fromhex("0603550403"), bytes.fromhex("060355040b")
    assert name.count(common) == 1
    assert amd_common_name(name.replace(common, unit)) is None
    assert amd_common_name(inside(name, (0,), lambda parts: parts.insert(0, parts[0]))) is None
    assert amd_common_name(inside(name, (0,), lambda parts: parts.pop())) is None
    assert amd_common_name(inside(name, (0,), lambda parts: parts.append(parts[-1]))) is None


def test_an_rsa_key_has_amds_size_and_exponent():
    amds = spki(fakes.fake_amd()._keys.ask.public_key())
    assert rsa_key(amds) is not None
    numbers = fakes.fake_amd()._keys.ask.public_key().public_numbers()
    assert rsa_key(spki(rsa.RSAPublicNumbers(3, numbers.n).public_key())) is None
    assert rsa_key(spki(rsa.RSAPublicNumbers(65537, numbers.n >> 8 | 1).public_key())) is None


def test_a_signature_holds_or_not(genoa):
    ask = parse_certificate(genoa.ask)
    key = rsa_key(parse_certificate(genoa.ark).spki)
    assert signed_by(key, ask.signature, ask.signed) is True
    assert signed_by(key, ask.signature, ask.signed + b"x") is False
