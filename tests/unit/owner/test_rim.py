# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import CvmError, FormatError, VerificationError
from cvmtool.owner.checks import NotGenuineError
from cvmtool.owner.rim import MAX_MANIFEST, ReferenceManifest, verify_manifest
from tests.fakes.nvidia import DAY, MEASUREMENTS, NOW, FakeNvidia, issue
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
        re.sub(rb"<ds:KeyInfo>.*</ds:KeyInfo>", b"", GOOD, flags=re.DOTALL),
    ],
    ids=["nothing", "broken", "bare", "large", "entity", "certificates", "without certificates"],
)
def test_what_is_no_manifest_is_refused(document):
    with pytest.raises(FormatError):
        verify_manifest(document, NOW, root=ROOT)


def test_signed_nonsense_is_refused():
    for override in ({}, {8: []}):
        with pytest.raises(FormatError):
            verify_manifest(NVIDIA.manifest("1", (), override=override), NOW, root=ROOT)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_the_same_way(data):
    with pytest.raises((FormatError, NotGenuineError)):
        verify_manifest(data, NOW, root=ROOT)


def test_nobody_else_makes_one():
    with pytest.raises(TypeError):
        ReferenceManifest(product="GH100", version="1", measurements={}, chain=None, token=None)


@pytest.mark.vectors
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
