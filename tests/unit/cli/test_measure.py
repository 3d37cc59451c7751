# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from typer.testing import CliRunner

from cvmtool.cli import measure
from cvmtool.errors import ConfigError
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.launch import firmware_seed, launch_digest
from tests.unit.measure.test_ovmf import SECTIONS, firmware, metadata

FIRMWARE = firmware(pages=2)
HASHES = kernel_hashes(b"kernel", b"initrd", "quiet")


@pytest.fixture
def files(tmp_path):
    for name, content in (("firmware", FIRMWARE), ("kernel", b"kernel"), ("initrd", b"initrd")):
        (tmp_path / name).write_bytes(content)
    return tmp_path


def run(files, *arguments):
    names = {"firmware", "kernel", "initrd"}
    return CliRunner().invoke(measure.app, [str(files / a) if a in names else a for a in arguments])


RAW = ("raw", "--firmware", "firmware", "--vcpus", "2")
KERNEL = ("--kernel", "kernel", "--initrd", "initrd", "--cmdline", "quiet")


def test_raw_prints_the_digest_and_nothing_else(files):
    expected = launch_digest(FIRMWARE, hashes=HASHES, cpu="EPYC-Genoa", vcpus=2).hex()
    assert run(files, *RAW, *KERNEL).stdout == expected + "\n"


def test_raw_takes_a_signature_features_and_a_monitor(files):
    result = run(files, *RAW, "--cpu", "0xa10f10", "--guest-features", "0x21", "--vmm", "gce", "--json", "--trace")
    value = json.loads(result.stdout)
    assert value["schema"] == "cvmtool/measure-raw/v1"
    assert value["trace"][-1]["digest"] == value["launch_digest"]
    from cvmtool.measure.vmsa import Vmm

    expected = launch_digest(FIRMWARE, hashes=None, cpu=0xA10F10, vcpus=2, guest_features=0x21, vmm=Vmm.GCE)
    assert value["launch_digest"] == expected.hex()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--initrd", "initrd"),
        ("--cmdline", "quiet"),
        ("--vmm", "xen"),
        ("--cpu", "host"),
        ("--cpu", "0xzz"),
        ("--guest-features", "snp"),
        ("--kernel", "missing"),
    ],
)
def test_what_cannot_be_measured_is_refused(files, arguments):
    result = run(files, *RAW, *arguments)
    assert isinstance(result.exception, ConfigError)
    assert result.stdout == ""


def test_a_firmware_that_boots_anything_is_refused(files):
    (files / "firmware").write_bytes(firmware(meta=metadata(SECTIONS[:3])))
    assert isinstance(run(files, *RAW, *KERNEL).exception, ConfigError)


class Image:
    """What `measure` needs of a bundle."""

    def __init__(self, files):
        self.folder = files
        self.firmware, self.kernel, self.initrd = (files / name for name in ("firmware", "kernel", "initrd"))
        self.digest = "ab" * 32

    def cmdline(self, mode):
        return {"production": "quiet", "dryrun": "quiet cvmtool.dryrun=1"}[mode]


@pytest.fixture
def image(files, monkeypatch):
    monkeypatch.setattr(measure, "named_bundle", lambda folder: Image(files))
    return files


@pytest.mark.parametrize("arguments", [("base",), ("bundle", "base"), ("--vcpus", "1", "base")])
def test_a_word_that_is_no_command_is_a_bundle(image, arguments):
    value = json.loads(run(image, *arguments, "--json").stdout)
    assert value["schema"] == "cvmtool/measure/v1"
    assert value["vcpus"] == 1
    by_mode = {row["mode"]: row["launch_digest"] for row in value["digests"]}
    assert by_mode["production"] == launch_digest(FIRMWARE, hashes=HASHES, cpu="EPYC-Genoa", vcpus=1).hex()
    assert by_mode["dryrun"] != by_mode["production"]


def test_a_trace_shows_the_pages_of_both_command_lines(image):
    rows = json.loads(run(image, "base", "--vcpus", "3", "--trace", "--json").stdout)["digests"]
    for row in rows:
        assert row["trace"][-1]["digest"] == row["launch_digest"]
        assert row["page_counts"] == {"normal": 3, "zero": 9, "secrets": 1, "cpuid": 1, "vmsa": 3}
    assert rows[0]["trace"][0] == rows[1]["trace"][0]
    text = run(image, "base", "--vcpus", "3", "--trace")
    assert text.stdout == run(image, "base", "--vcpus", "3").stdout
    assert all(row["trace"][3]["digest"] in text.stderr for row in rows)


def test_a_seed_stands_for_the_firmware(files):
    written = run(files, "seed", "firmware", "--out", str(files / "seed"))
    assert written.stdout == firmware_seed(FIRMWARE).digest.hex() + "\n"
    seeded = run(files, "raw", "--seed", str(files / "seed"), "--vcpus", "2", *KERNEL)
    assert seeded.stdout == run(files, *RAW, *KERNEL).stdout != ""
    value = json.loads(run(files, "seed", "firmware", "--out", str(files / "seed"), "--json").stdout)
    assert (value["digest"], value["size"]) == (firmware_seed(FIRMWARE).digest.hex(), len(FIRMWARE))
    assert isinstance(run(files, "seed", "firmware", "--out", str(files / "no/seed")).exception, ConfigError)


@pytest.mark.parametrize("arguments", [("raw",), ("raw", "--firmware", "firmware", "--seed", "firmware")])
def test_a_firmware_or_a_seed_is_given(files, arguments):
    assert isinstance(run(files, *arguments).exception, ConfigError)
