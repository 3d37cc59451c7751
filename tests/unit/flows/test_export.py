# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What `drill export` writes is decided as it says, for every line, version and fault, from the files alone."""

import json

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.dryrun.amd import FakeAmd
from cvmtool.dryrun.export import README_FILE
from cvmtool.dryrun.faults import Fault
from cvmtool.errors import ConfigError
from cvmtool.flows import export as module
from cvmtool.flows.export import VERSIONS, export_launches
from cvmtool.formats.tcb import ProductLine
from cvmtool.image.bundle import load_bundle
from tests import fakes
from tests.unit.dryrun.test_export import decide
from tests.unit.image.images import make_image


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load_bundle(make_image(tmp_path_factory.mktemp("image") / "base"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory, bundle):
    """One of each line for the folder and one for its unknown roots: RSA-4096 keys take seconds."""
    folder = tmp_path_factory.mktemp("export") / "cases"
    told, others, asked = [], {}, set()
    make = FakeAmd.temporary

    def temporary(line):
        if line not in asked:
            asked.add(line)
            return known[line]
        if line not in others:
            others[line] = make(line)
        return others[line]

    known = {line: fakes.fake_amd(line) for line in ProductLine}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeAmd, "temporary", temporary)
        cases = export_launches(folder, bundle, progress=told.append)
    return folder, cases, told


def test_every_line_version_and_fault_is_there(exported):
    folder, cases, told = exported
    names = {f"{line.lower()}-v{version}-{fault}" for line in ProductLine for version in VERSIONS for fault in Fault}
    assert {case.name for case in cases} == names
    assert {path.name for path in folder.iterdir()} == {*names, README_FILE}
    assert list(folder.parent.iterdir()) == [folder]
    assert any("Turin" in text for text in told)


@pytest.mark.parametrize("line", ProductLine)
@pytest.mark.parametrize("version", VERSIONS)
def test_each_launch_is_decided_as_it_says(exported, line, version):
    folder, _, _ = exported
    for fault in Fault:
        expected, verdict, exit_code, failed = decide(folder / f"{line.lower()}-v{version}-{fault}")
        assert (verdict, exit_code) == (expected["verdict"], expected["exit_code"]), fault
        assert [code.removesuffix("-allowed") for code in failed] == [expected["check"]][: fault is not Fault.NONE], (
            fault
        )


def test_the_readme_names_every_file_and_field(exported):
    folder, cases, _ = exported
    text = (folder / README_FILE).read_text()
    assert "SIMULATED / NOT CONFIDENTIAL" in text
    assert all(path.name in text for case in cases for path in case.iterdir() if path.name != "policy.toml")
    told = set(json.loads((cases[0] / "expected.json").read_text())) - {"schema", "simulated"}
    assert {name for name in told if name not in text} == set()


def test_no_root_is_kept_or_shared(exported):
    folder, cases, _ = exported
    roots = {json.loads((case / "expected.json").read_text())["trusted_root_sha256"] for case in cases}
    assert len(roots) == len(ProductLine)
    assert not [path for path in folder.rglob("*") if b"PRIVATE KEY" in (path.read_bytes() if path.is_file() else b"")]


@pytest.fixture
def quick(monkeypatch):
    """One line, one version, and a fake AMD that is there already."""
    monkeypatch.setattr(module, "ProductLine", (ProductLine.GENOA,))
    monkeypatch.setattr(module, "VERSIONS", (5,))
    monkeypatch.setattr(module, "Fault", (Fault.NONE, Fault.MISSING_CRL))
    amd = fakes.fake_amd()
    monkeypatch.setattr(FakeAmd, "temporary", lambda _line: amd)


def test_a_folder_that_is_not_empty_is_left_alone_unless_forced(quick, tmp_path, bundle):
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "genoa-v5-missing-crl").mkdir()
    (tmp_path / "genoa-v5-missing-crl" / "crl.der").write_text("stale")
    with pytest.raises(ConfigError, match="not empty"):
        export_launches(tmp_path, bundle, progress=print)
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "genoa-v5-missing-crl"}
    export_launches(tmp_path, bundle, force=True, progress=print)
    assert (tmp_path / "mine").read_text() == "kept"
    assert not (tmp_path / "genoa-v5-missing-crl" / "crl.der").exists()
    with pytest.raises(ConfigError, match="is a file"):
        export_launches(tmp_path / "mine", bundle, force=True, progress=print)


def test_an_interruption_leaves_nothing_half(quick, tmp_path, bundle):
    def interrupt(text):
        if "missing-crl" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_launches(tmp_path / "cases", bundle, progress=interrupt)
    assert list((tmp_path / "cases").iterdir()) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "cases"]


def test_the_command_says_what_it_wrote(quick, tmp_path, bundle, monkeypatch):
    monkeypatch.setattr("cvmtool.flows.images.bring_up_to_date", lambda *given, **named: bundle)
    result = CliRunner().invoke(app, ["drill", "export", str(tmp_path / "cases"), "--json"])
    assert json.loads(result.stdout) == {
        "schema": "cvmtool/drill-export/v1",
        "folder": str(tmp_path / "cases"),
        "simulated": True,
        "cases": ["genoa-v5-none", "genoa-v5-missing-crl"],
    }
    again = CliRunner().invoke(app, ["drill", "export", str(tmp_path / "cases")])
    assert isinstance(again.exception, ConfigError)
    forced = CliRunner().invoke(app, ["drill", "export", str(tmp_path / "cases"), "--force"])
    assert "2 simulated launches" in forced.stdout


@pytest.mark.parametrize(
    "words", [["drill", "--list", "vmpl"], ["drill", "vmpl", "--list"], ["drill", "run", "--list", "vmpl"]]
)
def test_a_drill_is_run_by_its_name_alone(words):
    result = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(result.stdout)["name"] == "vmpl"
    assert len(CliRunner().invoke(app, ["drill", "--list", "--json"]).stdout.splitlines()) > len(Fault)
