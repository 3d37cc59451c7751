# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool bench` as people and scripts meet it. (What is measured: tests/unit/flows/test_bench*.py.)"""

import json
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.flows import bench as flow
from cvmtool.flows import fit, images, prepare
from tests.samples import JOB_YAML
from tests.unit.flows.test_benchplot import comparison


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command on a job that takes what `comparison` says."""
    path = tmp_path / "job.yaml"
    path.write_text(JOB_YAML)
    monkeypatch.setattr(images, "bring_up_to_date", lambda *_, **__: None)
    monkeypatch.setattr(fit, "refuse_unfit", lambda *_, **__: None)
    monkeypatch.setattr(prepare, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(flow, "compare", lambda *_, **__: comparison())
    out = tmp_path / "out"

    def ran(*options):
        done = CliRunner().invoke(app, ["bench", str(path), "--dry-run", "--out", str(out), *options])
        assert done.exit_code == 0, done.output
        return done, out

    return ran


def test_a_table_and_what_it_does_not_say(run):
    done, _ = run()
    head, start, *_ = done.stdout.splitlines()
    assert head.split() == ["PHASE", "NATIVE", "PLAIN-VM", "DRY-RUN", "DRY-RUN", "/", "PLAIN-VM"]
    assert start.split() == ["start", "0.01", "s", "4.00", "s", "8.00", "s", "2.00", "x"]
    assert "- SIMULATED / NOT CONFIDENTIAL" in done.stdout
    assert "bench.html" in done.stderr


def test_the_same_as_json_on_screen_and_in_a_file(run):
    done, out = run("--json")
    document = json.loads(done.stdout.splitlines()[-1])
    assert document == json.loads((out / "bench.json").read_text())
    assert (document["schema"], document["simulated"]) == ("cvmtool/bench/v1", True)
    assert [place["where"] for place in document["places"]] == ["native", "plain-vm", "dry-run"]
    assert document["places"][2]["ratios"]["plain-vm"]["total"] == 1.18
    assert document["places"][2]["total"] == 40.4
    assert any("SIMULATED" in note for note in document["notes"])


def test_a_page_and_a_picture(run):
    _, out = run()
    assert (out / "bench.html").read_text().startswith("<!doctype html>")
    assert Image.open(out / "bench.png").format == "PNG"


def test_without_pillow_all_but_the_picture(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    done, out = run()
    assert "cvmtool[plot]" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["bench.html", "bench.json"]
