# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What `train` and `jobs attach` say at the end of a run."""

from cvmtool.cli.render import TerminalReporter
from cvmtool.cli.train import summarise
from cvmtool.config import load_settings
from cvmtool.flows.jobevents import Recorder
from cvmtool.flows.jobs import JobDir


def said(capsys, sealed) -> str:
    job = JobDir.create(load_settings().jobs_dir, "digits", simulated=True)
    job.record.results = "results/here"
    output = {"name": "model", "path": "results/here/model", "size": 5, "sha256": "ab" * 32, "sealed": sealed}
    found = {"exit_code": 0, "outputs": [output], "receipt": "results/here/receipt.json", "policy": "policy.toml"}
    Recorder(job.database, job.record.id, None).brought(found)
    summarise(job, TerminalReporter())
    return capsys.readouterr().err


def test_files_in_clear_are_checked_where_they_are(capsys):
    text = said(capsys, None)
    assert "--files results/here" in text
    assert "unseal" not in text


def test_files_for_recipients_are_opened_before_they_are_checked(capsys):
    text = said(capsys, {"size": 221, "sha256": "cd" * 32})
    assert "cvmtool unseal results/here --out DIR" in text
    assert "--files DIR" in text
