# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The guest images of this machine are suspects, each of them and each of their files."""

from dataclasses import replace

import pytest

from cvmtool.config import load_settings
from cvmtool.errors import ConfigError
from cvmtool.flows.explain import Files, Machine, built_here, files_of_image, seed_store, suspects
from cvmtool.formats.manifest import Mode
from cvmtool.image.bundle import load_bundle
from cvmtool.measure.deviations import Part
from cvmtool.measure.explain import explain
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.launch import firmware_seed, launch_digest
from cvmtool.measure.vmsa import Vmm
from tests.unit.image.images import FIRMWARE, LINE, make_image
from tests.unit.measure.test_ovmf import firmware

OTHER_FIRMWARE = firmware(pages=3)
MACHINE = Machine(cpu="EPYC-Genoa", vcpus=2, guest_features=1, vmm=Vmm.QEMU)


@pytest.fixture
def places():
    settings = load_settings()
    make_image(settings.bundles_dir / "base")
    make_image(settings.bundles_dir / "next", line=f"{LINE} lockdown=none", kernel=b"k2", firmware=OTHER_FIRMWARE)
    return settings


def sentence(places, wanted, mode=Mode.PRODUCTION):
    seeds = seed_store(places)
    files = files_of_image(load_bundle(places.bundles_dir / "base"), mode, seeds)
    (found,) = explain(files.expected(MACHINE), suspects(files, None, places, seeds), wanted).explanations
    return found.sentence


def digest(image=FIRMWARE, kernel=b"kernel", line=LINE, vcpus=2):
    return launch_digest(image, hashes=kernel_hashes(kernel, b"initrd", line), cpu="EPYC-Genoa", vcpus=vcpus)


def test_the_expected_launch_is_the_images_own(places):
    assert sentence(places, digest()) == "launched as expected, with 2 vCPUs"


@pytest.mark.parametrize("mode", Mode)
def test_the_other_mode_is_named(places, mode):
    lines = {Mode.PRODUCTION: LINE, Mode.DRYRUN: f"{LINE} cvmtool.dryrun=1"}
    names = {Mode.PRODUCTION: "production", Mode.DRYRUN: "dry runs"}
    (other,) = set(Mode) - {mode}
    assert sentence(places, digest(line=lines[other]), mode) == (
        f"launched with the command line of {names[other]}; expected: the command line of {names[mode]} of guest image base"
    )


@pytest.mark.parametrize(
    ("launched", "said"),
    [
        ({"kernel": b"k2"}, "the kernel of guest image next"),
        ({"image": OTHER_FIRMWARE}, "the firmware of guest image next"),
        ({"line": f"{LINE} lockdown=none"}, "the command line of production of guest image next"),
        (
            {"image": OTHER_FIRMWARE, "kernel": b"k2", "line": f"{LINE} lockdown=none"},
            "guest image next and the command line of production",
        ),
        (
            {"image": OTHER_FIRMWARE, "kernel": b"k2", "line": f"{LINE} lockdown=none cvmtool.dryrun=1"},
            "guest image next and the command line of dry runs",
        ),
    ],
)
def test_another_image_of_this_machine_and_its_files_are_named(places, launched, said):
    assert sentence(places, digest(**launched)).startswith(f"launched with {said}; expected: ")
    assert sentence(places, digest(**launched, vcpus=7)).startswith(f"launched with 7 vCPUs and {said}; expected: ")


def test_single_files_are_compared_with_the_images_of_this_machine(places):
    seeds = seed_store(places)
    files = Files(firmware=firmware_seed(FIRMWARE), hashes=kernel_hashes(b"mine", b"initrd", LINE), cmdline=LINE)
    (found,) = explain(files.expected(MACHINE), suspects(files, None, places, seeds), digest()).explanations
    assert found.sentence == "launched with the kernel of guest image base; expected: the given one"


def test_without_a_kernel_nothing_that_it_boots_is_expected(places):
    files = Files(firmware=firmware_seed(FIRMWARE), hashes=None, cmdline="")
    expected = files.expected(MACHINE)
    assert expected.launch.hashes is None
    parts = {deviation.part for deviation in suspects(files, None, places, seed_store(places))}
    assert parts >= {Part.IMAGE, Part.CPU}
    with pytest.raises(ConfigError):
        files.expected(replace(MACHINE, cpu="EPYC-None"))


def test_what_is_damaged_is_passed_over(places):
    (places.bundles_dir / "next" / "firmware").write_bytes(FIRMWARE)
    make_image(places.bundles_dir / "odd", firmware=b"no firmware")
    (places.bundles_dir / "broken").mkdir()
    (places.bundles_dir / "broken" / "manifest.json").write_bytes(b"{}")
    named = {deviation.actual for deviation in built_here(places, seed_store(places))}
    assert not any("next" in name or "odd" in name or "broken" in name for name in named)
    assert any("base" in name for name in named)
