# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A run that has parties, as the coordinator keeps it. What the parties do is tests/unit/flows/test_party.py."""

from dataclasses import replace

import pytest

from cvmtool.config import load_settings
from cvmtool.errors import ConfigError
from cvmtool.flows import consents
from cvmtool.flows.jobplan import Plan, load_plan
from cvmtool.owner.grants import ConsentError
from cvmtool.owner.jobfile import parse_job_file
from tests.samples import JOB_YAML
from tests.unit.flows.pooled import Pool
from tests.unit.flows.runs import prepared_job, recorded_run


@pytest.fixture
def prepared(tmp_path):
    alone = prepared_job(tmp_path, load_settings())
    return replace(alone, file=parse_job_file(f"{JOB_YAML}parties: {{clinic: '{'77' * 32}'}}\n"))


def test_a_run_remembers_where_its_parties_are_met(prepared, tmp_path):
    plan = Plan(simulated=True, results=tmp_path / "out", exchange=tmp_path / "shared")
    run = recorded_run(prepared, plan, load_settings())
    again, made, _ = load_plan(run.job, load_settings())
    assert again == plan
    assert made.file.parties == {"clinic": "77" * 32}
    assert run.consents.exchange.folder.parent == tmp_path / "shared"


def test_parties_and_an_exchange_go_together(prepared, tmp_path):
    alone = prepared_job(tmp_path, load_settings())
    for job, plan in ((prepared, Plan(simulated=True)), (alone, Plan(simulated=True, exchange=tmp_path))):
        with pytest.raises(ConfigError, match="parties, and the exchange directory is"):
            recorded_run(job, plan, load_settings())


def test_who_says_nothing_is_named_when_the_time_is_over(tmp_path, monkeypatch):
    pool = Pool(tmp_path)
    pool.owners["clinic"].grant(pool.manifest)
    pool.exchange.publish(pool.pooled)
    pool.step("clinic")
    monkeypatch.setattr(consents, "CONSENT_SECONDS", 0.0)
    with pytest.raises(ConsentError, match="ward refuses: no answer"):
        pool.consents.ask()
    assert "clinic answered" in pool.said


def test_an_exchange_that_cannot_be_written_is_named(tmp_path):
    pool = Pool(tmp_path)
    (tmp_path / "exchange").write_text("a file")
    with pytest.raises(ConfigError, match="exchange"):
        pool.consents.ask()
    pool.consents.close()  # says nothing: the run ends with what went wrong
