# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import struct
import subprocess
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from cvmtool.cli.attest import app
from cvmtool.dryrun.faults import Fault
from cvmtool.dryrun.psp import SimulatedPsp
from cvmtool.errors import ConfigError, FormatError, HostError
from cvmtool.formats.certtable import CertKind, CertTable, parse_cert_table
from cvmtool.formats.report import parse_report
from cvmtool.formats.reportmsg import ReportRequest
from cvmtool.owner.amdroots import AmdRoots, SimulatedRoot
from cvmtool.owner.policy import RevocationRule, baseline
from cvmtool.owner.policyfile import encode_policy
from tests import fakes, vectors

CLAIMS = b'{"keys":[]}'


@pytest.fixture
def case(tmp_path):
    """Files of a launch that is accepted, and a function that runs `verify` on them."""
    return write_case(tmp_path)


def write_case(folder, fault=Fault.NONE, **rules):
    amd = fakes.fake_amd()
    evidence = fakes.launch(amd, fault)
    table = parse_cert_table(evidence.cert_table)
    policy = baseline(
        roots=SimulatedRoot(amd.root_fingerprint),
        measurements=frozenset({fakes.FACTS.digest()}),
        host_data=frozenset({fakes.HOST_DATA}),
    )
    (folder / "report").write_bytes(evidence.report)
    (folder / "vcek").write_bytes(table.get(CertKind.VCEK))
    (folder / "ask").write_bytes(table.get(CertKind.ASK))
    (folder / "ark").write_bytes(table.get(CertKind.ARK))
    (folder / "crl").write_bytes(table.get(CertKind.CRL) or b"")
    (folder / "policy").write_text(encode_policy(replace(policy, **rules)))

    def verify(*more, crl=True):
        arguments = ["verify", "report", "--vek", "vcek", "--chain", "ask", "--chain", "ark", "--policy", "policy"]
        arguments += ["--crl", "crl"] if crl else []
        paths = {"report", "vcek", "ask", "ark", "crl", "policy"}
        return CliRunner().invoke(app, [str(folder / a) if a in paths else a for a in (*arguments, *more)])

    return verify


def document(result):
    return json.loads(result.stdout)


def test_an_accepted_report(case):
    result = case("--json")
    assert result.exit_code == 0, result.stderr
    value = document(result)
    assert value["schema"] == "cvmtool/attest-verify/v1"
    assert value["verdict"] == "accepted"
    assert value["simulated"] is True
    assert value["unchecked"] == ["freshness", "chips", "min-firmware", "mitigations", "id-block"]
    assert all(check["passed"] for check in value["checks"])
    assert value["report"]["measurement"] == fakes.FACTS.digest().hex()


def test_for_people_it_says_simulated_and_what_is_unchecked(case):
    output = case().stdout
    assert "SIMULATED / NOT CONFIDENTIAL" in output
    assert "unchecked: freshness" in output
    assert "accepted" in output


@pytest.mark.parametrize(
    ("fault", "verdict", "exit_code"),
    [
        (Fault.BAD_SIGNATURE, "not-genuine", 5),
        (Fault.DEBUG_POLICY, "refused", 6),
        (Fault.REVOKED_KEY, "not-genuine", 5),
    ],
)
def test_a_refusal_has_a_verdict_and_an_exit_code(tmp_path, fault, verdict, exit_code):
    result = write_case(tmp_path, fault)("--json")
    assert document(result)["verdict"] == verdict
    assert result.exit_code == exit_code
    assert any(not check["passed"] for check in document(result)["checks"])


def test_a_missing_list_is_refused_with_a_hint_unless_the_policy_lets_it_pass(tmp_path):
    result = write_case(tmp_path)("--json", crl=False)
    assert document(result)["verdict"] == "refused"
    assert "--crl" in document(result)["hint"]
    assert write_case(tmp_path, revocation=RevocationRule.REPORT)("--json", crl=False).exit_code == 0


def test_report_data_is_compared_when_it_is_given(case, tmp_path):
    right = parse_report((tmp_path / "report").read_bytes()).report_data.hex()
    accepted = case("--json", "--report-data", right)
    assert document(accepted)["verdict"] == "accepted"
    assert "freshness" not in document(accepted)["unchecked"]
    stale = case("--json", "--report-data", "00" * 64)
    assert document(stale)["verdict"] == "stale"
    assert stale.exit_code == 7


def test_the_time_can_be_given(case):
    result = case("--json", "--at", "2060-01-01T00:00:00Z")
    assert document(result)["verdict"] == "not-genuine"
    for text in ("yesterday", "2026-01-01T00:00:00"):
        assert isinstance(case("--at", text).exception, ConfigError)


def test_malformed_input_is_named(case, tmp_path):
    (tmp_path / "report").write_bytes(b"short")
    result = case("--json")
    assert document(result)["verdict"] == "malformed"
    assert result.exit_code == FormatError.exit_code
    (tmp_path / "report").unlink()
    assert isinstance(case().exception, ConfigError)


def test_a_file_without_end_is_not_read(case, tmp_path):
    (tmp_path / "report").write_bytes(bytes((1 << 20) + 1))
    assert isinstance(case().exception, ConfigError)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CVMTOOL_CACHE_DIR", str(tmp_path / "cache"))


def make_bundle(folder, *more):
    root = fakes.fake_amd().root_fingerprint.hex()
    arguments = ["bundle", str(folder / "report"), "--out", str(folder / "one"), "--simulated-root", root]
    return CliRunner().invoke(app, [*arguments, *more])


def test_a_bundle_is_one_file_that_verifies_anywhere(case, cache, tmp_path):
    files = [word for name in ("ask", "ark") for word in ("--chain", str(tmp_path / name))]
    files += ["--vek", str(tmp_path / "vcek"), "--crl", str(tmp_path / "crl")]
    value = document(make_bundle(tmp_path, *files, "--offline", "--json"))
    assert (value["fetched"], value["simulated"]) == ([], True)
    assert value["size"] == (tmp_path / "one").stat().st_size
    policy = ["--policy", str(tmp_path / "policy"), "--container", "extended"]
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "one"), *policy]).exit_code == 0
    (tmp_path / "one").unlink()
    assert "--container extended" in make_bundle(tmp_path, *files, "--offline").stdout


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (("--offline",), HostError),
        (("--offline", "--line", "Rome"), ConfigError),
        (("--offline", "--line", "Milan"), ConfigError),
        (("--kds", "ftp://mirror"), ConfigError),
        (("--simulated-root", "00"), FormatError),
    ],
)
def test_a_bundle_that_cannot_be_made(case, cache, tmp_path, more, error):
    assert isinstance(make_bundle(tmp_path, *more).exception, error)
    assert not (tmp_path / "one").exists()


def test_in_plain_words(case, tmp_path):
    value = document(case("--json", "--explain"))
    answers = {line["question"]: line["answer"] for line in value["explanation"]}
    assert next(iter(answers.values())) == "perhaps"
    assert answers["could another program than the expected one be running?"] == "no"
    assert answers["could it be an old report, or another machine's?"] == "nobody looked"
    assert "explanation" not in document(case("--json"))
    output = case("--explain").stdout
    assert "could the host read the data? perhaps: this is a dry run" in output
    assert "no report can show" in output
    (tmp_path / "report").write_bytes(fakes.launch(fakes.fake_amd(), Fault.BAD_SIGNATURE).report)
    forged = {line["question"]: line["answer"] for line in document(case("--json", "--explain"))["explanation"]}
    assert forged["could somebody have made this report up?"] == "perhaps"
    assert forged["could another program than the expected one be running?"] == "nobody looked"


def test_show_verifies_nothing_and_says_so(case, tmp_path):
    result = CliRunner().invoke(app, ["show", str(tmp_path / "report"), "--json"])
    value = document(result)
    assert value["verified"] is False
    assert value["report"]["host_data"] == fakes.HOST_DATA.hex()
    assert value["report"]["policy"] == {"value": "0x30000", "set": ["smt"]}
    assert "unverified" in CliRunner().invoke(app, ["show", str(tmp_path / "report")]).stdout


def test_show_takes_the_evidence_that_was_kept_and_its_directory(tmp_path):
    shown = fakes.launch(fakes.fake_amd())
    (tmp_path / "evidence.bin").write_bytes(shown.encode())
    for path in (tmp_path, tmp_path / "evidence.bin"):
        value = document(CliRunner().invoke(app, ["show", str(path), "--json"]))
        assert value["report"]["measurement"] == fakes.FACTS.digest().hex()
        assert list(value["certificates"]) == ["vcek", "ask", "ark", "crl"]
        keys = {name: key.hex() for name, key in fakes.KEYS.items()}
        assert {name: value[name] for name in keys} == keys
    assert fakes.KEYS["hpke_key"].hex() in CliRunner().invoke(app, ["show", str(tmp_path)]).stdout


def test_show_says_what_a_wrong_file_is(tmp_path):
    (tmp_path / "file").write_text("-----BEGIN CERTIFICATE-----\n")
    error = CliRunner().invoke(app, ["show", str(tmp_path / "file")]).exception
    assert isinstance(error, FormatError)
    assert "PEM" in error.message


def test_evidence_that_was_kept_is_verified_with_its_own_certificates(case, tmp_path):
    (tmp_path / "evidence.bin").write_bytes(fakes.launch(fakes.fake_amd()).encode())
    arguments = ["verify", str(tmp_path), "--policy", str(tmp_path / "policy"), "--json"]
    assert document(CliRunner().invoke(app, arguments))["verdict"] == "accepted"


@pytest.mark.parametrize("container", ["raw", "extended"])
def test_another_measurement_has_the_hint_to_explain_it(tmp_path, container):
    case = write_case(tmp_path, measurements=frozenset({b"M" * 48}))
    more = () if container == "raw" else ("--container", container)
    result = case("--json") if container == "raw" else wrapped(case, tmp_path, container)
    hint = document(result)["hint"]
    path = tmp_path / ("report" if container == "raw" else "wrapped")
    assert f"cvmtool measure explain BUNDLE {' '.join(['--report', str(path), *more])}" in hint


def wrapped(case, folder, container, *more):
    """Run `verify` on the case's report in a container, without --vek and --chain."""
    case_files = {name: (folder / name).read_bytes() for name in ("report", "vcek", "ask", "ark", "crl")}
    kinds = {"vcek": CertKind.VCEK, "ask": CertKind.ASK, "ark": CertKind.ARK, "crl": CertKind.CRL}
    table = CertTable(tuple((kind, case_files[name]) for name, kind in kinds.items())).encode()
    report = case_files["report"]
    (folder / "wrapped").write_bytes(report + table if container == "extended" else report)
    (folder / "aux").write_bytes(table)
    arguments = ["verify", str(folder / "wrapped"), "--policy", str(folder / "policy"), "--container", container]
    return CliRunner().invoke(app, [*arguments, "--json", *more])


def test_a_container_brings_its_certificates_and_its_list(case, tmp_path):
    extended = wrapped(case, tmp_path, "extended")
    assert document(extended)["verdict"] == "accepted"
    tsm = wrapped(case, tmp_path, "tsm", "--auxblob", str(tmp_path / "aux"))
    assert document(tsm)["verdict"] == "accepted"
    assert isinstance(wrapped(case, tmp_path, "tsm").exception, ConfigError)


def test_a_container_is_never_guessed(case, tmp_path):
    wrapped(case, tmp_path, "extended")
    result = case("--json", "--container", "extended")
    assert document(result)["verdict"] == "accepted"
    result = CliRunner().invoke(app, ["show", str(tmp_path / "wrapped")])
    assert isinstance(result.exception, FormatError)
    assert wrapped(case, tmp_path, "zip").exit_code == 2


def test_show_names_what_came_with_the_report(case, tmp_path):
    wrapped(case, tmp_path, "extended")
    arguments = ["show", str(tmp_path / "wrapped"), "--container", "extended"]
    value = document(CliRunner().invoke(app, [*arguments, "--json"]))
    assert list(value["certificates"]) == ["vcek", "ask", "ark", "crl"]
    assert value["claims"] is None
    assert "certificates" in CliRunner().invoke(app, arguments).stdout


@pytest.mark.parametrize(("text", "verdict", "exit_code"), [(CLAIMS, "accepted", 0), (b"{}", "not-genuine", 5)])
def test_claims_must_be_those_of_the_report(case, tmp_path, text, verdict, exit_code):
    amd = fakes.fake_amd()
    data = hashlib.sha256(CLAIMS).digest().ljust(64, b"\0")
    report = SimulatedPsp(amd, fakes.FACTS).report(ReportRequest(report_data=data))
    runtime = struct.pack("<IIIII", 20 + len(text), 1, 2, 1, len(text)) + text
    (tmp_path / "report").write_bytes(struct.pack("<4sI24x", b"HCLA", 2) + report + runtime)
    result = case("--json", "--container", "azure-hcl")
    assert document(result)["verdict"] == verdict
    assert result.exit_code == exit_code
    assert {check["code"]: check["passed"] for check in document(result)["checks"]}["claims"] is (exit_code == 0)


@pytest.mark.vectors
def test_a_real_configfs_tsm_pair_verifies(tmp_path):
    folder = vectors.need() / "veraison"
    vector = vectors.report("veraison-genoa-v3")
    measurement = frozenset({parse_report(vector.report).measurement})
    policy = baseline(roots=AmdRoots(), measurements=measurement, host_data=None)
    rules = {"revocation": RevocationRule.REPORT, "tcb_floors": None, "vmpl": frozenset({0, 1, 2, 3})}
    (tmp_path / "policy").write_text(encode_policy(replace(policy, **rules)))
    files = [str(folder / "tsm-outblob.bin"), "--auxblob", str(folder / "tsm-auxblob-certtable.bin")]
    options = ["--container", "tsm", "--policy", str(tmp_path / "policy"), "--at", vector.at.isoformat(), "--json"]
    result = CliRunner().invoke(app, ["verify", *files, *options])
    assert document(result)["verdict"] == "accepted", result.stdout


@pytest.mark.vectors
def test_a_real_report_is_accepted_with_amds_own_files(tmp_path):
    vector = vectors.report("siena-bergamo-genoa-v5")
    (tmp_path / "chain").write_bytes(vectors.chain("Genoa"))
    (tmp_path / "report").write_bytes(vector.report)
    (tmp_path / "vek").write_bytes(vector.vek)
    measurement = frozenset({parse_report(vector.report).measurement})
    policy = baseline(roots=AmdRoots(), measurements=measurement, host_data=None)
    (tmp_path / "policy").write_text(encode_policy(replace(policy, revocation=RevocationRule.REPORT)))
    at = vector.at.isoformat()
    names = ("--vek", "vek", "--chain", "chain", "--policy", "policy")
    files = [str(tmp_path / name) if not name.startswith("--") else name for name in names]
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "report"), *files, "--at", at, "--json"])
    assert result.exit_code == 0, result.stdout
    assert document(result)["simulated"] is False


def test_the_module_costs_no_heavy_import():
    code = (
        "import sys, cvmtool.cli.attest, cvmtool.cli.measure;"
        "print([m for m in ('cryptography', 'libvirt', 'paramiko', 'asyncio') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
