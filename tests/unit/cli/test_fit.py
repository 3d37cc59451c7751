# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool fit` as people and scripts meet it. (What it finds out: tests/unit/flows/test_fit.py.)"""

import json

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.errors import HostError
from cvmtool.flows import fit as flow
from cvmtool.flows import images, prepare
from cvmtool.owner.fit import Line, Verdict
from tests.samples import JOB_YAML


def line(code="memory.host", verdict=Verdict.OK, has=8 << 30, remedy="") -> Line:
    because = "resources.memory"
    return Line(
        code=code, verdict=verdict, needs=1 << 30, has=has, unit="bytes", because=because, remedy=remedy, host=True
    )


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command on a job, and have `lines` found."""
    path = tmp_path / "job.yaml"
    path.write_text(JOB_YAML)

    def found(*lines, options=()):
        monkeypatch.setattr(images, "bring_up_to_date", lambda *_, **__: None)
        monkeypatch.setattr(flow, "survey", lambda *_, **__: lines)
        return CliRunner().invoke(app, ["fit", str(path), *options])

    return found


def test_a_job_that_fits(run):
    ran = run(line(), line("asids", Verdict.UNKNOWN, has=None))
    assert ran.exit_code == 0
    rows = ran.stdout.splitlines()
    assert rows[1].split() == ["ok", "memory.host", "1024", "MiB", "8192", "MiB", "resources.memory"]
    assert rows[2].split() == ["unknown", "asids", "1024", "MiB", "resources.memory"]


def test_a_job_that_does_not_fit_shows_the_table_and_fails(run):
    ran = run(line(verdict=Verdict.SHORT, has=1, remedy="use a larger host"))
    assert isinstance(ran.exception, HostError)
    assert "> use a larger host" in ran.stdout


def test_the_same_as_json(run):
    ran = run(line(), options=["--json", "--dry-run"])
    document = json.loads(ran.stdout)
    assert (document["schema"], document["dry_run"], document["close_from"]) == ("cvmtool/fit/v1", True, 0.85)
    assert document["lines"] == [
        {
            "code": "memory.host",
            "verdict": "ok",
            "needs": 1 << 30,
            "has": 8 << 30,
            "unit": "bytes",
            "because": "resources.memory",
            "remedy": "",
            "host": True,
        }
    ]


def test_train_asks_before_anything_is_sealed(monkeypatch, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(JOB_YAML)
    monkeypatch.setattr(images, "bring_up_to_date", lambda *_, **__: None)
    monkeypatch.setattr(flow, "survey", lambda *_, **__: (line(verdict=Verdict.SHORT, has=1),))
    monkeypatch.setattr(prepare, "prepare", lambda *_, **__: pytest.fail("it was sealed"))
    ran = CliRunner().invoke(app, ["train", str(path), "--dry-run", "--json"])
    assert isinstance(ran.exception, HostError)
    assert "memory.host needs 1024 MiB" in ran.exception.message
