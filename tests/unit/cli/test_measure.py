# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from typer.testing import CliRunner

from cvmtool.cli import explain, measure
from cvmtool.errors import ConfigError, CvmError
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
    for module in (measure, explain):
        monkeypatch.setattr(module, "named_bundle", lambda folder: Image(files))
    return files


@pytest.mark.parametrize("arguments", [("base",), ("bundle", "base"), ("--vcpus", "1", "base")])
def test_a_word_that_is_no_command_is_a_bundle(image, arguments):
    value = json.loads(run(image, *arguments, "--json").stdout)
    assert value["schema"] == "cvmtool/measure/v1"
    assert value["vcpus"] == 1
    by_mode = {row["mode"]: row["launch_digest"] for row in value["digests"]}
    assert by_mode["production"] == launch_digest(FIRMWARE, hashes=HASHES, cpu="EPYC-Genoa", vcpus=1).hex()
    assert by_mode["dryrun"] != by_mode["production"]


def test_explain_finds_the_mistake(image):
    digest = launch_digest(FIRMWARE, hashes=HASHES, cpu="EPYC-Milan", vcpus=3, guest_features=0x21).hex()
    (match,) = json.loads(run(image, "explain", "base", "--digest", digest, "--json").stdout)["matches"]
    assert (match["kernel"], match["vcpus"], match["guest_features"], match["vmm"]) == ("production", 3, 0x21, "qemu")
    assert "EPYC-Milan" in match["cpus"]


def test_explain_says_when_no_mistake_fits(image):
    result = run(image, "explain", "base", "--digest", "00" * 48)
    assert result.exit_code == 0
    assert "no honest mistake" in result.stdout


@pytest.mark.parametrize("arguments", [(), ("--digest", "00"), ("--digest", "00" * 48, "--report", "kernel")])
def test_explain_needs_one_digest(image, arguments):
    assert isinstance(run(image, "explain", "base", *arguments).exception, CvmError)


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
