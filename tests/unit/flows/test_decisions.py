# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Every decision is on record, also of a run that never began; and the command that judges beforehand agrees."""

import json

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.errors import ConfigError
from cvmtool.flows.decisions import Gate, read_decisions, read_rules
from cvmtool.flows.jobs import JobDir, JobState, load_jobs
from cvmtool.owner.jobfile import parse_job_file
from cvmtool.owner.pipeline import RulesError
from cvmtool.owner.pipelinefile import parse_rules
from tests import samples
from tests.receipts import Receipt
from tests.unit.owner.test_pipeline import TEXT

OPEN = f"""
schema: cvmtool/rules/v1
images: any
containers: ["{samples.DIGEST}"]
inputs: {{must_say: [], sensitivity: any, licences: any, must_be_scrubbed: [], in_dry_runs: any}}
network: [none]
access: []
outputs: {{kinds: any, largest: any, together: any}}
recipients: any
evidence: {{floors: built-in, unchecked: [chips, min-firmware, mitigations, id-block]}}
"""
JOB = parse_job_file(samples.JOB_YAML)


def gate(tmp_path, text=OPEN):
    return Gate(parse_rules(text), tmp_path / "jobs", simulated=True)


def test_without_rules_every_stage_is_open(tmp_path):
    free = Gate(None, tmp_path / "jobs", simulated=True)
    free.ingest(JOB)
    free.seal(samples.manifest())
    assert free.decisions == []
    assert not (tmp_path / "jobs").exists()


def test_a_run_that_never_began_is_on_record_with_every_reason(tmp_path):
    with pytest.raises(RulesError) as refusal:
        gate(tmp_path, TEXT).ingest(JOB)
    (job,) = load_jobs(tmp_path / "jobs")
    assert (job.record.state, job.record.error) == (JobState.REFUSED, refusal.value.message)
    kept = read_decisions(job)
    assert {item["rule"] for item in kept if not item["allowed"]} == {f.code for f in refusal.value.findings}
    assert "containers" in {item["rule"] for item in kept}


def test_the_guest_and_its_outputs_are_judged_by_what_was_verified(tmp_path):
    made = Receipt(tmp_path / "receipt")
    verified = made.verify()
    open_gate = gate(tmp_path)
    open_gate.ingest(JOB)
    open_gate.seal(made.guest.manifest)
    open_gate.release(verified.guest)
    open_gate.export(verified)
    assert {item.stage.value for item in open_gate.decisions} == {"ingestion", "sealing", "release", "export"}
    strict = gate(tmp_path, OPEN.replace("largest: any", "largest: 1KiB").replace("kinds: any", "kinds: [csv]"))
    with pytest.raises(RulesError, match="export"):
        strict.export(verified)
    narrow = gate(tmp_path, OPEN.replace("[chips, min-firmware, mitigations, id-block]", "[]"))
    with pytest.raises(RulesError, match="release"):
        narrow.release(verified.guest)


def test_a_job_without_rules_has_no_decisions(tmp_path):
    job = JobDir.create(tmp_path, "x", simulated=True)
    assert read_decisions(job) == []
    job.write("decisions.jsonl", b"{")
    with pytest.raises(ConfigError):
        read_decisions(job)


def test_rules_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="missing"):
        read_rules(tmp_path / "missing")
    (tmp_path / "rules").write_text("schema: x")
    with pytest.raises(ConfigError, match="rules"):
        read_rules(tmp_path / "rules")


def test_the_command_judges_a_job_before_it_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    rules, job = tmp_path / "rules.yaml", tmp_path / "job.yaml"
    rules.write_text(OPEN)
    job.write_text(samples.JOB_YAML)

    def check(*arguments):
        return CliRunner().invoke(app, ["rules", "check", *map(str, arguments)])

    assert "images" in check(rules).stdout
    allowed = check(rules, job, "--json")
    assert allowed.exit_code == 0, allowed.exception
    document = json.loads(allowed.stdout)
    assert all(item["allowed"] for item in document["decisions"])
    assert "images" in document["any"]
    rules.write_text(TEXT)
    refused = check(rules, job)
    assert isinstance(refused.exception, RulesError)
    assert "DENIED  containers" in refused.stdout
