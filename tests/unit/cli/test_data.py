# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.cli.data import _name
from cvmtool.config import load_settings
from cvmtool.errors import ConfigError, FormatError, VerificationError
from cvmtool.formats.pack import NAME


def data(*arguments):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "My Data"
    folder.mkdir()
    (folder / "a").write_bytes(b"A" * 5000)
    return folder


def test_a_directory_is_packed_and_shown(source, tmp_path):
    packed = data("pack", source, "--out", tmp_path / "p")
    assert packed.exit_code == 0, packed.exception
    root_hash = packed.stdout.strip()
    shown = data("show", tmp_path / "p")
    assert shown.exit_code == 0
    rows = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines())
    assert rows["root_hash"] == root_hash
    assert rows["name"] == "my-data"
    assert rows["role"] == "input"


def test_packing_and_showing_as_json_agree(source, tmp_path):
    packed = json.loads(data("pack", source, "--out", tmp_path / "p", "--name", "set", "--json").stdout)
    shown = json.loads(data("show", tmp_path / "p", "--json").stdout)
    assert packed["schema"].startswith("cvmtool/")
    assert packed["pack"] == shown["pack"]
    assert packed["pack"]["name"] == "set"
    assert packed["path"] == str(tmp_path / "p")


def test_no_key_is_shown_or_written_beside_the_pack(source, tmp_path):
    result = data("pack", source, "--out", tmp_path / "p", "--json")
    seed = load_settings().keystore.read_text().split()[1]
    assert seed not in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["My Data", "p", "p.json"]
    assert seed not in (tmp_path / "p.json").read_text()


@pytest.mark.parametrize("name", ["Data", "a b", "../x", "é", "-a"])
def test_a_name_that_no_job_could_use_is_refused(source, tmp_path, name):
    result = data("pack", source, "--out", tmp_path / "p", f"--name={name}")
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "p").exists()


def test_what_cannot_be_packed_or_shown_is_named(source, tmp_path):
    for arguments in (
        ("pack", tmp_path / "missing", "--out", tmp_path / "p"),
        ("pack", source, "--out", tmp_path / "missing/p"),
        ("show", tmp_path / "missing"),
    ):
        result = data(*arguments)
        assert isinstance(result.exception, ConfigError), arguments
        assert "missing" in result.exception.message
        assert result.stdout == ""


def test_a_changed_pack_is_found_and_a_changed_header_not_shown(source, tmp_path):
    data("pack", source, "--out", tmp_path / "p")
    assert data("verify", tmp_path / "p").exit_code == 0
    with (tmp_path / "p").open("r+b") as file:
        file.seek(5000)
        file.write(b"!")
    result = data("verify", tmp_path / "p")
    assert isinstance(result.exception, VerificationError)
    assert result.stdout == ""
    (tmp_path / "p.json").write_text("{}")
    assert isinstance(data("show", tmp_path / "p").exception, FormatError)


def test_a_pack_is_described_sealed_anew_and_opened(source, tmp_path):
    words = ["--owner", "us", "--sensitivity", "personal", "--licence", "CC0-1.0"]
    assert data("pack", source, "--out", tmp_path / "p", *words).exit_code == 0
    rekeyed = json.loads(data("rekey", tmp_path / "p", "--json").stdout)
    shown = json.loads(data("show", tmp_path / "p", "--json").stdout)
    assert rekeyed["header"] == shown["header"]
    assert shown["header"]["metadata"]["sensitivity"] == "personal"
    opened = data("open", tmp_path / "p", "--out", tmp_path / "o", "--json")
    assert json.loads(opened.stdout)["root_hash"] == shown["pack"]["root_hash"]
    assert (tmp_path / "o/a").read_bytes() == b"A" * 5000
    made = json.loads(
        data("pack", tmp_path / "o", "--out", tmp_path / "q", "--made-from", tmp_path / "p", "--json").stdout
    )
    assert made["header"]["lineage"][0]["sources"][0]["root_hash"] == shown["pack"]["root_hash"]


def test_a_kind_that_a_source_is_not_is_refused(source, tmp_path):
    for arguments in (("oci:x", "--kind", "tree"), (source, "--kind", "container")):
        result = data("pack", *arguments, "--out", tmp_path / "p")
        assert isinstance(result.exception, ConfigError), arguments


PIPELINE = """
schema = "cvmtool/scrub/v1"
key = "k"
[[files]]
match = "*"
format = "text"
[[files.rules]]
action = "redact"
patterns = ["email"]
"""


def test_a_source_is_scrubbed_into_a_pack(source, tmp_path):
    (source / "a").write_text("write to a@b.de\n")
    (tmp_path / "scrub.toml").write_text(PIPELINE)
    scrub = ("scrub", source, "--pipeline", tmp_path / "scrub.toml")
    looked = json.loads(data(*scrub, "--check", "--json").stdout)
    made = data(*scrub, "--out", tmp_path / "p", "--sensitivity", "personal", "--json")
    document = json.loads(made.stdout)
    assert document["counts"] == looked["counts"] == [{"rule": "*: redact email", "changed": 1}]
    assert (looked["path"], looked["header"]) == (None, None)
    assert document["content"] == looked["content"] == document["header"]["content"]["digest"]
    assert document["files"][0]["path"] == "a"
    shown = data("show", tmp_path / "p").stdout
    assert document["pipeline"] in shown
    assert "*: redact email" in shown
    assert "a@b.de" not in made.stdout + shown


def test_scrubbing_writes_a_pack_or_only_looks(source, tmp_path):
    (tmp_path / "scrub.toml").write_text(PIPELINE)
    scrub = ("scrub", source, "--pipeline", tmp_path / "scrub.toml")
    for arguments in ((), ("--check", "--out", tmp_path / "p")):
        assert isinstance(data(*scrub, *arguments).exception, ConfigError)
    assert not (tmp_path / "p").exists()


@given(st.text(alphabet=st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=90))
def test_every_file_name_gives_a_name(tmp_path_factory, name):
    assert NAME.fullmatch(_name(tmp_path_factory.getbasetemp() / name))


@pytest.mark.parametrize(
    ("name", "expected"), [("My Data", "my-data"), ("données", "donn-es"), ("...", "data"), ("x" * 99, "x" * 64)]
)
def test_names_stay_recognisable(tmp_path, name, expected):
    assert _name(tmp_path / name) == expected
