# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from cvmtool.errors import ConfigError, FormatError
from cvmtool.formats.certtable import CertKind
from cvmtool.formats.containers import Container, unwrap
from cvmtool.formats.report import SigningKey, parse_report
from cvmtool.formats.tcb import Cpuid, ProductLine
from cvmtool.owner.kds import bundle, inquire
from tests import fakes, vectors


def report(line=ProductLine.GENOA, **changes):
    return replace(parse_report(fakes.launch(fakes.fake_amd(line)).report), **changes)


VERSION_2 = {"version": 2, "cpuid": None, "launch_mit_vector": 0, "current_mit_vector": 0}


def test_what_is_asked_about_a_genoa():
    asked = inquire(report(chip_id=bytes(range(64)), reported_tcb=bytes((7, 0, 0, 0, 0, 0, 23, 84))))
    assert asked.vek_path == f"/vcek/v1/Genoa/{bytes(range(64)).hex()}?blSPL=07&teeSPL=00&snpSPL=23&ucodeSPL=84"
    assert asked.chain_path == "/vcek/v1/Genoa/cert_chain"
    assert asked.crl_path == "/vcek/v1/Genoa/crl"


def test_what_is_asked_about_a_turin():
    chip = bytes(range(1, 9)).ljust(64, b"\0")
    asked = inquire(report(ProductLine.TURIN, chip_id=chip, reported_tcb=bytes((1, 2, 0, 4, 0, 0, 0, 200))))
    assert asked.vek_path == "/vcek/v1/Turin/0102030405060708?fmcSPL=01&blSPL=02&teeSPL=00&snpSPL=04&ucodeSPL=200"


def test_the_tcb_is_the_reported_one():
    shown = report()
    other = replace(shown, current_tcb=b"\xff\xff\0\0\0\0\xff\xff", committed_tcb=bytes(8), launch_tcb=bytes(8))
    assert inquire(other) == inquire(shown)


def test_a_vlek_is_not_amds_to_give():
    asked = inquire(report(signing_key=SigningKey.VLEK, chip_id=bytes(64)))
    assert asked.vek_path is None
    assert (asked.chain_path, asked.crl_path) == ("/vlek/v1/Genoa/cert_chain", "/vlek/v1/Genoa/crl")


@pytest.mark.parametrize(
    ("changes", "line", "error", "field"),
    [
        ({"chip_id": bytes(64)}, None, FormatError, "chip_id is masked"),
        ({"signing_key": SigningKey.NONE}, None, FormatError, "signing_key"),
        (VERSION_2, None, ConfigError, "--line"),
        ({"cpuid": Cpuid(family=0x1A, model=0x50, stepping=0)}, None, ConfigError, "processor 1a/50/00"),
        ({}, ProductLine.MILAN, ConfigError, "product line is Milan"),
    ],
)
def test_what_cannot_be_asked(changes, line, error, field):
    with pytest.raises(error) as refused:
        inquire(report(**changes), line)
    assert field in refused.value.message


def test_a_turin_with_a_long_identifier_is_refused():
    with pytest.raises(FormatError):
        inquire(report(ProductLine.TURIN, chip_id=bytes(range(64))))


def test_version_2_takes_the_line_that_is_given():
    assert inquire(report(**VERSION_2), ProductLine.GENOA).line is ProductLine.GENOA


def test_a_bundle_is_an_extended_report():
    amd = fakes.fake_amd()
    vcek = amd.vcek_certificate(amd.chip(), inquire(report()).tcb)
    made = bundle(bytes(1184), [amd.ark, vcek, amd.ask, vcek], b"list")
    unwrapped = unwrap(made, Container.EXTENDED)
    assert unwrapped.report == bytes(1184)
    assert dict(unwrapped.table.entries) == {
        CertKind.ARK: amd.ark, CertKind.VCEK: vcek, CertKind.ASK: amd.ask, CertKind.CRL: b"list",
    }  # fmt: skip
    assert unwrap(bundle(bytes(1184), [vcek], None), Container.EXTENDED).table.get(CertKind.CRL) is None


@pytest.mark.vectors
def test_a_providers_key_finds_its_place():
    vector = vectors.report("aws-milan-v3-vlek")
    table = unwrap(bundle(vector.report, vector.certificates, None), Container.EXTENDED).table
    assert table.get(CertKind.VLEK) == vector.vek
    assert [kind for kind, _ in table.entries] == [CertKind.VLEK, CertKind.ASK, CertKind.ARK]


def test_a_certificate_that_is_not_amds_is_refused():
    from tests.unit.owner.test_certificate import made

    name = b"Santa Clara"
    stranger = made(swap=[(name, b"Santa Klara")])
    with pytest.raises(FormatError, match="certificate name is None; required: one of amd's"):
        bundle(bytes(1184), [stranger], None)


def test_two_certificates_for_one_place_are_refused():
    amd = fakes.fake_amd()
    tcb = inquire(report()).tcb
    with pytest.raises(FormatError):
        bundle(bytes(1184), [amd.vcek_certificate(amd.chip(n), tcb) for n in (0, 1)], None)


@pytest.mark.vectors
@pytest.mark.parametrize("vector", vectors.reports(), ids=lambda vector: vector.name)
def test_real_reports_are_asked_about_or_refused_with_a_reason(vector):
    parsed = parse_report(vector.report)
    line = ProductLine(vector.product or ProductLine.MILAN)
    if parsed.signing_key is SigningKey.VCEK and any(parsed.chip_id):
        asked = inquire(parsed, line)
        assert asked.hwid.hex() in asked.vek_path
        assert len(asked.hwid) == (8 if asked.line is ProductLine.TURIN else 64)
