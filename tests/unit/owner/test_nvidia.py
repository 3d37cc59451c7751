# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from cvmtool.errors import FormatError
from cvmtool.owner.checks import NotGenuineError
from cvmtool.owner.nvidia import DEVICE_ROOT, RIM_ROOT, parse_chain, verify_chain
from tests.fakes.nvidia import DAY, FIRMWARE_ID, NOW, TCB_INFO, FakeNvidia, issue
from tests.vectors import need, read

NVIDIA = FakeNvidia()


def verify(*issued, root=None, at=NOW):
    return verify_chain([one.certificate for one in issued], root or NVIDIA.roots.device, at, what="gpu-chain")


def test_a_chain_to_the_pinned_root_says_which_chip_and_device():
    gpu = NVIDIA.gpu()
    chain = verify(gpu.leaf, gpu.brom, NVIDIA.identity, NVIDIA.device_root)
    assert (chain.chip, chain.device, chain.firmware_id) == ("GH100", "41431d480fe5e87274", FIRMWARE_ID)


def test_another_root_is_refused_though_every_signature_holds():
    other = FakeNvidia()
    gpu = other.gpu()
    with pytest.raises(NotGenuineError, match="nvidia's root"):
        verify(gpu.leaf, gpu.brom, other.identity, other.device_root)


def test_a_missing_link_is_refused():
    gpu = NVIDIA.gpu()
    with pytest.raises(NotGenuineError, match="not signed by the next"):
        verify(gpu.leaf, NVIDIA.identity, NVIDIA.device_root)


def test_who_is_no_authority_signs_nothing():
    gpu = NVIDIA.gpu()
    below = issue("A leaf of a leaf", gpu.leaf, ca=False)
    with pytest.raises(NotGenuineError, match="without authority"):
        verify(below, gpu.leaf, gpu.brom, NVIDIA.identity, NVIDIA.device_root)


def test_a_path_that_is_too_long_is_refused():
    short = issue("A short one", NVIDIA.device_root, path=0)
    middle = issue("A middle", short)
    leaf = issue("A leaf", middle, ca=False)
    with pytest.raises(NotGenuineError, match="A short one without authority"):
        verify(leaf, middle, short, NVIDIA.device_root)


SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("at", "valid"),
    [
        (NOW - 900 * DAY, True),
        (NOW - 900 * DAY - SECOND, False),
        (NOW + 900 * DAY, True),
        (NOW + 900 * DAY + SECOND, False),
    ],
)
def test_a_certificate_counts_while_it_is_valid(at, valid):
    gpu = NVIDIA.gpu()
    links = (gpu.leaf, gpu.brom, NVIDIA.identity, NVIDIA.device_root)
    if valid:
        assert verify(*links, at=at)
    else:
        with pytest.raises(NotGenuineError, match="valid at"):
            verify(*links, at=at)


NO_SIGNING = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=False, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
BROKEN = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.15"), b"nonsense")


@pytest.mark.parametrize(
    ("middle", "words"),
    [
        ({"ca": False, "extensions": [(x509.BasicConstraints(ca=False, path_length=None), True)]}, "without authority"),
        ({"extensions": [(NO_SIGNING, True)]}, "without authority"),
        ({"extensions": [(UNKNOWN, True)]}, r"critical extension \['1.2.3.4'\]"),
    ],
    ids=["no authority", "may not sign", "an unknown critical extension"],
)
def test_an_intermediate_that_may_not_sign_is_refused(middle, words):
    between = issue("Between", NVIDIA.device_root, **middle)
    with pytest.raises(NotGenuineError, match=words):
        verify(issue("A leaf", between, ca=False), between, NVIDIA.device_root)


def test_an_unknown_extension_that_is_not_critical_is_left_alone():
    between = issue("Between", NVIDIA.device_root, extensions=[(UNKNOWN, False)])
    assert verify(issue("A leaf", between, ca=False), between, NVIDIA.device_root)


def test_a_leaf_with_an_unknown_critical_extension_is_refused():
    leaf = issue("A leaf", NVIDIA.device_root, ca=False, extensions=[(UNKNOWN, True)])
    with pytest.raises(NotGenuineError, match="critical extension"):
        verify(leaf, NVIDIA.device_root)


def test_extensions_that_cannot_be_read_are_refused():
    leaf = issue("A leaf", NVIDIA.device_root, ca=False, extensions=[(BROKEN, False)])
    with pytest.raises(FormatError, match="gpu-chain: a certificate cannot be read"):
        verify(leaf, NVIDIA.device_root)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("a003020102", "a00302011d"),
        ("06072a8648ce3d0201", "06072a8648ce3d027f"),
        ("06082a8648ce3d040303", "06082a8648ce3d04037f"),
        ("0603550403", "0603550483"),
    ],
    ids=["a version", "a kind of key", "a kind of signature", "an attribute"],
)
def test_a_certificate_with_what_the_library_does_not_know_is_refused(old, new):
    known = issue("A leaf", NVIDIA.device_root, ca=False).certificate.public_bytes(Encoding.DER)
    odd = known.replace(bytes.fromhex(old), bytes.fromhex(new))
    assert odd != known
    pem = f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(odd).decode()}\n-----END CERTIFICATE-----\n"
    root = NVIDIA.device_root.certificate.public_bytes(Encoding.PEM)
    with pytest.raises(FormatError):
        verify_chain(parse_chain(pem.encode() + root), NVIDIA.roots.device, NOW, what="gpu-chain")


@pytest.mark.parametrize(("path", "below", "allowed"), [(0, 0, True), (0, 1, False), (1, 1, True), (1, 2, False)])
def test_a_path_is_as_long_as_its_authority_says(path, below, allowed):
    chain = [issue("Bounded", NVIDIA.device_root, path=path), NVIDIA.device_root]
    for depth in range(below):
        chain.insert(0, issue(f"Number {depth}", chain[0]))
    chain.insert(0, issue("A leaf", chain[0], ca=False))
    if allowed:
        assert verify(*chain)
    else:
        with pytest.raises(NotGenuineError, match="Bounded without authority"):
            verify(*chain)


@pytest.mark.parametrize(
    ("name", "chip"),
    [("GH100 A01", "GH100"), ("GB100", "GB100"), ("G\u00e9100 A01", ""), ("G\n", ""), ("G" * 64, "G" * 64)],
)
def test_a_chip_has_a_plain_name(name, chip):
    assert verify(issue(name, NVIDIA.device_root, ca=False), NVIDIA.device_root).chip == chip


def test_a_certificate_without_a_serial_number_names_no_device():
    between = issue("Between", NVIDIA.device_root)
    assert verify(issue("A leaf", between, ca=False), between, NVIDIA.device_root).device == ""


def test_firmware_that_is_cut_short_is_none():
    names_nothing = x509.UnrecognizedExtension(TCB_INFO, b"\x04\x30" + bytes(96))
    elsewhere = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("1.2.3.4"), bytes.fromhex("060960864801650304020204 30") + FIRMWARE_ID
    )
    for extension in (names_nothing, elsewhere):
        leaf = issue("A leaf", NVIDIA.device_root, ca=False, extensions=[(extension, False)])
        assert verify(leaf, NVIDIA.device_root).firmware_id is None
    for firmware, found in ((FIRMWARE_ID + b"more", FIRMWARE_ID), (FIRMWARE_ID[:-1], None), (None, None)):
        leaf = issue("A leaf", NVIDIA.device_root, ca=False, firmware=firmware)
        assert verify(leaf, NVIDIA.device_root).firmware_id == found


def test_an_rsa_key_signs_no_report():
    key = rsa.generate_private_key(65_537, 2048)
    leaf = issue("A leaf", NVIDIA.device_root, ca=False, key=key)
    with pytest.raises(FormatError, match="P-384"):
        _ = verify(leaf, NVIDIA.device_root).key


def test_a_key_on_another_curve_signs_no_report():
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    gpu = NVIDIA.gpu()
    odd = (
        x509.CertificateBuilder()
        .subject_name(gpu.leaf.certificate.subject)
        .issuer_name(gpu.brom.certificate.subject)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(7)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .sign(gpu.brom.key, hashes.SHA384())
    )
    chain = verify_chain(
        [odd, *(one.certificate for one in (gpu.brom, NVIDIA.identity, NVIDIA.device_root))],
        NVIDIA.roots.device,
        NOW,
        what="gpu-chain",
    )
    with pytest.raises(FormatError, match="P-384"):
        _ = chain.key


@pytest.mark.parametrize("pem", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_chain_is_refused(pem):
    with pytest.raises(FormatError):
        parse_chain(pem)


def test_a_chain_has_two_to_eight_certificates():
    one = NVIDIA.device_root.certificate.public_bytes(Encoding.PEM)
    for count in (1, 9):
        with pytest.raises(FormatError, match=str(count)):
            parse_chain(one * count)
    assert [len(parse_chain(one * count)) for count in (2, 8)] == [2, 8]


@pytest.mark.nvidia
def test_nvidias_own_sample():
    need()
    chain = verify_chain(
        parse_chain(read("nvidia/hopperCertChain.txt")),
        DEVICE_ROOT,
        datetime(2026, 11, 1, tzinfo=UTC),
        what="gpu-chain",
    )
    assert (chain.chip, chain.device) == ("GH100", "41431d480fe5e87274")
    assert chain.firmware_id is not None


@pytest.mark.nvidia
def test_the_pins_are_those_of_nvidias_roots():
    from cryptography.hazmat.primitives import hashes

    need()
    for name, pin in (("device", DEVICE_ROOT), ("RIM", RIM_ROOT)):
        root = x509.load_pem_x509_certificate(read(f"nvidia/verifier_{name}_root.pem"))
        assert root.fingerprint(hashes.SHA256()) == pin
