# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import re
import sys
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError, CvmError, FormatError, VerificationError
from cvmtool.owner.checks import NotGenuineError
from cvmtool.owner.rim import MAX_MANIFEST, ReferenceManifest, verify_manifest
from tests.fakes.nvidia import DAY, MEASUREMENTS, NOW, FakeNvidia, issue, resource, swid
from tests.vectors import need, read

NVIDIA = FakeNvidia()
ROOT = NVIDIA.roots.manifests
GOOD = NVIDIA.manifest("550.90.07", (8, 22))


def test_a_manifest_states_its_version_and_measurements():
    found = verify_manifest(GOOD, NOW, root=ROOT)
    assert (found.product, found.version) == ("GH100", "550.90.07")
    assert found.measurements == {number: frozenset({MEASUREMENTS[number]}) for number in (8, 22)}


def test_alternatives_are_all_right():
    document = NVIDIA.manifest("1", (8,), override={9: [b"x" * 48, b"y" * 48]})
    assert verify_manifest(document, NOW, root=ROOT).measurements[9] == {b"x" * 48, b"y" * 48}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'colloquialVersion="550.90.07"', b'colloquialVersion="550.90.08"'),
        (bytes.fromhex("08" * 48).hex().encode(), bytes(48).hex().encode()),
        (b'active="True"', b'active="False"'),
        (b'product="GH100"', b'product="GB100"'),
    ],
    ids=["version", "value", "switched off", "product"],
)
def test_a_change_breaks_the_signature(old, new):
    assert old in GOOD
    with pytest.raises(NotGenuineError, match="signature"):
        verify_manifest(GOOD.replace(old, new, 1), NOW, root=ROOT)


def test_another_root_signs_nothing_here():
    other = FakeNvidia()
    with pytest.raises(NotGenuineError, match="nvidia's root"):
        verify_manifest(other.manifest("1", (8,)), NOW, root=ROOT)
    with pytest.raises(NotGenuineError, match="nvidia's root"):
        verify_manifest(GOOD, NOW)


def test_a_stranger_with_nvidias_certificates_inside_is_refused():
    stranger = issue("A stranger", ca=False)
    with pytest.raises(VerificationError):
        verify_manifest(NVIDIA.manifest("1", (8,), signer=stranger), NOW, root=ROOT)


def test_a_signer_that_has_expired_is_refused():
    with pytest.raises(NotGenuineError, match="valid at"):
        verify_manifest(GOOD, NOW + 901 * DAY, root=ROOT)


def test_what_is_wrapped_around_a_signed_manifest_is_not_read():
    """XML signature wrapping: the signed element is moved aside, another takes its place."""
    signature = re.search(rb"<ds:Signature .*</ds:Signature>", GOOD, re.DOTALL).group()
    forged = GOOD.replace(signature, b"").replace(b"550.90.07", b"999.99.99")
    for document in (
        forged.replace(b"</SoftwareIdentity>", signature + b"</SoftwareIdentity>"),
        forged.replace(b"</SoftwareIdentity>", GOOD + b"</SoftwareIdentity>"),
        forged.replace(b"</SoftwareIdentity>", signature + GOOD + b"</SoftwareIdentity>"),
        b"<Outer>" + GOOD + b"</Outer>",
    ):
        with pytest.raises(CvmError):
            verify_manifest(document, NOW, root=ROOT)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<",
        b"<a/>",
        b"x" * (MAX_MANIFEST + 1),
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
        re.sub(rb"<ds:X509Certificate>[^<]*", b"<ds:X509Certificate>!", GOOD),
        re.sub(rb"<ds:X509Certificate>", b"<ds:X509Certificate>!", GOOD),
        re.sub(rb"<ds:X509Certificate>[^<]*</ds:X509Certificate>", b"<ds:X509Certificate/>", GOOD),
        re.sub(rb"<ds:KeyInfo>.*</ds:KeyInfo>", b"", GOOD, flags=re.DOTALL),
    ],
    ids=[
        "nothing",
        "broken",
        "bare",
        "large",
        "entity",
        "certificates",
        "a stray character",
        "empty certificates",
        "without certificates",
    ],
)
def test_what_is_no_manifest_is_refused(document):
    with pytest.raises(FormatError):
        verify_manifest(document, NOW, root=ROOT)


META = 'product="GH100" colloquialVersion="1"'
ROW = resource(7, b"x" * 48)


def read_signed(document):
    return verify_manifest(NVIDIA.sign(document), NOW, root=ROOT)


def test_the_least_manifest_is_read():
    assert read_signed(swid(META, ROW)).measurements == {8: {b"x" * 48}}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (swid(META), "states no measurement"),
        (swid(META, resource(7, b"x" * 48, active="False")), "states no measurement"),
        (swid(META, resource(7)), "without a value"),
        (swid(META, ROW, resource(7, b"y" * 48)), "index 7 twice"),
        (swid(META, ROW, resource(7, b"x" * 48, active="False")), "index 7 twice"),
        (swid(META, resource(7, b"x" * 48, active="true")), "active 'true'"),
        (swid(META, resource(7, b"x" * 48, active="")), "active ''"),
        (swid(META, resource(7, b"x" * 47)), "reference measurement 7"),
        (swid(META, resource(7, b"x" * 48, alternatives=2)), "reference measurement 7"),
        (swid(META, resource(7, b"x" * 48, alternatives=65)), "alternatives is '65'; a number up to 64"),
        (swid(META, resource(254, b"x" * 48)), "index is '254'; a number up to 253"),
        (swid(META, resource("-1", b"x" * 48)), "index is '-1'"),
        (swid(META, resource("", b"x" * 48)), "index is ''"),
        (swid(META, resource("\u0667", b"x" * 48)), "a number up to 253"),
        (swid(META, resource("00007", b"x" * 48)), "a number up to 253"),
        (swid(META, *(resource(index, b"x" * 48) for index in [*range(254), 0])), "has 255 entries; at most 254"),
        (swid('product="GH100"', ROW), "colloquialVersion is ''"),
        (swid(f'product="{"G" * 65}" colloquialVersion="1"', ROW), "product is 'GGG"),
        (swid('product="GH\u00e9" colloquialVersion="1"', ROW), "product is"),
        (swid('product="GH&#10;" colloquialVersion="1"', ROW), "product is"),
        (swid(META, ROW, more="<n:Meta/>"), "has 2 Meta and 1 Payload; one each"),
        (swid(META, ROW, more="<n:Payload/>"), "has 1 Meta and 2 Payload; one each"),
        (swid(META, ROW, root="SoftwareLibrary"), "does not cover a SoftwareIdentity"),
    ],
)
def test_signed_nonsense_is_refused(document, words):
    with pytest.raises(FormatError, match=re.escape(words)):
        read_signed(document)


def test_the_bounds_are_inside():
    digests = [bytes([number]) * 48 for number in range(64)]
    found = read_signed(
        swid(f'product="{"G" * 64}" colloquialVersion="1"', resource(253, *digests), resource(0, *digests))
    )
    assert set(found.measurements) == {254, 1}
    assert len(found.measurements[254]) == 64


@pytest.mark.parametrize("size", [MAX_MANIFEST, MAX_MANIFEST + 1])
def test_a_manifest_has_a_largest_size(size):
    words = "is not XML" if size == MAX_MANIFEST else "at most 1048576"
    with pytest.raises(FormatError, match=words):
        verify_manifest(b" " * size, NOW, root=ROOT)


def test_a_manifest_may_state_every_index():
    assert len(read_signed(swid(META, *(resource(index, b"x" * 48) for index in range(254)))).measurements) == 254
    padded = resource("0007", b"x" * 48)
    assert set(read_signed(swid(META, padded)).measurements) == {8}


def test_a_chain_in_a_manifest_has_two_to_eight_certificates():
    root = issue("One root")
    pin = root.certificate.fingerprint(SHA256())
    signer = issue("Its signer", root, ca=False)
    document = NVIDIA.sign(swid(META, ROW), signer=signer, certificates=[signer, root])
    assert verify_manifest(document, NOW, root=pin).version == "1"
    chain = [issue("A root of nine")]
    for depth in range(8):
        chain.insert(0, issue(f"Number {depth}", chain[0], ca=depth < 7))
    for count, chosen in ((9, chain), (1, chain[-1:])):
        nine = NVIDIA.sign(swid(META, ROW), signer=chosen[0], certificates=chosen)
        with pytest.raises(FormatError, match=f"has {count} certificates; 2 to 8"):
            verify_manifest(nine, NOW, root=pin)
    eight = NVIDIA.sign(swid(META, ROW), signer=chain[1], certificates=chain[1:])
    assert verify_manifest(eight, NOW, root=chain[-1].certificate.fingerprint(SHA256()))


def test_without_the_library_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "signxml.verifier", None)
    with pytest.raises(ConfigError, match="signxml is not installed") as caught:
        verify_manifest(GOOD, NOW, root=ROOT)
    assert "cvmtool[gpu]" in caught.value.hint


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_the_same_way(data):
    with pytest.raises((FormatError, NotGenuineError)):
        verify_manifest(data, NOW, root=ROOT)


def test_nobody_else_makes_one():
    with pytest.raises(TypeError):
        ReferenceManifest(product="GH100", version="1", measurements={}, chain=None, token=None)


@pytest.mark.nvidia
@pytest.mark.parametrize(
    ("name", "version", "count"),
    [("Driver_RIM_test_no_gpu", "545.00", 21), ("1010_0200_882_96005E0001_test_no_gpu", "96.00.5E.00.01", 12)],
)
def test_nvidias_own_manifests(name, version, count):
    need()
    document = read(f"nvidia/{name}.swidtag")
    found = verify_manifest(document, datetime(2024, 9, 1, tzinfo=UTC))
    assert (found.product, found.version, len(found.measurements)) == ("GH100", version, count)
    with pytest.raises(NotGenuineError, match="valid until 2025"):
        verify_manifest(document, NOW)
