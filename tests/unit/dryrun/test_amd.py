# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The fake AMD must be believable to others and never to itself: OpenSSL accepts its bytes, its marks are there."""

import stat
import subprocess
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import utils

from cvmtool.dryrun.amd import COMMENT, FakeAmd
from cvmtool.dryrun.psp import SimulatedPsp
from cvmtool.errors import ConfigError
from cvmtool.formats.certtable import CertKind, parse_cert_table
from cvmtool.formats.report import SIGNED_BYTES, parse_report
from cvmtool.formats.reportmsg import ReportRequest
from cvmtool.formats.tcb import ProductLine, Tcb
from tests import fakes
from tests.fakes import amd  # noqa: F401 - fixture

TCB = Tcb(line=ProductLine.GENOA, bootloader=1, tee=2, snp=3, microcode=4)


def openssl(*arguments, cwd):
    return subprocess.run(["openssl", *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", [3, 5])
def test_openssl_accepts_chain_list_and_report(tmp_path, amd, version):  # noqa: F811
    psp = SimulatedPsp(amd, fakes.FACTS, version=version)
    report = psp.report(ReportRequest(report_data=b"D" * 64))
    table = parse_cert_table(psp.table)
    for name, kind in (("vcek", CertKind.VCEK), ("ask", CertKind.ASK), ("ark", CertKind.ARK), ("list", CertKind.CRL)):
        (tmp_path / f"{name}.der").write_bytes(table.get(kind))
        command = "crl" if name == "list" else "x509"
        assert not openssl(
            command, "-inform", "der", "-in", f"{name}.der", "-out", f"{name}.pem", cwd=tmp_path
        ).returncode
    parsed = parse_report(report)
    (tmp_path / "signed").write_bytes(report[:SIGNED_BYTES])
    (tmp_path / "signature").write_bytes(utils.encode_dss_signature(parsed.signature_r, parsed.signature_s))
    chain = openssl("verify", "-CAfile", "ark.pem", "-untrusted", "ask.pem", "vcek.pem", cwd=tmp_path)
    assert chain.stdout == "vcek.pem: OK\n", chain.stderr
    unrevoked = openssl("verify", "-crl_check", "-CRLfile", "list.pem", "-CAfile", "ark.pem", "ask.pem", cwd=tmp_path)
    assert unrevoked.stdout == "ask.pem: OK\n", unrevoked.stderr
    (tmp_path / "list.der").write_bytes(amd.crl(revoke_ask=True))
    openssl("crl", "-inform", "der", "-in", "list.der", "-out", "list.pem", cwd=tmp_path)
    revoked = openssl("verify", "-crl_check", "-CRLfile", "list.pem", "-CAfile", "ark.pem", "ask.pem", cwd=tmp_path)
    assert "certificate revoked" in revoked.stderr
    (tmp_path / "key.pem").write_text(openssl("x509", "-in", "vcek.pem", "-noout", "-pubkey", cwd=tmp_path).stdout)
    verify = ("dgst", "-sha384", "-verify", "key.pem", "-signature", "signature", "signed")
    assert openssl(*verify, cwd=tmp_path).stdout == "Verified OK\n"


def test_it_says_aloud_what_it_is(amd):  # noqa: F811
    for certificate in (amd.ark, amd.ask):
        assert COMMENT.encode() in certificate
    marker = b"SIM!" if amd.line is ProductLine.TURIN else b"SIMULATED NOT CONFIDENTIAL"
    assert amd.chip().chip_id.startswith(marker)


def test_chips_and_keys_differ_and_stay():
    amd = fakes.fake_amd()  # noqa: F811
    assert amd.chip() == amd.chip()
    assert amd.chip(1).hwid != amd.chip().hwid

    def key(number, tcb):
        return amd.chip(number).vcek(tcb).private_numbers().private_value

    other = Tcb(line=ProductLine.GENOA, bootloader=1, tee=2, snp=3, microcode=5)
    assert key(0, TCB) == key(0, TCB)
    assert len({key(0, TCB), key(0, other), key(1, TCB)}) == 3


def test_secrets_are_not_in_a_representation():
    chip = fakes.fake_amd().chip()
    assert chip.seed.hex() not in repr(chip)
    assert repr(chip.seed) not in repr(chip)
    assert "seed=" not in repr(fakes.fake_amd()._keys)


def test_it_is_kept_private_and_found_again(tmp_path):
    home = tmp_path / "dryrun"
    made = FakeAmd.load_or_create(home, ProductLine.MILAN)
    again = FakeAmd.load_or_create(home, ProductLine.MILAN)
    assert again.root_fingerprint == made.root_fingerprint
    assert again.chip() == made.chip()
    assert [path.name for path in home.iterdir()] == ["amd-milan"]
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "amd-milan").stat().st_mode) == 0o700
    files = list((home / "amd-milan").iterdir())
    assert len(files) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    vcek = again.vcek_certificate(again.chip(), Tcb(line=ProductLine.MILAN, bootloader=1, tee=2, snp=3, microcode=4))
    assert vcek


@pytest.mark.parametrize(("name", "content"), [("ark.key", b"x"), ("chip.seed", b"short"), ("ask.der", None)])
def test_what_is_damaged_is_named(tmp_path, name, content):
    home = tmp_path / "amd-genoa"
    home.mkdir()
    fakes.fake_amd().save(home)
    if content is None:
        (home / name).unlink()
    else:
        (home / name).write_bytes(content)
    with pytest.raises(ConfigError) as refusal:
        FakeAmd.load_or_create(tmp_path, ProductLine.GENOA)
    assert str(home) in refusal.value.message
    assert refusal.value.hint


def test_a_temporary_one_is_another():
    assert FakeAmd.temporary().root_fingerprint != fakes.fake_amd().root_fingerprint


def test_an_expired_certificate_can_be_had():
    amd = fakes.fake_amd()  # noqa: F811
    until = datetime(2026, 1, 1, tzinfo=UTC)
    assert b"260101000000Z" in amd.vcek_certificate(amd.chip(), TCB, not_after=until)
