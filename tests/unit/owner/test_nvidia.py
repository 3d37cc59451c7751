# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cvmtool.errors import FormatError
from cvmtool.owner.checks import NotGenuineError
from cvmtool.owner.nvidia import DEVICE_ROOT, RIM_ROOT, parse_chain, verify_chain
from tests.fakes.nvidia import DAY, FIRMWARE_ID, NOW, FakeNvidia, issue
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


@pytest.mark.parametrize("at", [NOW - 901 * DAY, NOW + 901 * DAY])
def test_a_certificate_counts_while_it_is_valid(at):
    gpu = NVIDIA.gpu()
    with pytest.raises(NotGenuineError, match="valid at"):
        verify(gpu.leaf, gpu.brom, NVIDIA.identity, NVIDIA.device_root, at=at)


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
    assert len(parse_chain(one * 8)) == 8


@pytest.mark.vectors
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


@pytest.mark.vectors
def test_the_pins_are_those_of_nvidias_roots():
    from cryptography.hazmat.primitives import hashes

    need()
    for name, pin in (("device", DEVICE_ROOT), ("RIM", RIM_ROOT)):
        root = x509.load_pem_x509_certificate(read(f"nvidia/verifier_{name}_root.pem"))
        assert root.fingerprint(hashes.SHA256()) == pin
