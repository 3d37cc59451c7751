# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import shutil
import subprocess

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.config import load_settings
from cvmtool.errors import ConfigError, FormatError, VerificationError
from cvmtool.flows.prepare import load_keys
from cvmtool.guest.age import AgeFile
from tests.unit.guest.samples import filling

CONTENT = {"model/config.json": b"{}", "metrics.csv": b"a,b\n" * 50_000}


@pytest.fixture
def results(tmp_path):
    """Results of a job that were sealed to this owner."""
    key = load_keys(load_settings()).recipient
    for name, data in CONTENT.items():
        path = tmp_path / "results" / f"{name}.age"
        path.parent.mkdir(parents=True, exist_ok=True)
        sealed = AgeFile(filling(data), len(data), (key,))
        path.write_bytes(b"".join(sealed.read_from(0)))
    (tmp_path / "results" / "receipt.json").write_text("{}")
    return tmp_path / "results"


def unseal(*arguments):
    return CliRunner().invoke(app, ["unseal", *map(str, arguments)])


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_directory_of_results_is_opened(results, tmp_path):
    done = unseal(results, "--out", tmp_path / "clear", "--json")
    assert files(tmp_path / "clear") == CONTENT
    rows = json.loads(done.stdout)["files"]
    assert {row["sha256"] for row in rows} == {hashlib.sha256(data).hexdigest() for data in CONTENT.values()}


def test_one_file_is_opened_beside_itself(results):
    assert unseal(results / "metrics.csv.age").stdout.strip() == str(results / "metrics.csv")
    assert (results / "metrics.csv").read_bytes() == CONTENT["metrics.csv"]
    again = unseal(results / "metrics.csv.age")
    assert isinstance(again.exception, ConfigError)


def test_what_was_changed_at_its_end_leaves_nothing(results, tmp_path):
    sealed = results / "metrics.csv.age"
    sealed.write_bytes(sealed.read_bytes()[:-1])
    refused = unseal(sealed, "--out", tmp_path / "clear")
    assert isinstance(refused.exception, VerificationError)
    assert str(sealed) in refused.exception.message
    assert files(tmp_path / "clear") == {}


@pytest.mark.parametrize("what", ["no age file", "nothing", "missing", "no identity"])
def test_what_cannot_be_opened_is_named(results, tmp_path, what):
    source, more = {
        "no age file": (results / "receipt.json", ()),
        "nothing": (tmp_path / "empty", ()),
        "missing": (tmp_path / "missing.age", ()),
        "no identity": (results, ("--identity", results / "receipt.json")),
    }[what]
    (tmp_path / "empty").mkdir()
    refused = unseal(source, "--out", tmp_path / "clear", *more)
    assert isinstance(refused.exception, FormatError if "no " in what else ConfigError)


@pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed")
def test_a_file_and_a_key_of_age_itself_will_do(tmp_path):
    subprocess.run(["age-keygen", "-o", str(tmp_path / "key")], check=True, capture_output=True)
    recipient = next(word for word in (tmp_path / "key").read_text().split() if word.startswith("age1"))
    (tmp_path / "x").write_bytes(b"content")
    subprocess.run(["age", "-r", recipient, "-o", str(tmp_path / "x.age"), str(tmp_path / "x")], check=True)
    unseal(tmp_path / "x.age", "--identity", tmp_path / "key", "--out", tmp_path / "out")
    assert files(tmp_path / "out") == {"x": b"content"}
    assert isinstance(unseal(tmp_path / "x.age", "--out", tmp_path / "own").exception, VerificationError)
