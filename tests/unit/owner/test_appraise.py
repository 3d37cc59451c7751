# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Each check by itself: one field of a genuine, fresh report is wrong, and exactly that check fails.

Remove a check and its row here fails, since nothing else looks at the field.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cvmtool.dryrun.faults import REFUSALS, Fault
from cvmtool.errors import AppraisalError, CvmError, FreshnessError
from cvmtool.formats.evidence import report_data
from cvmtool.formats.policybits import PLATFORM_BITS, POLICY_BITS, GuestPolicy, PlatformInfo
from cvmtool.formats.report import FirmwareVersion, parse_report
from cvmtool.formats.tcb import ProductLine, Silicon
from cvmtool.owner.amdroots import AmdRoots, SimulatedRoot
from cvmtool.owner.appraise import RefusedError, StaleEvidenceError, VerifiedGuest, appraise
from cvmtool.owner.checks import NotGenuineError
from cvmtool.owner.judge import judge
from cvmtool.owner.policy import IdBlock, KeyKind, MeasurementSet, RevocationRule, RootKind, Rule, baseline
from cvmtool.owner.verify import certificates_of, verify_report
from tests import fakes, vectors

DIGEST = fakes.FACTS.digest()


def policy(amd=None, **changes):
    root = SimulatedRoot((amd or fakes.fake_amd()).root_fingerprint)
    base = baseline(roots=root, measurements=frozenset({DIGEST}), host_data=frozenset({fakes.HOST_DATA}))
    return replace(base, **changes)


def shown(amd=None, **changes):
    """Evidence whose report has other fields, signed again by the same chip, with a certificate for its TCB."""
    amd = amd or fakes.fake_amd()
    honest = fakes.launch(amd)
    report = replace(parse_report(honest.report), **changes)
    tcb = report.tcbs(amd.line).reported
    r, s = utils.decode_dss_signature(amd.chip().vcek(tcb).sign(report.signed, ec.ECDSA(hashes.SHA384())))
    table = amd.table(amd.vcek_certificate(amd.chip(), tcb), amd.crl())
    return replace(honest, report=replace(report, signature_r=r, signature_s=s).encode(), cert_table=table.encode())


def decide(evidence, rules=None, amd=None, *, nonce=fakes.NONCE, host_data=fakes.HOST_DATA):
    amd = amd or fakes.fake_amd()
    return appraise(
        fakes.verified(amd, evidence), rules or policy(amd), nonce=nonce, evidence=evidence, host_data=host_data
    )


def refused_for(codes, *arguments, **named):
    with pytest.raises(AppraisalError) as refusal:
        decide(*arguments, **named)
    assert {finding.code for finding in refusal.value.findings} == set(codes)
    assert refusal.value.exit_code == 6
    assert all(finding.why for finding in refusal.value.findings)


def tcb(**changes):
    base = parse_report(fakes.launch(fakes.fake_amd()).report).tcbs(ProductLine.GENOA).current
    return replace(base, **changes).encode()


def every_tcb(**changes):
    return dict.fromkeys(("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"), tcb(**changes))


def test_an_honest_guest_is_trusted():
    evidence = fakes.launch(fakes.fake_amd())
    guest = decide(evidence)
    assert guest.simulated
    assert guest.ssh_host_key == evidence.ssh_host_key
    assert guest.hpke_key == evidence.hpke_key
    assert guest.receipt_key == evidence.receipt_key
    assert guest.host_data == fakes.HOST_DATA
    assert guest.report_data == parse_report(evidence.report).report_data
    assert all(check.passed for check in guest.checks)
    assert guest.unchecked == ("chips", "min-firmware", "mitigations", "id-block")


def test_every_stage_is_listed():
    codes = [check.code for check in decide(fakes.launch(fakes.fake_amd())).checks]
    assert len(codes) == len(set(codes))
    assert {"signature", "report-data", "measurement", "tcb", "platform-alias-check-complete"} <= set(codes)


@pytest.mark.parametrize("line", ProductLine)
def test_every_line_can_be_trusted(line):
    amd = fakes.fake_amd(line)
    rules = policy(amd, products=frozenset(ProductLine), allow_milan=True)
    assert decide(fakes.launch(amd), rules, amd).simulated


def period(name="now", digest=DIGEST, **days):
    today = datetime.now(UTC)
    begin, end = (None if days.get(key) is None else today + timedelta(days=days[key]) for key in ("begin", "end"))
    return MeasurementSet(name=name, digests=frozenset({digest}), not_before=begin, not_after=end)


@pytest.mark.parametrize("days", [{}, {"begin": -1}, {"end": 1}, {"begin": -1, "end": 1}])
def test_a_measurement_set_counts_while_it_holds(days):
    rules = policy(measurements=frozenset(), measurement_sets=(period("old", b"o" * 48, end=-1), period(**days)))
    assert decide(fakes.launch(fakes.fake_amd()), rules)


@pytest.mark.parametrize("days", [{"begin": 1}, {"end": -1}, {"begin": -2, "end": -1}])
def test_a_measurement_set_does_not_count_before_and_after(days):
    rules = policy(measurements=frozenset(), measurement_sets=(period("now", b"o" * 48), period("gone", **days)))
    with pytest.raises(AppraisalError) as refusal:
        decide(fakes.launch(fakes.fake_amd()), rules)
    (finding,) = refusal.value.findings
    assert finding.code == "measurement"
    assert "set gone" in finding.actual


def test_a_revoked_measurement_is_refused_whatever_names_it():
    rules = policy(measurement_sets=(period(),), revoked_measurements=frozenset({DIGEST}))
    refused_for({"measurement-revoked"}, fakes.launch(fakes.fake_amd()), rules)
    assert decide(fakes.launch(fakes.fake_amd()), policy(revoked_measurements=frozenset({b"o" * 48})))


@pytest.mark.parametrize("name", ["family_id", "image_id"])
def test_names_of_the_id_block(name):
    block = IdBlock(id_keys=frozenset({b"i" * 48}), author_keys=frozenset(), min_guest_svn=0)
    signed = shown(id_key_digest=b"i" * 48, **{name: b"n" * 16})
    assert decide(signed, policy(id_block=block, **{f"{name}s": frozenset({b"n" * 16, b"o" * 16})}))
    refused_for({name.replace("_", "-")}, signed, policy(id_block=block, **{f"{name}s": frozenset({b"o" * 16})}))


ALL_RULES = dict.fromkeys(POLICY_BITS, Rule.ANY)
ALL_PLATFORM = dict.fromkeys(PLATFORM_BITS, Rule.ANY)


@pytest.mark.parametrize("name", POLICY_BITS)
@pytest.mark.parametrize("present", [True, False])
def test_each_guest_policy_bit(name, present):
    value = (0x20000 | 1 << POLICY_BITS[name]) if present else 0x20000
    evidence = shown(policy=GuestPolicy(value))
    right, wrong = (Rule.REQUIRED, Rule.FORBIDDEN) if present else (Rule.FORBIDDEN, Rule.REQUIRED)
    assert decide(evidence, policy(guest_policy={**ALL_RULES, name: right}))
    refused_for({f"policy-{name}"}, evidence, policy(guest_policy={**ALL_RULES, name: wrong}))


@pytest.mark.parametrize("name", PLATFORM_BITS)
@pytest.mark.parametrize("present", [True, False])
def test_each_platform_bit(name, present):
    evidence = shown(platform_info=PlatformInfo(1 << PLATFORM_BITS[name] if present else 0))
    right, wrong = (Rule.REQUIRED, Rule.FORBIDDEN) if present else (Rule.FORBIDDEN, Rule.REQUIRED)
    assert decide(evidence, policy(platform_info={**ALL_PLATFORM, name: right}))
    refused_for({f"platform-{name}"}, evidence, policy(platform_info={**ALL_PLATFORM, name: wrong}))


@pytest.mark.parametrize(
    ("code", "changes", "rules"),
    [
        ("measurement", {"measurement": b"m" * 48}, {}),
        ("vmpl", {"vmpl": 1}, {}),
        ("vmpl", {}, {"vmpl": frozenset({1, 2})}),
        ("policy-abi", {"policy": GuestPolicy(0x30000)}, {"min_abi": (0, 1)}),
        ("policy-abi", {"policy": GuestPolicy(0x30137)}, {"min_abi": (1, 56)}),
        ("migration-agent", {"report_id_ma": bytes(32)}, {}),
        ("platform-unknown", {"platform_info": PlatformInfo(0x165)}, {}),
        ("product-allowed", {}, {"products": frozenset({ProductLine.TURIN})}),
        ("key-kind-allowed", {}, {"signing_keys": frozenset({KeyKind.VLEK})}),
        ("chip-allowed", {}, {"chips": frozenset({fakes.fake_amd().chip(1).hwid})}),
        ("report-version", {"version": 4}, {"min_report_version": 5}),
        ("host-data-allowed", {}, {"host_data": frozenset({b"x" * 32})}),
        ("tcb", every_tcb(snp=0x1A), {}),
        ("tcb", every_tcb(microcode=0x55), {}),
        ("tcb", {"launch_tcb": tcb(snp=0x1A)}, {}),
        ("tcb", {"committed_tcb": tcb(snp=0x1A)}, {}),
        ("tcb", {"reported_tcb": tcb(snp=0x1A)}, {}),
        (
            "tcb",
            {},
            {"tcb_floors": tuple(f for f in policy().tcb_floors if Silicon.GENOA not in f.silicon)},
        ),
        ("firmware", {}, {"min_firmware": FirmwareVersion(major=1, minor=58, build=4)}),
        (
            "firmware",
            {"committed_firmware": FirmwareVersion(major=1, minor=57, build=9)},
            {"min_firmware": FirmwareVersion(major=1, minor=58, build=0), "provisional_firmware": Rule.ANY},
        ),
        ("provisional-firmware", {"committed_firmware": FirmwareVersion(major=1, minor=58, build=2)}, {}),
        ("mitigations", {}, {"mitigations": 0x04}),
        ("mitigations", {"launch_mit_vector": 0x03, "current_mit_vector": 0x0B}, {"mitigations": 0x08}),
        ("mitigations", {"launch_mit_vector": 0x0B, "current_mit_vector": 0x03}, {"mitigations": 0x08}),
        ("mitigations", {"version": 4}, {"mitigations": 0x01}),
        (
            "id-block",
            {"id_key_digest": b"i" * 48, "author_key_digest": b"a" * 48, "author_key_en": True},
            {"id_block": IdBlock(id_keys=frozenset({b"j" * 48}), author_keys=frozenset({b"b" * 48}), min_guest_svn=0)},
        ),
        (
            # An author key digest means nothing unless the report says that an author key was used.
            "id-block",
            {"id_key_digest": b"i" * 48, "author_key_digest": b"a" * 48, "author_key_en": False},
            {"id_block": IdBlock(id_keys=frozenset(), author_keys=frozenset({b"a" * 48}), min_guest_svn=0)},
        ),
        (
            "guest-svn",
            {"id_key_digest": b"i" * 48, "guest_svn": 3},
            {"id_block": IdBlock(id_keys=frozenset({b"i" * 48}), author_keys=frozenset(), min_guest_svn=4)},
        ),
    ],
)
def test_exactly_the_check_for_a_field_refuses_it(code, changes, rules):
    refused_for({code}, shown(**changes), policy(**rules))


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({"vmpl": 2}, {"vmpl": frozenset({1, 2})}),
        ({"policy": GuestPolicy(0x30137)}, {"min_abi": (1, 55)}),
        ({"platform_info": PlatformInfo(0x165)}, {"unknown_platform_info": Rule.ANY}),
        ({}, {"chips": frozenset({fakes.fake_amd().chip().hwid})}),
        (every_tcb(snp=0x1B, microcode=0x56), {}),
        (every_tcb(snp=0), {"tcb_floors": None}),
        ({}, {"min_firmware": FirmwareVersion(major=1, minor=58, build=3)}),
        ({"committed_firmware": FirmwareVersion(major=1, minor=58, build=2)}, {"provisional_firmware": Rule.ANY}),
        ({}, {"mitigations": 0x0B}),
        (
            {"id_key_digest": b"i" * 48, "guest_svn": 4},
            {"id_block": IdBlock(id_keys=frozenset({b"i" * 48}), author_keys=frozenset(), min_guest_svn=4)},
        ),
        (
            {"id_key_digest": b"i" * 48, "author_key_digest": b"a" * 48, "author_key_en": True},
            {"id_block": IdBlock(id_keys=frozenset(), author_keys=frozenset({b"a" * 48}), min_guest_svn=0)},
        ),
        (
            {"report_id_ma": bytes(32)},
            {"guest_policy": {**policy().guest_policy, "migrate-ma": Rule.ANY}},
        ),
    ],
)
def test_what_the_policy_allows_is_trusted(changes, rules):
    assert decide(shown(**changes), policy(**rules))


def test_host_data_is_the_jobs():
    refused_for({"host-data"}, fakes.launch(fakes.fake_amd()), policy(host_data=None), host_data=b"x" * 32)


@pytest.mark.parametrize("known", [fakes.HOST_DATA, b"x" * 32])
def test_a_launch_for_another_job_is_named_as_such_and_not_as_stale(known):
    """Whichever HOST_DATA the agent put into REPORT_DATA, its own or the challenger's."""
    data = report_data(nonce=fakes.NONCE, host_data=known, **fakes.KEYS)
    evidence = shown(host_data=b"x" * 32, report_data=data)
    refused_for({"host-data"}, evidence, policy(host_data=None))


def test_all_findings_are_listed_at_once():
    evidence = shown(vmpl=1, measurement=b"m" * 48, policy=GuestPolicy(0xB0000))
    refused_for({"vmpl", "measurement", "policy-debug"}, evidence)
    with pytest.raises(RefusedError) as refusal:
        decide(evidence)
    assert len(refusal.value.checks) > 20
    assert "measurement is " in refusal.value.message


@pytest.mark.parametrize("key", ["ssh_host_key", "hpke_key", "receipt_key"])
def test_a_key_that_the_report_does_not_vouch_for_is_stale(key):
    evidence = replace(fakes.launch(fakes.fake_amd()), **{key: b"E" * 32})
    with pytest.raises(FreshnessError) as refusal:
        decide(evidence)
    assert refusal.value.exit_code == 7


def test_another_nonce_is_stale_before_policy_is_asked_and_all_checks_are_listed():
    with pytest.raises(StaleEvidenceError) as refusal:
        decide(shown(vmpl=1), nonce=b"O" * 32)
    assert {check.code for check in refusal.value.checks if not check.passed} == {"report-data", "vmpl"}


def test_evidence_of_another_report_is_a_bug():
    one, other = fakes.launch(fakes.fake_amd()), shown(vmpl=1)
    with pytest.raises(ValueError, match="not the one"):
        appraise(
            fakes.verified(fakes.fake_amd(), one),
            policy(),
            nonce=fakes.NONCE,
            evidence=other,
            host_data=fakes.HOST_DATA,
        )


def test_a_policy_for_real_hardware_refuses_a_simulated_processor():
    real = policy(roots=RootKind.AMD, simulated_root=None)
    refused_for({"roots"}, fakes.launch(fakes.fake_amd()), real)


def test_a_policy_for_one_dry_run_refuses_another():
    refused_for({"roots"}, fakes.launch(fakes.fake_amd()), policy(simulated_root=b"\1" * 32))


@pytest.mark.vectors
def test_a_policy_for_dry_runs_refuses_a_real_processor():
    vector = vectors.report("oak-genoa-v5")
    authentic = verify_report(vector.report, vector.certificates, AmdRoots(), vector.at)
    assert "roots" in {check.code for check in judge(authentic, policy()) if not check.passed}


@pytest.mark.vectors
def test_a_debug_policy_on_real_hardware_is_refused():
    vector = vectors.report("gosev-milan-v2")
    authentic = verify_report(vector.report, vector.certificates, AmdRoots(), vector.at)
    rules = baseline(roots=AmdRoots(), measurements=frozenset({authentic.report.measurement}), host_data=None)
    failed = {check.code for check in judge(authentic, rules) if not check.passed}
    assert {"policy-debug", "report-version", "product-allowed", "tcb", "revocation-checked"} <= failed
    assert "measurement" not in failed


@pytest.mark.vectors
def test_a_providers_key_is_judged_by_provider():
    vector = vectors.report("aws-milan-v3-vlek")
    authentic = verify_report(vector.report, vector.certificates, AmdRoots(), vector.at)
    base = replace(
        baseline(roots=AmdRoots(), measurements=frozenset({authentic.report.measurement}), host_data=None),
        products=frozenset({ProductLine.MILAN}),
        allow_milan=True,
        signing_keys=frozenset({KeyKind.VLEK}),
        revocation=RevocationRule.REPORT,
        tcb_floors=None,
        providers=frozenset({authentic.vek.csp_id}),
    )
    assert all(check.passed for check in judge(authentic, base))
    said = {check.code: check.actual for check in judge(authentic, base)}
    assert said["roots"] == f"amd {authentic.root_fingerprint.hex()}"
    assert said["provider-allowed"] == authentic.vek.csp_id
    other = replace(base, providers=frozenset({"another"}))
    assert [check.code for check in judge(authentic, other) if not check.passed] == ["provider-allowed"]
    chips = replace(base, chips=frozenset({b"c" * 64}))
    assert [check.code for check in judge(authentic, chips) if not check.passed] == ["chip-allowed"]


def test_a_list_that_was_not_looked_at_is_refused_or_only_reported():
    amd = fakes.fake_amd()
    evidence = fakes.launch(amd, Fault.MISSING_CRL)
    refused_for({"revocation-checked"}, evidence)
    assert decide(evidence, policy(revocation=RevocationRule.REPORT))


@pytest.mark.parametrize("fault", REFUSALS)
@pytest.mark.parametrize("line", [ProductLine.GENOA, ProductLine.TURIN])
def test_every_fault_meets_the_refusal_of_its_row(fault, line):
    amd, row = fakes.fake_amd(line), REFUSALS[fault]
    evidence = fakes.launch(amd, fault)
    with pytest.raises(CvmError) as refusal:
        decide(evidence, policy(amd), amd)
    error = refusal.value
    assert error.exit_code == row.exit_code
    if isinstance(error, NotGenuineError):
        assert error.check.code == row.code
    elif isinstance(error, StaleEvidenceError):
        assert row.code == "report-data"
    else:
        assert row.code in {finding.code for finding in error.findings}


def test_every_fault_has_a_row():
    assert REFUSALS.keys() == set(Fault) - {Fault.NONE}


def test_nobody_else_makes_a_verified_guest():
    guest = decide(fakes.launch(fakes.fake_amd()))
    values = {name: getattr(guest, name) for name in VerifiedGuest.__slots__}
    with pytest.raises(TypeError):
        VerifiedGuest(**values, token=object())
    with pytest.raises((TypeError, ValueError)):
        replace(guest, hpke_key=b"E" * 32)


def test_certificates_come_from_the_table_alone():
    from cvmtool.formats.certtable import parse_cert_table

    evidence = fakes.launch(fakes.fake_amd())
    root = SimulatedRoot(fakes.fake_amd().root_fingerprint)
    assert verify_report(
        evidence.report, certificates_of(parse_cert_table(evidence.cert_table)), root, datetime.now(UTC)
    )


@pytest.mark.parametrize("providers", [frozenset({"somebody"}), None])
def test_a_provider_is_asked_of_a_providers_key_alone(providers):
    rules = policy(signing_keys=frozenset(KeyKind), providers=providers)
    assert "provider-allowed" not in {check.code for check in decide(fakes.launch(fakes.fake_amd()), rules).checks}


@pytest.mark.vectors
def test_a_providers_key_whose_provider_nobody_asks_about():
    vector = vectors.report("aws-milan-v3-vlek")
    authentic = verify_report(vector.report, vector.certificates, AmdRoots(), vector.at)
    rules = policy(signing_keys=frozenset(KeyKind), providers=None, chips=frozenset({b"c" * 64}))
    said = {check.code: check for check in judge(authentic, rules)}
    assert "provider-allowed" not in said
    assert (said["chip-allowed"].actual, said["chip-allowed"].required) == ("masked", "one of 1 listed chips")


EVERYTHING = {
    "measurement_sets": (
        MeasurementSet(name="one", digests=frozenset({DIGEST}), not_before=None, not_after=None),
        MeasurementSet(
            name="two",
            digests=frozenset({DIGEST, b"o" * 48}),
            not_before=datetime(2026, 1, 1, tzinfo=UTC),
            not_after=datetime(2026, 1, 2, tzinfo=UTC),
        ),
    ),
    "revoked_measurements": frozenset({b"w" * 48}),
    "family_ids": frozenset({b"f" * 16, b"F" * 16}),
    "image_ids": frozenset({b"g" * 16}),
    "vmpl": frozenset({0, 2}),
    "guest_policy": dict.fromkeys(POLICY_BITS, Rule.REQUIRED),
    "platform_info": dict.fromkeys(PLATFORM_BITS, Rule.REQUIRED),
    "min_firmware": FirmwareVersion(major=1, minor=58, build=0),
    "mitigations": 0x0B,
    "id_block": IdBlock(id_keys=frozenset({b"i" * 48}), author_keys=frozenset({b"a" * 48}), min_guest_svn=4),
    "signing_keys": frozenset(KeyKind),
    "providers": frozenset({"somebody"}),
}
RIGHT = {
    "family_id": b"f" * 16,
    "image_id": b"g" * 16,
    "policy": GuestPolicy(0x20000 | sum(1 << bit for bit in POLICY_BITS.values())),
    "platform_info": PlatformInfo(sum(1 << bit for bit in PLATFORM_BITS.values())),
    "id_key_digest": b"i" * 48,
    "author_key_digest": b"a" * 48,
    "author_key_en": True,
    "guest_svn": 4,
}
WRONG = {
    "measurement": b"w" * 48,
    "vmpl": 1,
    "platform_info": PlatformInfo(0x300),
    "committed_firmware": FirmwareVersion(major=1, minor=57, build=2),
    "launch_mit_vector": 0x01,
    "current_mit_vector": 0x0A,
    **dict.fromkeys(("reported_tcb", "committed_tcb", "launch_tcb"), tcb(snp=0x16, microcode=0x10)),
}


def told(amd, changes, rules):
    """What each check says, with what differs from run to run put as a word."""
    evidence = shown(amd, **changes)
    authentic = fakes.verified(amd, evidence)
    rows = judge(authentic, rules, host_data=b"x" * 32 if "vmpl" in changes else fakes.HOST_DATA)
    lines = [f"{'ok' if row.passed else 'no'} {row.code}: {row.actual} | {row.required}" for row in rows]
    words = {
        amd.root_fingerprint.hex(): "ROOT",
        amd.chip().hwid.hex(): "CHIP",
        DIGEST.hex(): "DIGEST",
        authentic.verified_at.isoformat(): "NOW",
    }
    text = "\n".join(lines) + "\n"
    for value, word in words.items():
        text = text.replace(value, word)
    return text


def test_every_check_says_what_it_found_and_what_it_asks_for(golden, genoa):
    chips = frozenset({genoa.chip().hwid})
    rules = policy(genoa, **EVERYTHING, chips=chips, measurements=frozenset())
    loose = replace(
        policy(genoa, **{**EVERYTHING, "measurement_sets": (), "guest_policy": ALL_RULES}),
        revocation=RevocationRule.REPORT,
        unknown_platform_info=Rule.ANY,
        provisional_firmware=Rule.ANY,
        host_data=frozenset({b"x" * 32, b"y" * 32}),
        platform_info=dict.fromkeys(PLATFORM_BITS, Rule.FORBIDDEN),
        tcb_floors=tuple(floor for floor in rules.tcb_floors if Silicon.GENOA not in floor.silicon),
    )
    two = frozenset({DIGEST, b"p" * 48})
    golden(
        "judged.txt",
        "\n".join(
            [
                "everything asked for, everything right",
                told(genoa, RIGHT, rules),
                "everything asked for, most of it wrong",
                told(genoa, WRONG, replace(rules, chips=frozenset({b"c" * 64, b"d" * 64}))),
                "little asked for",
                told(genoa, {**RIGHT, "version": 4, "platform_info": PlatformInfo(0x100)}, loose),
                "as a dry run asks, of two digests, named in a set and not",
                told(genoa, {}, policy(genoa, measurements=two, measurement_sets=EVERYTHING["measurement_sets"])),
                told(genoa, {}, policy(genoa, measurements=two)),
                "firmware with holes throughout, and a migration agent",
                told(
                    genoa,
                    {**every_tcb(snp=0x16), "report_id_ma": b"m" * 32},
                    policy(genoa, platform_info=ALL_PLATFORM),
                ),
            ]
        ),
    )
