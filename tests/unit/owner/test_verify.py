# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Real reports with AMD's roots, and one thing wrong at a time with a fake root."""

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cvmtool.dryrun.psp import SimulatedPsp
from cvmtool.errors import FormatError, VerificationError
from cvmtool.formats.certtable import CertKind, parse_cert_table
from cvmtool.formats.containers import Claims, ClaimsHash
from cvmtool.formats.report import SigningKey, parse_report
from cvmtool.formats.reportmsg import ReportRequest
from cvmtool.formats.tcb import Cpuid, ProductLine, Silicon
from cvmtool.owner.amdroots import AmdRoots, SimulatedRoot
from cvmtool.owner.chain import ChainCache, Revocation
from cvmtool.owner.checks import NotGenuineError
from cvmtool.owner.verify import AuthenticReport, certificates_of, check_claims, verify_report
from tests import fakes, vectors

ALL = vectors.reports()
WITH_KEY = [vector for vector in ALL if vector.vek is not None]
NOW = datetime.now(UTC)


def refused(code, *arguments, **named):
    with pytest.raises(NotGenuineError) as refusal:
        verify_report(*arguments, **named)
    assert refusal.value.check.code == code
    assert refusal.value.exit_code == 5
    assert not refusal.value.check.passed


def verify_vector(vector):
    return verify_report(vector.report, vector.certificates, AmdRoots(), vector.at)


@pytest.mark.vectors
def test_there_are_enough_vectors():
    vectors.need()
    assert len([v for v in WITH_KEY if v.genuine]) >= 18


@pytest.mark.vectors
@pytest.mark.parametrize("vector", [v for v in WITH_KEY if v.genuine], ids=lambda v: v.name)
def test_a_real_report_gets_the_verdict_that_was_published(vector):
    authentic = verify_vector(vector)
    assert not authentic.simulated
    assert authentic.line == vector.product
    assert authentic.raw == vector.report
    assert authentic.revocation is Revocation.NOT_CHECKED
    vlek = "SIGKEY=1" in vector.result
    assert authentic.vek.kind is (SigningKey.VLEK if vlek else SigningKey.VCEK)
    if vlek:
        assert authentic.vek.hwid is None
        assert authentic.vek.csp_id
    else:
        assert f"HWID({len(authentic.vek.hwid)})_OK" in vector.result
    assert [check.code for check in authentic.checks] == [
        "root-pinned",
        "chain",
        "certificate-validity",
        "product",
        "chip",
        "tcb-binding",
        "tcb-order",
        "signature",
    ]
    assert all(check.passed for check in authentic.checks)


@pytest.mark.vectors
def test_a_genuine_key_of_another_chip_is_refused():
    vector = vectors.report("automata-milan-v2-WRONGCHIP")
    refused("chip", vector.report, vector.certificates, AmdRoots(), vector.at)


@pytest.mark.vectors
@pytest.mark.parametrize("name", ["test-vcek-invalid-legacy", "test-vcek-invalid-new"])
def test_a_certificate_that_others_made_to_be_refused_is_refused(name):
    vector = vectors.report("trustee-milan-v2-vcek")
    fake = vectors.read(f"trustee/{name}.der")
    with pytest.raises(VerificationError):
        verify_report(vector.report, (fake, vectors.chain("Milan")), AmdRoots(), vector.at)


@pytest.mark.vectors
def test_bergamo_and_siena_verify_under_genoa():
    assert verify_vector(vectors.report("siena-bergamo-genoa-v5")).silicon is Silicon.BERGAMO_SIENA


@pytest.mark.vectors
def test_a_real_table_of_pem_certificates_is_all_that_is_needed():
    vector = vectors.report("veraison-genoa-v3")
    table = parse_cert_table(vectors.read("veraison/tsm-auxblob-certtable.bin"))
    assert verify_report(vector.report, certificates_of(table), AmdRoots(), vector.at).line is ProductLine.GENOA


@pytest.mark.vectors
def test_the_signature_alone_stops_a_changed_field_that_nothing_else_looks_at():
    vector = vectors.report("oak-genoa-v5")
    for offset in (0x10, 0x50, 0x90, 0xC0, 0x140):
        report = bytearray(vector.report)
        report[offset] ^= 1
        refused("signature", bytes(report), vector.certificates, AmdRoots(), vector.at)


@pytest.mark.vectors
@pytest.mark.parametrize("days", [-31, 7 * 366])
def test_outside_a_certificates_validity_it_is_refused(days):
    vector = vectors.report("oak-genoa-v5")
    refused("certificate-validity", vector.report, vector.certificates, AmdRoots(), vector.at + timedelta(days=days))


@pytest.mark.vectors
def test_another_lines_chain_is_refused():
    vector = vectors.report("oak-genoa-v5")
    refused("root-pinned", vector.report, (vector.vek, vectors.chain("Milan")), AmdRoots(), vector.at)


@pytest.mark.vectors
def test_a_real_report_is_not_a_simulated_one():
    vector = vectors.report("oak-genoa-v5")
    refused("root-pinned", vector.report, vector.certificates, SimulatedRoot(b"\1" * 32), vector.at)


@pytest.mark.vectors
def test_a_missing_intermediate_is_named():
    vector = vectors.report("oak-genoa-v5")
    blocks = vectors.chain("Genoa").split(b"-----END CERTIFICATE-----\n")
    ark = blocks[1] + b"-----END CERTIFICATE-----\n"
    refused("chain", vector.report, (vector.vek, ark), AmdRoots(), vector.at)


# From here on a fake AMD, so that each part can be wrong by itself.


class Case:
    """A launch that verifies; every argument can be replaced."""

    def __init__(self, amd, **options):
        self.amd = amd
        psp = SimulatedPsp(amd, fakes.FACTS, **options)
        self.report = psp.report(ReportRequest(report_data=b"D" * 64))
        table = parse_cert_table(psp.table)
        self.certificates = certificates_of(table)
        self.crl = table.get(CertKind.CRL)
        self.tcb = parse_report(self.report).tcbs(amd.line).reported

    def signed(self, **changes):
        """The report with other fields, signed again by the same chip."""
        report = replace(parse_report(self.report), **changes)
        signature = self.amd.chip().vcek(self.tcb).sign(report.signed, ec.ECDSA(hashes.SHA384()))
        r, s = utils.decode_dss_signature(signature)
        return replace(report, signature_r=r, signature_s=s).encode()

    def arguments(self, **changes):
        values = {
            "report": self.report,
            "certificates": self.certificates,
            "roots": SimulatedRoot(self.amd.root_fingerprint),
            "at": NOW,
            "crl": self.crl,
            **changes,
        }
        return (values["report"], values["certificates"], values["roots"], values["at"], values["crl"])


@pytest.mark.parametrize("version", [3, 5])
def test_a_dry_runs_report_verifies_as_simulated(amd, version):
    authentic = verify_report(*Case(amd, version=version).arguments())
    assert authentic.simulated
    assert authentic.line is amd.line
    assert authentic.report.version == version
    assert authentic.revocation is Revocation.CHECKED


def test_amds_roots_refuse_a_dry_runs_report(amd):
    refused("root-pinned", *Case(amd).arguments(roots=AmdRoots()))


def test_another_machines_dry_run_is_refused(genoa):
    refused("root-pinned", *Case(genoa).arguments(roots=SimulatedRoot(b"\2" * 32)))


def test_without_a_list_revocation_is_said_to_be_unchecked(genoa):
    assert verify_report(*Case(genoa).arguments(crl=None)).revocation is Revocation.NOT_CHECKED


def test_a_revoked_intermediate_is_refused(genoa):
    refused("revocation", *Case(genoa).arguments(crl=genoa.crl(revoke_ask=True)))


def test_another_lines_list_is_refused(genoa):
    refused("revocation", *Case(genoa).arguments(crl=fakes.fake_amd(ProductLine.TURIN).crl()))


@pytest.mark.parametrize("days", [-1, 31])
def test_a_list_outside_its_time_is_refused(genoa, days):
    refused("revocation", *Case(genoa).arguments(at=NOW + timedelta(days=days, hours=2)))


def test_a_changed_list_is_refused(genoa):
    crl = bytearray(genoa.crl())
    crl[-1] ^= 1
    refused("revocation", *Case(genoa).arguments(crl=bytes(crl)))


def test_a_leaf_that_the_intermediate_did_not_sign_is_refused(genoa):
    leaf, *rest = Case(genoa).certificates
    broken = leaf[:-1] + bytes((leaf[-1] ^ 1,))
    refused("chain", *Case(genoa).arguments(certificates=(broken, *rest)))


def test_an_intermediate_that_the_root_did_not_sign_is_refused(genoa):
    leaf, ask, ark = Case(genoa).certificates
    refused("chain", *Case(genoa).arguments(certificates=(leaf, ask[:-1] + bytes((ask[-1] ^ 1,)), ark)))


def test_a_bogus_intermediate_beside_the_right_one_does_no_harm(genoa):
    leaf, ask, ark = Case(genoa).certificates
    bogus = ask[:-1] + bytes((ask[-1] ^ 1,))
    assert verify_report(*Case(genoa).arguments(certificates=(bogus, leaf, bogus, ask, ark, ark)))


def test_no_certificate_and_two_of_them_are_refused(genoa):
    case = Case(genoa)
    leaf, ask, ark = case.certificates
    refused("chain", *case.arguments(certificates=(ask, ark)))
    other = genoa.vcek_certificate(genoa.chip(1), case.tcb)
    refused("chain", *case.arguments(certificates=(leaf, other, ask, ark)))


def test_too_many_certificates_are_malformed(genoa):
    case = Case(genoa)
    with pytest.raises(FormatError):
        verify_report(*case.arguments(certificates=case.certificates * 6))


def test_the_key_kind_must_be_the_reports(genoa):
    case = Case(genoa)
    refused("key-kind", *case.arguments(report=case.signed(signing_key=SigningKey.VLEK)))


def test_an_unsigned_report_is_refused(genoa):
    case = Case(genoa)
    unsigned = replace(parse_report(case.report), signing_key=SigningKey.NONE, signature_r=0, signature_s=0)
    refused("signing-key", *case.arguments(report=unsigned.encode()))


def test_a_report_that_the_host_asked_for_is_refused(genoa):
    case = Case(genoa)
    refused("requester", *case.arguments(report=case.signed(vmpl=0xFFFFFFFF)))


def test_another_chips_identifier_is_refused(amd):
    case = Case(amd)
    refused("chip", *case.arguments(report=case.signed(chip_id=amd.chip(1).chip_id)))


def test_a_masked_chip_is_refused(genoa):
    case = Case(genoa)
    refused("chip", *case.arguments(report=case.signed(chip_id=bytes(64))))


def test_bytes_behind_a_short_identifier_are_refused():
    turin = fakes.fake_amd(ProductLine.TURIN)
    case = Case(turin)
    refused("chip", *case.arguments(report=case.signed(chip_id=turin.chip().hwid + b"\1" + bytes(55))))


@pytest.mark.parametrize("part", ["bootloader", "tee", "snp", "microcode"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_certificate_for_another_tcb_is_refused(amd, part, change):
    case = Case(amd)
    value = getattr(case.tcb, part) + change
    tcb = replace(case.tcb, **{part: value if value >= 0 else 2})
    leaf = amd.vcek_certificate(amd.chip(), tcb)
    refused("tcb-binding", *case.arguments(certificates=(leaf, *case.certificates[1:])))


@pytest.mark.parametrize("name", ["reported_tcb", "committed_tcb"])
def test_a_tcb_above_the_current_one_is_refused(genoa, name):
    case = Case(genoa)
    low = replace(case.tcb, microcode=case.tcb.microcode - 1).encode()
    changes = {
        "current_tcb": low,
        "reported_tcb": low,
        "committed_tcb": low,
        "launch_tcb": low,
        name: case.tcb.encode(),
    }
    report = case.signed(**changes)
    tcb = parse_report(report).tcbs(genoa.line).reported
    leaf = genoa.vcek_certificate(genoa.chip(), tcb)
    refused("tcb-order", *case.arguments(report=report, certificates=(leaf, *case.certificates[1:])))


@pytest.mark.parametrize(
    "cpuid", [Cpuid(family=0x19, model=0x01, stepping=1), Cpuid(family=0x19, model=0x7F, stepping=1)]
)
def test_a_cpuid_of_another_line_or_none_is_refused(genoa, cpuid):
    case = Case(genoa)
    refused("product", *case.arguments(report=case.signed(cpuid=cpuid)))


def test_a_version_2_report_takes_its_line_from_the_issuer(genoa):
    report = Case(genoa, version=3)
    authentic = verify_report(*report.arguments(report=report.signed(version=2, cpuid=None)))
    assert authentic.silicon is None
    assert authentic.line is ProductLine.GENOA


def test_what_was_found_is_said_check_by_check(genoa):
    authentic = verify_report(*Case(genoa).arguments())
    found = {check.code: check for check in authentic.checks}
    assert list(found)[-6:] == ["revocation", "product", "chip", "tcb-binding", "tcb-order", "signature"]
    assert found["product"].actual.startswith("Genoa (cpuid ")
    assert found["chip"].actual == genoa.chip().hwid.hex()
    assert found["tcb-order"].actual == found["tcb-order"].required == "none above current"
    assert found["signature"].actual == "by SEV-VCEK"
    case = Case(genoa, version=3)
    second = verify_report(*case.arguments(report=case.signed(version=2, cpuid=None)))
    product = next(check for check in second.checks if check.code == "product")
    assert (product.actual, product.required) == ("Genoa (by issuer)", "one product line")


def test_what_was_wrong_is_said(genoa):
    case = Case(genoa)
    low = replace(case.tcb, microcode=case.tcb.microcode - 1).encode()
    for changes, actual in (
        ({"chip_id": bytes(64)}, "masked"),
        ({"chip_id": b"\1" * 64}, "01" * 64),
        ({"current_tcb": low}, "reported above current in microcode; committed above current in microcode"),
    ):
        with pytest.raises(NotGenuineError) as refusal:
            verify_report(*case.arguments(report=case.signed(**changes)))
        assert refusal.value.check.actual == actual
    forged = bytearray(case.report)
    forged[0x50] ^= 1
    with pytest.raises(NotGenuineError) as refusal:
        verify_report(*case.arguments(report=bytes(forged)))
    assert (refusal.value.check.actual, refusal.value.check.required) == ("invalid", "by SEV-VCEK")


@pytest.mark.vectors
def test_a_providers_key_is_bound_to_no_chip():
    chip = next(check for check in verify_vector(vectors.report("aws-milan-v3-vlek")).checks if check.code == "chip")
    assert chip.actual.startswith("any of ")
    assert "aws" in chip.actual
    assert chip.required == "a provider's key"


def test_claims_hold_if_the_report_is_over_their_hash(genoa):
    case = Case(genoa)
    claims = Claims(text=b'{"vm": "configuration"}', hash=ClaimsHash.SHA256)
    authentic = verify_report(*case.arguments(report=case.signed(report_data=claims.report_data)))
    check = check_claims(authentic, claims)
    assert (check.code, check.passed, check.actual) == ("claims", True, claims.report_data.hex())
    for other in (replace(claims, text=claims.text + b" "), replace(claims, hash=ClaimsHash.SHA384)):
        with pytest.raises(NotGenuineError) as refusal:
            check_claims(authentic, other)
        assert refusal.value.check.code == "claims"
        assert not refusal.value.check.passed


def test_the_signature_is_over_the_bytes_received(genoa):
    case = Case(genoa)
    report = bytearray(case.report)
    report[0x50] ^= 1
    refused("signature", *case.arguments(report=bytes(report)))


def test_a_malformed_report_certificate_or_list_is_a_format_error(genoa):
    case = Case(genoa)
    for changes in (
        {"report": case.report + b"\0"},
        {"certificates": (b"", *case.certificates[1:])},
        {"certificates": (case.certificates[0] + b"\0", *case.certificates[1:])},
        {"crl": case.crl + b"\0"},
    ):
        with pytest.raises(FormatError):
            verify_report(*case.arguments(**changes))


def test_a_time_without_a_zone_is_a_bug(genoa):
    with pytest.raises(ValueError, match="zone"):
        verify_report(*Case(genoa).arguments(at=datetime(2026, 1, 1)))  # noqa: DTZ001


def test_a_cached_chain_is_found_again_and_still_checked(genoa):
    case, cache = Case(genoa), ChainCache()
    first = verify_report(*case.arguments(), cache=cache)
    assert cache.get(case.certificates, SigningKey.VCEK, SimulatedRoot(genoa.root_fingerprint))
    assert verify_report(*case.arguments(), cache=cache).checks == first.checks
    refused("certificate-validity", *case.arguments(at=NOW + timedelta(days=8 * 365)), cache=cache)
    refused("revocation", *case.arguments(crl=genoa.crl(revoke_ask=True)), cache=cache)
    refused("root-pinned", *case.arguments(roots=AmdRoots()), cache=cache)


def test_a_cached_chain_is_not_built_again(genoa):
    case, cache = Case(genoa), ChainCache()
    first = verify_report(*case.arguments(), cache=cache)
    kept = cache.get(case.certificates, SigningKey.VCEK, SimulatedRoot(genoa.root_fingerprint))
    again = verify_report(*case.arguments(), cache=cache)
    assert again.vek is first.vek is kept[1]
    assert cache.get(case.certificates, SigningKey.VCEK, SimulatedRoot(genoa.root_fingerprint)) is kept


def test_a_cache_is_bounded(genoa):
    cache, case = ChainCache(), Case(genoa)
    verify_report(*case.arguments(), cache=cache)
    root = SimulatedRoot(genoa.root_fingerprint)
    chain = cache.get(case.certificates, SigningKey.VCEK, root)
    for number in range(63):
        cache.put((bytes((number,)),), SigningKey.VCEK, root, chain)
    assert cache.get(case.certificates, SigningKey.VCEK, root) is chain  # used, so it stays longest
    cache.put((b"one more",), SigningKey.VCEK, root, chain)
    assert cache.get((b"\0",), SigningKey.VCEK, root) is None
    assert cache.get(case.certificates, SigningKey.VCEK, root) is chain
    for number in range(64):
        cache.put((bytes((number,)),), SigningKey.VCEK, root, chain)
    assert cache.get(case.certificates, SigningKey.VCEK, root) is None


def test_nobody_else_makes_an_authentic_report(genoa):
    authentic = verify_report(*Case(genoa).arguments())
    values = {name: getattr(authentic, name) for name in AuthenticReport.__slots__}
    with pytest.raises(TypeError):
        AuthenticReport(**values, token=object())
    with pytest.raises((TypeError, ValueError)):
        replace(authentic, simulated=False)
    assert copy.copy(authentic) == authentic


@pytest.mark.vectors
@pytest.mark.parametrize("name", ["oak-genoa-v5", "aws-milan-v3-vlek"])
def test_every_flipped_bit_of_a_report_is_refused(name):
    vector = vectors.report(name)
    cache = ChainCache()
    report = bytearray(vector.report)
    refused_bits = 0
    for position in range(len(report)):  # the reserved bytes behind the signature are no exception
        for bit in range(8):
            report[position] ^= 1 << bit
            with pytest.raises((FormatError, VerificationError)):
                verify_report(bytes(report), vector.certificates, AmdRoots(), vector.at, cache=cache)
            report[position] ^= 1 << bit
            refused_bits += 1
    assert refused_bits == 9472
    assert verify_report(bytes(report), vector.certificates, AmdRoots(), vector.at, cache=cache)
