# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A party's commands, on a job that waits in an exchange directory."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.errors import ConfigError
from cvmtool.flows import party as flow
from cvmtool.flows.exchange import Part
from cvmtool.formats.exchange import Consent
from cvmtool.owner.grants import ConsentError
from cvmtool.owner.policyfile import encode_policy
from tests.unit.flows.pooled import Pool


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """A job that waits; the commands are the clinic's."""
    pool = Pool(tmp_path)
    monkeypatch.setenv("CVMTOOL_STATE_DIR", str(pool.owners["clinic"].settings.state_dir))
    pool.exchange.publish(pool.pooled)
    return pool


@pytest.fixture
def party(pool):
    def call(*arguments):
        words = [str(pool.folder / "exchange") if word == "DIR" else str(word) for word in arguments]
        return CliRunner().invoke(app, ["party", *words], env={"COLUMNS": "200"})

    return call


def grant(pool, party, *options):
    return party("grant", "DIR", "--pack", pool.owners["clinic"].pack, *options)


def test_a_job_is_shown_in_words_before_it_is_allowed(pool, party):
    shown = party("show", "DIR").stdout
    for word in ("clinic", "ward", "train.py", "model.safetensors", "age1", "16 MiB", "in clear", "none: no grant"):
        assert word in shown, word
    document = json.loads(party("show", "DIR", "--json").stdout)
    assert document["packs"] == {"clinic": next(p.root_hash for p in pool.manifest.packs if p.name == "clinic")}
    assert (document["grant"], document["manifest"]) == (None, pool.manifest.sha256.hex())


def test_a_grant_is_made_listed_used_and_revoked(pool, party):
    made = grant(pool, party, "--expires", "30d", "--uses", "3", "--any-manifest").stdout.strip()
    assert json.loads(party("show", "DIR", "--json").stdout)["grant"] == made
    (row,) = json.loads(party("grants", "--json").stdout)["grants"]
    assert (row["id"], row["uses"], row["used"], row["manifest"]) == (made, 3, {}, None)
    assert "0 of 3" in party("grants").stdout
    assert party("revoke", made[:8]).stdout.strip() == made
    assert json.loads(party("grants", "--json").stdout)["grants"] == []


def test_without_options_a_grant_is_for_this_manifest_once(pool, party):
    document = json.loads(grant(pool, party, "--json").stdout)
    assert (document["manifest"], document["uses"]) == (pool.manifest.sha256.hex(), 1)


@pytest.mark.parametrize("wrong", ["7", "7w", "-1d", ""])
def test_a_time_is_one(pool, party, wrong):
    refused = grant(pool, party, "--expires", wrong)
    assert isinstance(refused.exception, ConfigError)
    assert "--expires" in refused.exception.message


def test_no_pack_but_ones_own_is_granted(pool, party):
    refused = party("grant", "DIR", "--pack", pool.owners["ward"].pack)
    assert isinstance(refused.exception, ConfigError)


def test_a_refusal_reaches_the_coordinator(pool, party):
    assert party("refuse", "DIR", "--reason", "not this year", "--json").exit_code == 0
    assert pool.exchange.answer("clinic", 1, Part.CONSENT).said == "not this year"


def test_an_answer_without_a_grant_is_a_refusal(pool, party, tmp_path):
    refused = party("answer", "DIR", "--policy", policy_file(pool, tmp_path))
    assert isinstance(refused.exception, ConsentError)
    assert refused.exception.exit_code == 6
    assert isinstance(pool.exchange.answer("clinic", 1, Part.CONSENT).said, str)


def policy_file(pool, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(encode_policy(pool.boot().policy()))
    return path


@pytest.mark.parametrize("as_json", [True, False])
def test_an_answer_goes_from_consent_to_release(pool, party, tmp_path, monkeypatch, as_json):
    grant(pool, party)
    policy = policy_file(pool, tmp_path)

    def coordinate(_seconds):
        said = pool.exchange.answer("clinic", 1, Part.CONSENT).said
        assert isinstance(said, Consent)
        pool.exchange.put_evidence("clinic", 1, pool.show(said.nonce))

    monkeypatch.setattr(flow.time, "sleep", coordinate)
    done = party("answer", "DIR", "--policy", policy, *(["--json"] if as_json else []))
    assert done.exit_code == 0, done.exception
    sealed = pool.exchange.answer("clinic", 1, Part.RELEASE).said
    pool.guest.life.release(sealed)
    assert pool.guest.life.status()["closed"] == ["container", "ward"]
    if as_json:
        first, second = map(json.loads, done.stdout.splitlines())
        assert (first["event"], second["event"], second["simulated"]) == ("consented", "released", True)
        assert all(check["passed"] for check in second["checks"])
    else:
        assert "SIMULATED / NOT CONFIDENTIAL" in done.stdout


def test_several_jobs_are_told_apart_by_their_ids(pool, party):
    other = replace(pool.pooled, manifest=replace(pool.manifest, salt="ee" * 32))
    pool.manifest = other.manifest
    pool.exchange.publish(other)
    refused = party("show", "DIR")
    assert isinstance(refused.exception, ConfigError)
    assert pool.exchange.id in refused.exception.hint
    assert party("show", "DIR", "--job", pool.exchange.id[:6]).exit_code == 0
