# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.config import load_settings
from cvmtool.errors import AppraisalError, ConfigError, CvmError, FormatError, VerificationError
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import MANIFEST_FILE, POLICY_FILE, JobDir
from cvmtool.owner.policy import RootKind
from cvmtool.owner.policyfile import encode_policy
from tests import samples
from tests.receipts import TAMPERINGS, Receipt


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Receipt(tmp_path_factory.mktemp("receipt"))


@pytest.fixture
def case(made, tmp_path):
    """The receipt as a file, the policy that accepts it, and its outputs; then a function that runs a command on them."""
    (tmp_path / "receipt").write_bytes(json.dumps(json.loads(made.data), indent=1).encode())
    (tmp_path / "policy").write_text(encode_policy(made.guest.policy()))
    (tmp_path / "out/logs").mkdir(parents=True)
    (tmp_path / "out/logs/metrics.json").write_bytes(b'{"accuracy":0.9}')

    def verify(*arguments):
        command = ["receipt", "verify", str(tmp_path / "receipt"), "--policy", str(tmp_path / "policy"), *arguments]
        return CliRunner().invoke(app, command)

    return verify


def show(path, *arguments):
    return CliRunner().invoke(app, ["receipt", "show", str(path), *arguments])


def test_a_receipt_that_holds_says_what_it_is_worth(case, made):
    result = case()
    assert result.exit_code == 0, result.exception
    assert "verified: SIMULATED / NOT CONFIDENTIAL" in result.stderr
    assert made.statement.manifest_sha256.hex() in result.stdout
    document = json.loads(case("--json").stdout)
    assert document["schema"].startswith("cvmtool/receipt")
    assert (document["verified"], document["by_simulated_root"], document["simulated"]) == (True, True, True)
    assert document["exit_code"] == 0


def test_showing_is_not_verifying(case, tmp_path, made):
    text = (tmp_path / "receipt").read_text()
    forged = json.loads(text)
    forged["signatures"][0]["sig"] = "A" * 86 + "=="
    (tmp_path / "receipt").write_text(json.dumps(forged))
    result = show(tmp_path / "receipt")
    assert result.exit_code == 0
    assert "unverified" in result.stderr
    assert json.loads(show(tmp_path / "receipt", "--json").stdout)["verified"] is False
    refused = case()
    assert isinstance(refused.exception, VerificationError)
    assert "verified" not in refused.stdout + refused.stderr


def test_outputs_are_compared_when_they_are_given(case, tmp_path, made):
    delivered = [item.name for item in made.statement.outputs]
    assert delivered == ["logs/metrics.json"]
    assert case("--files", str(tmp_path / "out")).exit_code == 0
    (tmp_path / "out/logs/metrics.json").write_bytes(b'{"accuracy":1.0}')
    changed = case("--files", str(tmp_path / "out"))
    assert isinstance(changed.exception, VerificationError)
    assert "logs/metrics.json" in changed.exception.message
    assert changed.stdout == ""
    (tmp_path / "out/logs/metrics.json").unlink()
    assert isinstance(case("--files", str(tmp_path / "out")).exception, CvmError)


def test_the_time_can_be_given(case):
    later = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert case("--at", later).exit_code == 0
    assert isinstance(case("--at", "2070-01-01T00:00:00Z").exception, VerificationError)
    assert case("--at", "yesterday").exit_code == 2


def test_another_policy_refuses_it(case, tmp_path, made):
    for changes, error in (
        ({"roots": RootKind.AMD, "simulated_root": None}, VerificationError),
        ({"measurements": frozenset({b"o" * 48})}, AppraisalError),
    ):
        (tmp_path / "policy").write_text(encode_policy(made.guest.policy(**changes)))
        result = case()
        assert isinstance(result.exception, error)
        assert result.stdout == ""


@pytest.fixture
def run(made):
    """A run of this account, with what it keeps for its receipt."""
    job = JobDir.create(load_settings().jobs_dir, "count", simulated=True)
    job.write(POLICY_FILE, encode_policy(made.guest.policy()).encode())
    job.write(MANIFEST_FILE, made.guest.manifest.encode())
    job.finish(JobState.DONE, exit_code=0)
    return job


def verify_by_job(tmp_path, *arguments):
    return CliRunner().invoke(app, ["receipt", "verify", str(tmp_path / "receipt"), *arguments])


@pytest.mark.usefixtures("case")
def test_a_run_of_this_account_says_what_was_acceptable_to_it(tmp_path, run, made):
    for reference in ("count", run.record.id):
        result = verify_by_job(tmp_path, "--job", reference, "--files", str(tmp_path / "out"))
        assert result.exit_code == 0, result.exception
        assert "verified" in result.stderr
    run.write(MANIFEST_FILE, replace(made.guest.manifest, name="another").encode())
    assert isinstance(verify_by_job(tmp_path, "--job", "count").exception, VerificationError)
    run.write(POLICY_FILE, encode_policy(made.guest.policy(measurements=frozenset({b"o" * 48}))).encode())
    assert isinstance(verify_by_job(tmp_path, "--job", "count").exception, AppraisalError)


@pytest.mark.usefixtures("case", "run")
def test_what_is_required_is_said_once(tmp_path):
    policy = ("--policy", str(tmp_path / "policy"))
    for arguments in ((), ("--job", "count", *policy), ("--job", "count", "--manifest", str(tmp_path / "receipt"))):
        result = verify_by_job(tmp_path, *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "--job" in result.stderr
    assert isinstance(verify_by_job(tmp_path, "--job", "none").exception, ConfigError)


def test_what_is_no_receipt_or_no_policy(case, tmp_path):
    (tmp_path / "policy").write_bytes(b"\xff")
    assert isinstance(case().exception, CvmError)
    for content in (b"", b"{}", bytes(3 << 20)):
        (tmp_path / "receipt").write_bytes(content)
        assert isinstance(show(tmp_path / "receipt").exception, FormatError)
    for path in (tmp_path / "missing", tmp_path):
        assert isinstance(show(path).exception, ConfigError)


def test_in_plain_words_a_simulated_receipt_proves_nothing(tmp_path, case, made):
    for command in ((), ("--policy", str(tmp_path / "policy"))):
        result = show(tmp_path / "receipt", "--plain", *command)
        assert result.exit_code == 0, result.exception
        assert result.stdout.startswith("this receipt proves nothing")
        assert "Proven\n  - nothing" in result.stdout
        document = json.loads(show(tmp_path / "receipt", "--plain", "--json", *command).stdout)
        assert (document["simulated"], document["verified"], document["proven"]) == (True, bool(command), [])
        assert document["headline"].startswith("this receipt proves nothing")
    assert "proves nothing" in show(tmp_path / "receipt").stderr
    assert "proves nothing" in case().stderr


def test_plain_words_are_spoken_of_a_receipt_that_holds_alone(tmp_path, case, made):
    (tmp_path / "receipt").write_bytes(TAMPERINGS["a bit of the signature"](made))
    refused = show(tmp_path / "receipt", "--plain", "--policy", str(tmp_path / "policy"))
    assert isinstance(refused.exception, VerificationError)
    assert refused.stdout == ""
    # One that denies its simulation names AMD as its witness, and AMD's roots refuse it.
    (tmp_path / "receipt").write_bytes(TAMPERINGS["the guest lies about simulated"](made))
    denied = show(tmp_path / "receipt", "--plain")
    assert isinstance(denied.exception, VerificationError)
    assert denied.stdout == ""


def test_a_policy_belongs_to_plain_words(tmp_path, case):
    assert show(tmp_path / "receipt", "--policy", str(tmp_path / "policy")).exit_code == 2
    assert show(tmp_path / "receipt", "--at", "2026-01-01T00:00:00Z").exit_code == 2


def test_the_manifest_can_be_compared(tmp_path, case, made):
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(made.guest.manifest.encode())
    assert case("--manifest", str(manifest)).exit_code == 0
    manifest.write_bytes(samples.manifest(salt="77" * 32).encode())
    refused = case("--manifest", str(manifest))
    assert isinstance(refused.exception, VerificationError)
    assert refused.stdout == ""
