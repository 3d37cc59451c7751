# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Every decision is on record, also of a run that never began; and the command that judges beforehand agrees."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.config import load_settings
from cvmtool.errors import AppraisalError, ConfigError, VerificationError
from cvmtool.flows.decisions import (
    Gate,
    RuleSet,
    facts,
    input_headers,
    kept_rules,
    read_decisions,
    read_rules,
    starting_rules,
)
from cvmtool.flows.jobs import JobDir, JobState, load_jobs
from cvmtool.flows.packfile import Source, pack_to_file
from cvmtool.formats.packheader import Action, ContentKind, Metadata, Sensitivity, Step
from cvmtool.owner.amdroots import AmdRoots
from cvmtool.owner.jobfile import parse_job_file
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.packsign import refuse_unscrubbed
from cvmtool.owner.pipeline import SAID, RulesError
from cvmtool.owner.pipelinefile import parse_rules
from cvmtool.owner.policy import IdBlock, baseline
from tests import samples
from tests.receipts import Receipt
from tests.unit.formats import test_packheader
from tests.unit.owner.test_age import RECIPIENT
from tests.unit.owner.test_jobterms import KEY as CLIENT_LINE
from tests.unit.owner.test_pipeline import TEXT

OPEN = f"""
schema: cvmtool/rules/v1
images: any
containers: ["{samples.DIGEST}"]
inputs: {{must_say: [], sensitivity: any, licences: any, must_be_scrubbed: [], pipelines: any, in_dry_runs: any}}
network: [none]
destinations: []
plaintext: []
access: []
clients: []
outputs: {{kinds: any, largest: any, together: any}}
recipients: any
evidence: {{floors: built-in, unchecked: [chips, min-firmware, mitigations, id-block]}}
"""
JOB = parse_job_file(samples.JOB_YAML)
HEADERS = dict.fromkeys(JOB.inputs)


def gate(tmp_path, text=OPEN):
    return Gate([rule_set(text)], tmp_path / "jobs", simulated=True)


def rule_set(text):
    return RuleSet(text=text, rules=parse_rules(text))


def test_without_rules_every_stage_is_open(tmp_path):
    free = Gate([], tmp_path / "jobs", simulated=True)
    free.ingest(JOB, {})
    free.seal(samples.manifest(), {})
    assert free.decisions == []
    assert not (tmp_path / "jobs").exists()


def test_a_run_that_never_began_is_on_record_with_every_reason(tmp_path):
    with pytest.raises(RulesError) as refusal:
        gate(tmp_path, TEXT).ingest(JOB, HEADERS)
    (job,) = load_jobs(tmp_path / "jobs")
    assert (job.record.state, job.record.error) == (JobState.REFUSED, refusal.value.message)
    kept = read_decisions(job)
    assert {item["rule"] for item in kept if not item["allowed"]} == {f.code for f in refusal.value.findings}
    assert "containers" in {item["rule"] for item in kept}


def test_the_guest_and_its_outputs_are_judged_by_what_was_verified(tmp_path):
    made = Receipt(tmp_path / "receipt")
    verified = made.verify()
    open_gate = gate(tmp_path)
    open_gate.ingest(JOB, HEADERS)
    open_gate.seal(made.guest.manifest, HEADERS)
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


PIPELINE = "sha256:" + "5c" * 32
SCRUBBED = Step(action=Action.SCRUBBED, at="2026-01-31T12:00:00Z", by="x", pipeline=PIPELINE)
PERSONAL = replace(
    test_packheader.header(),
    metadata=Metadata(sensitivity=Sensitivity.PERSONAL, licence="CC0-1.0"),
    lineage=(SCRUBBED,),
)


def test_what_is_said_of_a_pack_reaches_the_rules():
    """Every entry of its metadata, and the pipelines that went over it."""
    (item, silent) = facts({"a": PERSONAL, "b": None})
    assert (item.name, item.metadata, item.pipelines) == (
        "a",
        {"sensitivity": "personal", "licence": "CC0-1.0"},
        (PIPELINE,),
    )
    assert (silent.metadata, silent.pipelines) == ({}, ())
    assert set(SAID) == {field.name for field in fields(Metadata)}


STRICT = OPEN.replace("must_be_scrubbed: []", "must_be_scrubbed: [personal]")
UNSCRUBBED = replace(PERSONAL, lineage=(replace(SCRUBBED, action=Action.PACKED, pipeline=None),))


def test_rules_are_stricter_than_a_waiver_and_never_laxer(tmp_path):
    """A job may waive a scrubbing by name; rules that ask for one hear of no waiver, and rules that do not ask lift nothing."""
    assert refuse_unscrubbed({"data": UNSCRUBBED}, ["data"]) == ("data",)
    with pytest.raises(RulesError, match="not scrubbed"):
        gate(tmp_path, STRICT).ingest(JOB, {"data": UNSCRUBBED})
    gate(tmp_path, OPEN).ingest(JOB, {"data": UNSCRUBBED})
    with pytest.raises(AppraisalError):
        refuse_unscrubbed({"data": UNSCRUBBED}, [])


def test_only_approved_pipelines_count(tmp_path):
    gate(tmp_path, STRICT.replace("pipelines: any", f"pipelines: ['{PIPELINE}']")).ingest(JOB, {"data": PERSONAL})
    with pytest.raises(RulesError, match=PIPELINE):
        gate(tmp_path, STRICT.replace("pipelines: any", "pipelines: []")).ingest(JOB, {"data": PERSONAL})


def test_inputs_are_judged_again_as_they_were_sealed(tmp_path):
    strict = gate(tmp_path, STRICT)
    strict.ingest(JOB, {"data": PERSONAL})
    with pytest.raises(RulesError, match="sealing"):
        strict.seal(samples.manifest(), {"data": UNSCRUBBED})


def test_release_hears_of_the_inputs_that_were_sealed(tmp_path):
    made = Receipt(tmp_path / "receipt").verify()
    public = gate(tmp_path, OPEN.replace("in_dry_runs: any", "in_dry_runs: [public]"))
    public._inputs = facts({"data": PERSONAL})
    with pytest.raises(RulesError, match="release"):
        public.release(made.guest)


def test_every_set_is_asked_and_named(tmp_path):
    """What one set allows another may forbid: a set that is added takes nothing away."""
    sets = [rule_set(OPEN), rule_set(STRICT), rule_set(OPEN)]
    both = Gate(sets, tmp_path / "jobs", simulated=True)
    with pytest.raises(RulesError):
        both.ingest(JOB, {"data": UNSCRUBBED})
    (job,) = load_jobs(tmp_path / "jobs")
    kept = read_decisions(job)
    assert {item["rules"] for item in kept} == {rule_set(OPEN).digest, rule_set(STRICT).digest}
    assert {item["rules"] for item in kept if not item["allowed"]} == {rule_set(STRICT).digest}
    assert sorted(item.text for item in kept_rules(job)) == sorted([OPEN, STRICT])


def test_headers_of_packs_are_read_and_verified(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("x")
    keys = OwnerKeys(b"seed" * 8)
    said = Metadata(sensitivity=Sensitivity.PERSONAL)
    source = Source(reference=str(tmp_path / "data"), kind=ContentKind.TREE)
    header = pack_to_file(source, tmp_path / "data.pack", name="x", metadata=said, keys=keys)
    job = replace(JOB, inputs={"folder": "data", "pack": "data.pack"})
    assert input_headers(job, tmp_path) == {"folder": None, "pack": header}
    sidecar = tmp_path / "data.pack.json"
    sidecar.write_text(sidecar.read_text().replace("personal", "public"))
    with pytest.raises(VerificationError):
        input_headers(job, tmp_path)


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


def test_all_that_a_job_wishes_for_is_judged_before_it_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    rules, job = tmp_path / "rules.yaml", tmp_path / "job.yaml"
    wishes = (
        "network: {allow: ['a.example:443'], plaintext: ['192.0.2.1:80']}\n"
        f"access: {{exec: true, tunnels: [8080], clients: ['{CLIENT_LINE}']}}\n"
        f"recipients: ['{RECIPIENT}']\n"
    )
    job.write_text(samples.JOB_YAML + wishes)
    rules.write_text(TEXT)
    judged = CliRunner().invoke(app, ["rules", "check", str(rules), str(job), "--json", "--dry-run"])
    assert isinstance(judged.exception, RulesError)
    decisions = json.loads(judged.stdout)["decisions"]
    refused = {item["rule"] for item in decisions if not item["allowed"]}
    assert refused >= {
        "destinations",
        "plaintext",
        "access",
        "clients",
        "outputs.kinds",
        "outputs.largest",
        "recipients",
    }
    (sort,) = (item for item in decisions if item["rule"] == "outputs.kinds")
    assert sort["reason"] == "the kind of output model.safetensors is safetensors; required: one of json"


def test_rules_to_start_from_are_rules_that_allow_the_job(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    job, rules = tmp_path / "job.yaml", tmp_path / "rules.yaml"
    job.write_text(samples.JOB_YAML)
    text = CliRunner().invoke(app, ["rules", "init", str(job)]).stdout
    document = json.loads(CliRunner().invoke(app, ["rules", "init", str(job), "--json"]).stdout)
    assert document["rules"] == text
    assert "images" in document["any"]
    rules.write_text(text)
    judged = CliRunner().invoke(app, ["rules", "check", str(rules), str(job), "--dry-run"])
    assert judged.exit_code == 0, judged.exception
    assert "DENIED" not in judged.stdout


def test_what_a_run_leaves_unchecked_is_what_the_rules_to_start_from_allow():
    """Or every run under them would be refused."""
    keys = OwnerKeys(b"seed" * 8)
    signer = IdBlock(id_keys=frozenset({b"k" * 48}), author_keys=frozenset(), min_guest_svn=0)
    base = baseline(roots=AmdRoots(), measurements=frozenset({b"m" * 48}), host_data=frozenset({b"h" * 32}))
    made = starting_rules(JOB, Path("/nonexistent"), settings=load_settings(), keys=keys)
    assert made.unchecked == set(replace(base, id_block=signer).unchecked)
