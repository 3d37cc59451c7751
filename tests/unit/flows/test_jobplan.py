# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvmtool.config import load_settings
from cvmtool.errors import BuildError, ConfigError, FormatError
from cvmtool.flows.jobplan import PLAN_FILE, Plan, load_plan
from cvmtool.flows.launch import parse_site
from cvmtool.owner.kds import AMD_URL
from tests.unit.flows.runs import NO_HOST, prepared_job, recorded_run
from tests.unit.formats.test_wire import JSON

FULL = Plan(
    simulated=False,
    host=NO_HOST,
    boot_seconds=7.5,
    site=parse_site(pin="8,9", numa_node=1, hugepages_kib=2048, gpus=["0000:41:00.0"]),
    key_service=AMD_URL,
)


@pytest.fixture
def prepared(tmp_path):
    return prepared_job(tmp_path, load_settings())


@pytest.mark.parametrize("plan", [Plan(simulated=True), FULL])
def test_a_run_is_made_of_its_record_as_it_was_made_of_its_job(prepared, tmp_path, plan):
    run = recorded_run(prepared, replace(plan, results=tmp_path / "out"), load_settings())
    again, made, policy = load_plan(run.job, load_settings())
    assert again == replace(plan, results=tmp_path / "out")
    assert (made.file, made.manifest, made.packs, made.keys) == (
        prepared.file,
        prepared.manifest,
        prepared.packs,
        prepared.keys,
    )
    assert made.bundle.digest == prepared.bundle.digest
    assert made.bundle.folder.parent == run.job.path
    assert policy == run.challenge.policy
    assert stat.S_IMODE((run.job.path / PLAN_FILE).stat().st_mode) == 0o600


def test_results_go_where_the_command_was_given(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = recorded_run(prepared, Plan(simulated=False), load_settings())
    monkeypatch.chdir("/")
    plan, _, _ = load_plan(run.job, load_settings())
    assert plan.results == tmp_path / "results" / run.job.record.id


def test_an_image_that_is_built_anew_is_not_that_of_the_run(prepared):
    run = recorded_run(prepared, Plan(simulated=False), load_settings())
    kernel = prepared.bundle.kernel
    kernel.unlink()
    kernel.write_bytes(b"another")
    _, made, _ = load_plan(run.job, load_settings())
    assert made.bundle.kernel.read_bytes() == b"kernel"


def test_what_is_gone_is_named(prepared):
    run = recorded_run(prepared, Plan(simulated=False), load_settings())
    prepared.packs[1].path.unlink()
    with pytest.raises(ConfigError, match="sealed input 'data'"):
        load_plan(run.job, load_settings())
    (run.job.path / "image" / "kernel").unlink()
    prepared.packs[1].path.write_bytes(b"data")
    with pytest.raises(BuildError, match="kernel"):
        load_plan(run.job, load_settings())
    (run.job.path / PLAN_FILE).unlink()
    with pytest.raises(ConfigError, match="cannot be taken up again") as refusal:
        load_plan(run.job, load_settings())
    assert "cvmtool train" in refusal.value.hint


@pytest.fixture
def made(prepared):
    return recorded_run(prepared, Plan(simulated=False), load_settings())


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_plan_is_one_or_refused(made, data):
    path: Path = made.job.path / PLAN_FILE
    whole = path.read_bytes()
    document = json.loads(whole)
    key = data.draw(st.sampled_from([*sorted(document), "more"]))
    path.write_text(json.dumps({**document, key: data.draw(JSON)}))
    with suppress(ConfigError, FormatError):
        plan, _, _ = load_plan(made.job, load_settings())
        assert isinstance(plan.boot_seconds, float)
    path.write_bytes(whole)
