# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from cvmtool.dryrun import x509
from cvmtool.errors import FormatError
from cvmtool.formats.report import SigningKey
from cvmtool.formats.tcb import ProductLine, Tcb
from cvmtool.owner.certificate import Extension, parse_certificate
from cvmtool.owner.vek import CSP_ID, HWID, PRODUCT_NAME, SPL, SPL_RESERVED, STRUCT_VERSION, parse_vek
from tests import fakes, vectors

GENOA = Tcb(line=ProductLine.GENOA, bootloader=10, tee=1, snp=27, microcode=200)
TURIN = Tcb(line=ProductLine.TURIN, fmc=1, bootloader=2, tee=3, snp=4, microcode=80)


def certificate(tcb=GENOA):
    amd = fakes.fake_amd(tcb.line)
    return parse_certificate(amd.vcek_certificate(amd.chip(), tcb))


def changed(base, changes):
    """The certificate with other extensions (None: without it); parsing does not look at the signature."""
    extensions = dict(base.extensions)
    for oid, value in changes.items():
        extensions.pop(oid, None)
        if value is not None:
            extensions[oid] = Extension(critical=False, value=value)
    return replace(base, extensions=extensions)


@pytest.mark.parametrize("tcb", [GENOA, TURIN])
def test_reads_chip_and_tcb(tcb):
    vek = parse_vek(certificate(tcb), tcb.line)
    assert vek.tcb == tcb
    assert vek.hwid == fakes.fake_amd(tcb.line).chip().hwid
    assert (vek.kind, vek.csp_id) == (SigningKey.VCEK, None)


def test_a_wrapped_identifier_is_unwrapped_and_a_raw_one_never_is():
    raw = b"\x04\x3e" + b"x" * 62  # 64 bytes that look like an OCTET STRING of 62
    base = certificate()
    assert parse_vek(changed(base, {HWID: raw}), ProductLine.GENOA).hwid == raw
    assert parse_vek(changed(base, {HWID: x509.octets(raw)}), ProductLine.GENOA).hwid == raw


@pytest.mark.parametrize(
    "changes",
    [
        {STRUCT_VERSION: x509.integer(1)},
        {STRUCT_VERSION: None},
        {PRODUCT_NAME: x509.ia5("x" * 257)},
        {PRODUCT_NAME: x509.ia5("\n")},
        {PRODUCT_NAME: x509.octets(b"Genoa")},
        {PRODUCT_NAME: None},
        {HWID: None},
        {HWID: b"x" * 63},
        {HWID: b"x" * 8},
        {HWID: x509.octets(b"x" * 63)},
        {CSP_ID: x509.ia5("cloud")},
        *({oid: None} for name, oid in SPL.items() if name != "fmc"),
        {SPL["snp"]: x509.integer(256)},
        {SPL["snp"]: x509.integer(1) + b"\0"},
        {SPL["fmc"]: x509.integer(0)},
        *({oid: None} for oid in SPL_RESERVED.values()),
        *({oid: x509.integer(1)} for oid in SPL_RESERVED.values()),
    ],
)
def test_one_wrong_extension_is_refused(changes):
    with pytest.raises(FormatError):
        parse_vek(changed(certificate(), changes), ProductLine.GENOA)


@pytest.mark.parametrize("changes", [{SPL["fmc"]: None}, {SPL_RESERVED["spl4"]: x509.integer(0)}, {HWID: b"x" * 64}])
def test_turin_has_its_own_extensions(changes):
    with pytest.raises(FormatError):
        parse_vek(changed(certificate(TURIN), changes), ProductLine.TURIN)


def test_an_unknown_extension_of_amds_is_passed_over():
    base = certificate()
    extra = changed(base, {"1.3.6.1.4.1.3704.1.99": b"\x02\x01\x01"})
    assert parse_vek(extra, ProductLine.GENOA) == parse_vek(base, ProductLine.GENOA)


def test_another_name_is_no_signing_key():
    with pytest.raises(FormatError):
        parse_vek(parse_certificate(fakes.fake_amd().ask), ProductLine.GENOA)


@pytest.mark.vectors
def test_a_real_vlek_names_its_provider():
    vector = vectors.report("aws-milan-v3-vlek")
    vek = parse_vek(parse_certificate(vector.vek), ProductLine.MILAN)
    assert vek.kind is SigningKey.VLEK
    assert vek.hwid is None
    assert "aws" in vek.csp_id
    assert vek.tcb.microcode == 217
