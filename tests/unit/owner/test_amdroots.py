# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from cvmtool.errors import ConfigError
from cvmtool.formats.tcb import ProductLine
from cvmtool.owner.amdroots import AMD_ROOTS, AmdRoots, SimulatedRoot
from cvmtool.owner.certificate import parse_certificate, rsa_key, signed_by, split_certificates
from tests import vectors


@pytest.mark.vectors
@pytest.mark.parametrize("line", ProductLine)
def test_the_pins_are_those_of_amds_own_files(line):
    for vlek in (False, True):
        found = [parse_certificate(der) for der in split_certificates(vectors.chain(line.value, vlek=vlek))]
        (root,) = [certificate for certificate in found if certificate.common_name == f"ARK-{line}"]
        assert AmdRoots().accepts(line, root.fingerprint)
        # `chain` relies on this: it does not compute the signature of a pinned root on itself again.
        assert root.issuer == root.subject
        assert signed_by(rsa_key(root.spki), root.signature, root.signed)


def test_a_pin_belongs_to_its_own_line():
    assert not AmdRoots().accepts(ProductLine.MILAN, AMD_ROOTS[ProductLine.GENOA])


def test_amds_roots_take_nothing_else():
    with pytest.raises(TypeError):
        AmdRoots(b"\1" * 32)
    assert AmdRoots().simulated is False


def test_what_is_required_is_said():
    pin = "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"
    assert AmdRoots().describe(ProductLine.GENOA) == f"amd's ARK-Genoa, {pin}"


def test_a_simulated_root_is_one_fingerprint():
    root = SimulatedRoot(b"\1" * 32)
    assert root.simulated
    assert root.accepts(ProductLine.GENOA, b"\1" * 32)
    assert not root.accepts(ProductLine.GENOA, b"\2" * 32)


@pytest.mark.parametrize("fingerprint", [b"", bytes(31), *AMD_ROOTS.values()])
def test_a_real_root_cannot_pass_for_a_simulated_one(fingerprint):
    with pytest.raises(ConfigError):
        SimulatedRoot(fingerprint)
