# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import re
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


def test_the_numbers_are_amds():
    arc = "1.3.6.1.4.1.3704.1."
    assert tuple(arc + number for number in "1245") == (STRUCT_VERSION, PRODUCT_NAME, HWID, CSP_ID)
    spls = {"fmc": "3.9", "bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}
    assert {name: arc + number for name, number in spls.items()} == SPL
    assert {f"spl{number}": f"{arc}3.{number}" for number in (4, 5, 6, 7)} == SPL_RESERVED


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({STRUCT_VERSION: x509.integer(1)}, "structVersion is 1; required: 0 on Genoa"),
        ({STRUCT_VERSION: None}, "lacks structVersion"),
        ({PRODUCT_NAME: x509.ia5("x" * 257)}, "at most 256 printable"),
        ({PRODUCT_NAME: x509.tlv(0x16, b"\xe9")}, "productName is e9"),
        ({PRODUCT_NAME: x509.ia5("\n")}, "productName is 0a"),
        ({PRODUCT_NAME: x509.octets(b"Genoa")}, "productName has 0x04"),
        ({PRODUCT_NAME: x509.ia5("Genoa") + b"\0"}, "productName has 1 bytes too many"),
        ({PRODUCT_NAME: None}, "lacks productName"),
        ({HWID: None}, "lacks HWID"),
        ({HWID: b"x" * 63}, "HWID has"),
        ({HWID: b"x" * 8}, "HWID has"),
        ({HWID: x509.octets(b"x" * 63)}, "HWID has 63 bytes; required: 64"),
        ({HWID: x509.octets(b"x" * 64) + b"\0"}, "HWID has 1 bytes too many"),
        ({CSP_ID: x509.ia5("cloud")}, "has CSP_ID"),
        *(({oid: None}, "lacks") for name, oid in SPL.items() if name != "fmc"),
        ({SPL["snp"]: x509.integer(256)}, "certificate snp SPL is 256; required: 0 to 255"),
        ({SPL["snp"]: x509.integer(1) + b"\0"}, "snp SPL has 1 bytes too many"),
        ({SPL["fmc"]: x509.integer(0)}, "has fmcSPL"),
        *(({oid: None}, f"lacks {name}") for name, oid in SPL_RESERVED.items()),
        *(({oid: x509.integer(1)}, f"{name} is 1; required: 0") for name, oid in SPL_RESERVED.items()),
    ],
)
def test_one_wrong_extension_is_refused(changes, said):
    with pytest.raises(FormatError, match=re.escape(said)):
        parse_vek(changed(certificate(), changes), ProductLine.GENOA)


def test_the_longest_name_and_the_highest_part_are_read():
    vek = parse_vek(
        changed(certificate(), {PRODUCT_NAME: x509.ia5("x" * 256), SPL["snp"]: x509.integer(255)}), GENOA.line
    )
    assert (vek.product_name, vek.tcb.snp) == ("x" * 256, 255)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({SPL["fmc"]: None}, "lacks fmcSPL"),
        ({SPL_RESERVED["spl4"]: x509.integer(0)}, "has spl4"),
        ({HWID: b"x" * 64}, "HWID has"),
    ],
)
def test_turin_has_its_own_extensions(changes, said):
    with pytest.raises(FormatError, match=said):
        parse_vek(changed(certificate(TURIN), changes), ProductLine.TURIN)


def vlek(changes):
    return replace(changed(certificate(), {HWID: None, CSP_ID: x509.ia5("cloud"), **changes}), common_name="SEV-VLEK")


def test_a_vlek_names_its_provider_and_no_chip():
    vek = parse_vek(vlek({}), ProductLine.GENOA)
    assert (vek.kind, vek.hwid, vek.csp_id) == (SigningKey.VLEK, None, "cloud")
    for changes, said in (
        ({CSP_ID: x509.octets(b"cloud")}, "CSP_ID has 0x04"),
        ({CSP_ID: None}, "lacks CSP_ID"),
        ({HWID: b"x" * 64}, "has HWID"),
    ):
        with pytest.raises(FormatError, match=said):
            parse_vek(vlek(changes), ProductLine.GENOA)


def test_an_unknown_extension_of_amds_is_passed_over():
    base = certificate()
    extra = changed(base, {"1.3.6.1.4.1.3704.1.99": b"\x02\x01\x01"})
    assert parse_vek(extra, ProductLine.GENOA) == parse_vek(base, ProductLine.GENOA)


@pytest.mark.parametrize("name", ["SEV-Genoa", "SEV-VCEKX", None, ""])
def test_another_name_is_no_signing_key(name):
    with pytest.raises(FormatError, match="certificate name is"):
        parse_vek(replace(certificate(), common_name=name), ProductLine.GENOA)


@pytest.mark.vectors
def test_every_real_key_reads_as_published():
    vectors.need()
    rows = [vector for vector in vectors.reports() if vector.vek is not None]
    assert len(rows) >= 19
    for vector in rows:
        vek = parse_vek(parse_certificate(vector.vek), ProductLine(vector.product))
        found = f"SEV-{vek.kind.name} structv={vek.struct_version} productName={vek.product_name}"
        assert found == vector.row["vek_info"], vector.name
        assert str(parse_certificate(vector.vek).not_after) == vector.row["vek_notafter"], vector.name


@pytest.mark.vectors
def test_a_real_turin_without_a_report():
    vek = parse_vek(parse_certificate(vectors.read("virtee-sev/turin-vcek-only.der")), ProductLine.TURIN)
    assert (vek.kind, len(vek.hwid), vek.struct_version) == (SigningKey.VCEK, 8, 1)


@pytest.mark.vectors
def test_a_real_vlek_names_its_provider():
    vector = vectors.report("aws-milan-v3-vlek")
    vek = parse_vek(parse_certificate(vector.vek), ProductLine.MILAN)
    assert vek.kind is SigningKey.VLEK
    assert vek.hwid is None
    assert "aws" in vek.csp_id
    assert vek.tcb.microcode == 217
