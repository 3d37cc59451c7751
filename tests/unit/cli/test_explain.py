# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`measure explain` from digest, report and saved evidence, for guest images and for files."""

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cvmtool.cli import explain as module
from cvmtool.cli import render
from cvmtool.cli.measure import app
from cvmtool.config import load_settings
from cvmtool.errors import AppraisalError, ConfigError, CvmError
from cvmtool.measure import explain as search
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.launch import launch_digest
from cvmtool.measure.vmsa import Vmm
from tests import fakes
from tests.unit.image.images import FIRMWARE, LINE, make_image

DRYRUN = f"{LINE} cvmtool.dryrun=1"


@pytest.fixture(autouse=True)
def image(tmp_path):
    return make_image(load_settings().bundles_dir / "base")


@pytest.fixture
def quick(monkeypatch):
    """Leave out the rounds that take seconds when nothing is found."""
    for name in ("every_signature", "every_feature_set"):
        monkeypatch.setattr(search, name, lambda: iter(()))
    monkeypatch.setattr(search, "SEARCHED_VCPUS", 8)


def run(*arguments):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def digest(*, line=LINE, cpu="EPYC-Genoa", vcpus=1, **others):
    hashes = kernel_hashes(b"kernel", b"initrd", line)
    return launch_digest(FIRMWARE, hashes=hashes, cpu=cpu, vcpus=vcpus, **others).hex()


def test_one_sentence_and_nothing_else():
    result = run("base", "--digest", digest(vcpus=8), "--vcpus", "4")
    assert (result.exit_code, result.stdout) == (0, "launched with 8 vCPUs; expected: 4 vCPUs\n")


def test_the_expected_digest_is_said_to_be():
    options = ("--vcpus", "3", "--cpu", "EPYC-Milan", "--guest-features", "0x21", "--vmm", "qemu-legacy")
    wanted = digest(vcpus=3, cpu="EPYC-Milan", guest_features=0x21, vmm=Vmm.QEMU_LEGACY)
    value = json.loads(run("base", "--digest", wanted, *options, "--json").stdout)
    assert (value["as_expected"], value["launch_digest"]) == (True, value["expected_digest"])
    (explanation,) = value["explanations"]
    assert explanation["differences"] == []
    assert "trace" not in value


def test_json_has_the_differences_and_what_was_ruled_out():
    value = json.loads(run("base", "--digest", digest(line=DRYRUN, vcpus=2), "--json").stdout)
    assert value["schema"] == "cvmtool/measure-explain/v1"
    (explanation,) = value["explanations"]
    assert [item["part"] for item in explanation["differences"]] == ["vcpus", "mode"]
    assert explanation["vcpus"] == 2
    assert [item["launches"] for item in value["ruled_out"]] == [512]
    assert value["as_expected"] is False


def test_the_mode_is_a_choice():
    assert run("base", "--digest", digest(line=DRYRUN), "--mode", "dryrun").stdout.startswith("launched as expected")
    assert isinstance(run("base", "--digest", digest(), "--mode", "test").exception, ConfigError)


def test_a_report_and_saved_evidence_are_explained(tmp_path):
    facts = {"firmware": FIRMWARE, "hash_table": kernel_hashes(b"kernel", b"initrd", DRYRUN).table(), "vcpus": 6}
    shown = fakes.launch(fakes.fake_amd(), **facts)
    (tmp_path / "report").write_bytes(shown.report)
    (tmp_path / "extended").write_bytes(shown.report + shown.cert_table)
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "evidence.bin").write_bytes(shown.encode())
    for words in (["report"], ["extended", "--container", "extended"], ["case"], ["case/evidence.bin"]):
        result = run("base", "--mode", "dryrun", "--vcpus", "2", "--report", tmp_path / words[0], *words[1:])
        assert result.stdout == "launched with 6 vCPUs; expected: 2 vCPUs\n"


def test_the_reports_processor_is_a_suspect(tmp_path):
    shown = fakes.launch(fakes.fake_amd())
    (tmp_path / "report").write_bytes(shown.report)
    _, processor = module._launched(tmp_path / "report", None, "raw")
    from cvmtool.formats.report import parse_report
    from cvmtool.measure.vmsa import signature_of

    cpuid = parse_report(shown.report).cpuid
    assert processor == signature_of(cpuid.family, cpuid.model, cpuid.stepping)


def test_single_files_may_be_expected(tmp_path):
    for name, content in (("firmware", FIRMWARE), ("kernel", b"kernel"), ("initrd", b"initrd")):
        (tmp_path / name).write_bytes(content)
    files = [word for name in ("firmware", "kernel", "initrd") for word in (f"--{name}", tmp_path / name)]
    result = run(*files, "--cmdline", LINE, "--digest", digest(line=f"{LINE}\n"))
    assert result.stdout == "launched with a command line that ends in a line feed; expected: the given one\n"
    assert isinstance(run("base", *files, "--digest", digest()).exception, ConfigError)
    nothing = run("--digest", digest()).exception
    assert isinstance(nothing, ConfigError)
    assert "BUNDLE" in nothing.message


def test_the_jobs_machine_is_expected(tmp_path, monkeypatch):
    from cvmtool.formats.job import Resources

    resources = Resources(vcpus=5, memory_mib=2048, cpu="EPYC-Milan")
    monkeypatch.setattr(module, "resources_of", lambda job: resources)
    result = run("base", "--job", tmp_path / "job.yaml", "--digest", digest(vcpus=5, cpu="EPYC-Milan"))
    assert result.stdout == "launched as expected, with 5 vCPUs\n"


def test_when_nothing_fits_it_says_what_was_ruled_out_and_shows_the_trace(quick):
    result = run("base", "--digest", "00" * 48)
    assert isinstance(result.exception, AppraisalError)
    (finding,) = result.exception.findings
    assert (finding.code, finding.actual, finding.required) == ("measurement", "00" * 48, digest())
    assert "other command lines, each with 1 to" in result.stdout
    assert result.stdout.index("ruled out") < result.stdout.index("page by page") < result.stdout.index(digest())


def test_when_nothing_fits_json_is_one_document_and_the_same_exit_code(quick):
    result = run("base", "--digest", "00" * 48, "--json")
    value = json.loads(result.stdout)
    assert (result.exit_code, value["explanations"]) == (6, [])
    assert value["trace"][-1]["digest"] == value["expected_digest"] == digest()
    assert value["page_counts"]["vmsa"] == 1
    assert len(value["ruled_out"]) == 7


@pytest.mark.parametrize(("patience", "shown"), [(-1.0, True), (1e9, False)])
def test_only_what_lasts_shows_what_is_tried(quick, monkeypatch, patience, shown):
    screen = io.StringIO()
    monkeypatch.setattr(render, "error_console", lambda: Console(file=screen, force_terminal=True, width=200))
    monkeypatch.setattr(module, "PATIENCE_SECONDS", patience)
    assert run("base", "--digest", digest(line=f"{LINE} "), "--vcpus", "2").stdout.startswith(
        "launched with 1 vCPU and "
    )
    assert ("trying one of " in screen.getvalue()) is shown


@pytest.mark.parametrize(
    "arguments",
    [
        ("base",),
        ("base", "--digest", "00"),
        ("base", "--digest", "00" * 48, "--report", "report"),
        ("--digest", "00" * 48),
        ("nowhere", "--digest", "00" * 48),
        ("base", "--digest", "00" * 48, "--vmm", "xen"),
        ("base", "--digest", "00" * 48, "--cpu", "EPYC-None"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments):
    result = run(*arguments)
    assert isinstance(result.exception, CvmError)
    assert result.stdout == ""
