# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What was launched is found from its digest alone: ours, sev-snp-measure's, and digests that others published."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmtool.errors import ConfigError
from cvmtool.measure import explain as module
from cvmtool.measure.deviations import (
    COMMON_FEATURES,
    FEATURE_NAMES,
    MOST_FEATURES,
    SILICON,
    Deviation,
    Launch,
    Part,
    boot_files,
    command_line,
    command_lines,
    virtual_cpus,
)
from cvmtool.measure.explain import SEARCHED_VCPUS, Expectation, explain
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.launch import firmware_seed, launch_digest, launch_digests
from cvmtool.measure.vmsa import CPU_SIGNATURES, Vmm
from tests import vectors
from tests.unit.measure.test_ovmf import SECTIONS, firmware, metadata

LINE = "console=ttyS0 quiet"
HASHES = kernel_hashes(b"kernel", b"initrd", LINE)
SEED = firmware_seed(firmware(pages=2))
LAUNCH = Launch(
    firmware=SEED,
    kernel=HASHES.kernel,
    initrd=HASHES.initrd,
    cmdline=HASHES.cmdline,
    cpu=CPU_SIGNATURES["EPYC-Genoa"],
    guest_features=1,
    vmm=Vmm.QEMU,
    vcpus=4,
)
NAMES = {part: f"the expected {part}" for part in Part}
DEVIATIONS = (*virtual_cpus(), *boot_files(), *command_lines(LINE))


def digest(launch):
    return launch_digest(
        launch.firmware,
        hashes=launch.hashes,
        cpu=launch.cpu,
        vcpus=launch.vcpus,
        guest_features=launch.guest_features,
        vmm=launch.vmm,
    )


def found(wanted, deviations=DEVIATIONS, launch=LAUNCH):
    return explain(Expectation(launch=launch, names=NAMES), deviations, wanted)


def only(wanted, deviations=DEVIATIONS, launch=LAUNCH):
    (explanation,) = found(wanted, deviations, launch).explanations
    assert digest(explanation.launch) == wanted
    return explanation


def test_the_expected_launch_has_no_differences():
    explanation = only(digest(LAUNCH))
    assert explanation.differences == ()
    assert explanation.sentence == "launched as expected, with 4 vCPUs"


@pytest.mark.parametrize("count", [1, 2, 8, SEARCHED_VCPUS])
def test_another_count_is_one_sentence(count):
    words = "1 vCPU" if count == 1 else f"{count} vCPUs"
    assert only(digest(replace(LAUNCH, vcpus=count))).sentence == f"launched with {words}; expected: 4 vCPUs"


@pytest.mark.parametrize("signature", sorted({*CPU_SIGNATURES.values(), *SILICON.values()} - {LAUNCH.cpu}))
def test_every_cpu_model_and_processor_is_found(signature):
    explanation = only(digest(replace(LAUNCH, cpu=signature, vcpus=5)))
    assert [d.part for d in explanation.differences] == [Part.VCPUS, Part.CPU]
    assert (explanation.launch.cpu, explanation.launch.vcpus) == (signature, 5)


@pytest.mark.parametrize("features", COMMON_FEATURES[1:])
def test_the_features_that_hosts_set_are_found(features):
    (difference,) = only(digest(replace(LAUNCH, guest_features=features))).differences
    assert (difference.part, hex(features) in difference.actual) == (Part.FEATURES, True)
    assert difference.expected == "SEV_FEATURES 0x1 (SNP alone)"


@pytest.mark.parametrize("vmm", [vmm for vmm in Vmm if vmm is not LAUNCH.vmm])
def test_every_monitor_is_found(vmm):
    (difference,) = only(digest(replace(LAUNCH, vmm=vmm))).differences
    assert (difference.part, f"vmm {vmm})" in difference.actual) == (Part.VMM, True)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"kernel": None, "initrd": b"", "cmdline": b""}, Part.KERNEL),
        ({"initrd": hashlib.sha256(b"").digest()}, Part.INITRD),
        ({"cmdline": hashlib.sha256(f"{LINE}\n\0".encode()).digest()}, Part.CMDLINE),
        ({"cmdline": hashlib.sha256(LINE.encode()).digest()}, Part.CMDLINE),
        ({"cmdline": hashlib.sha256(b"\0").digest()}, Part.CMDLINE),
        ({"cmdline": hashlib.sha256(f"initrd=initrd {LINE}\0".encode()).digest()}, Part.CMDLINE),
    ],
)
def test_what_is_booted_is_found(change, part):
    (difference,) = only(digest(replace(LAUNCH, **change))).differences
    assert (difference.part, difference.expected) == (part, f"the expected {part}")


@pytest.mark.parametrize(
    "change",
    [
        {"guest_features": 0x21, "vmm": Vmm.QEMU_LEGACY},
        {"cpu": CPU_SIGNATURES["EPYC-Milan"], "cmdline": hashlib.sha256(f"{LINE} \0".encode()).digest()},
        {"initrd": hashlib.sha256(b"").digest(), "cmdline": hashlib.sha256(b"\0").digest()},
        {"kernel": None, "initrd": b"", "cmdline": b"", "vmm": Vmm.EC2},
    ],
)
def test_two_things_at_once_are_found_with_any_count(change):
    explanation = only(digest(replace(LAUNCH, vcpus=9, **change)))
    assert len(explanation.differences) == 3
    assert replace(LAUNCH, vcpus=9, **change) == explanation.launch
    assert explanation.sentence.startswith("launched with 9 vCPUs, ")
    assert "; expected: 4 vCPUs, " in explanation.sentence


def test_a_stepping_that_no_list_has_is_found():
    assert 0xB00F2C not in {*CPU_SIGNATURES.values(), *SILICON.values()}
    assert only(digest(replace(LAUNCH, cpu=0xB00F2C, vcpus=3))).launch.cpu == 0xB00F2C


def test_any_set_of_documented_features_is_found():
    last = 1 | sum(1 << bit for bit in sorted(FEATURE_NAMES)[-MOST_FEATURES:])
    assert only(digest(replace(LAUNCH, guest_features=last))).launch.guest_features == last


def test_everything_about_the_virtual_cpus_may_differ_at_once():
    launched = replace(
        LAUNCH, cpu=CPU_SIGNATURES["EPYC-Milan"], guest_features=0x21, vmm=Vmm.QEMU_LEGACY, vcpus=2, kernel=None
    )
    launched = replace(launched, initrd=b"", cmdline=b"")
    explanation = only(digest(launched))
    assert explanation.launch == launched
    assert [d.part for d in explanation.differences] == [Part.VCPUS, Part.CPU, Part.FEATURES, Part.VMM, Part.KERNEL]


def test_other_files_are_found_alone_and_together():
    other = firmware_seed(firmware(pages=3))
    offered = (
        Deviation(part=Part.FIRMWARE, actual="the other firmware", values={"firmware": other}),
        Deviation(part=Part.KERNEL, actual="the other kernel", values={"kernel": bytes(32)}),
        command_line("other", "the other line"),
    )
    launched = replace(LAUNCH, firmware=other, kernel=bytes(32))
    assert only(digest(replace(LAUNCH, firmware=other)), offered).differences[0].actual == "the other firmware"
    assert [d.actual for d in only(digest(launched), offered).differences] == ["the other kernel", "the other firmware"]
    assert found(digest(replace(launched, cmdline=HASHES.kernel)), offered).explanations == ()


def test_a_firmware_that_boots_anything_is_found_with_no_measured_kernel():
    generic = firmware_seed(firmware(meta=metadata(SECTIONS[:3])))
    offered = (
        Deviation(part=Part.FIRMWARE, actual="the generic firmware", values={"firmware": generic}),
        *boot_files(),
    )
    launched = replace(LAUNCH, firmware=generic, kernel=None, initrd=b"", cmdline=b"")
    assert [d.part for d in only(digest(launched), offered).differences] == [Part.KERNEL, Part.FIRMWARE]


def test_of_deviations_that_come_to_the_same_the_first_is_told():
    offered = (
        Deviation(part=Part.KERNEL, actual="first", values={"kernel": bytes(32)}),
        Deviation(part=Part.IMAGE, actual="second", values={"kernel": bytes(32), "initrd": LAUNCH.initrd}),
        Deviation(part=Part.IMAGE, actual="as expected", values={"initrd": LAUNCH.initrd}),
    )
    assert only(digest(replace(LAUNCH, kernel=bytes(32))), offered).differences[0].actual == "first"


def test_equally_good_explanations_are_all_told():
    # EC2 measures no CPU signature, so with it expected nothing tells two signatures apart; both counts are wrong alike.
    ec2 = replace(LAUNCH, vmm=Vmm.EC2)
    explanation = only(digest(replace(ec2, vcpus=2, cpu=CPU_SIGNATURES["EPYC-Milan"])), launch=ec2)
    assert [d.part for d in explanation.differences] == [Part.VCPUS]
    offered = (
        Deviation(part=Part.VMM, actual="ec2", values={"vmm": Vmm.EC2}),
        Deviation(part=Part.IMAGE, actual="all of ec2", values={"vmm": Vmm.EC2, "cpu": 0xA00F11}),
    )
    both = found(digest(replace(LAUNCH, vmm=Vmm.EC2)), offered).explanations
    assert [explanation.differences[0].actual for explanation in both] == ["ec2", "all of ec2"]


def test_when_nothing_fits_it_is_said_what_was_tried(monkeypatch):
    monkeypatch.setattr(module, "every_feature_set", lambda: iter(()))
    told = []
    result = explain(Expectation(launch=LAUNCH, names=NAMES), DEVIATIONS[:3], bytes(48), progress=told.append)
    assert result.explanations == ()
    first, single, pairs, mixed, signatures, features, _ = result.ruled_out
    assert (first.launches, single.launches) == (SEARCHED_VCPUS, 3 * SEARCHED_VCPUS)
    assert (pairs.launches, mixed.launches, features.launches) == (0, 0, 0)  # three signatures exclude each other
    assert "3 other CPU signatures" in single.what
    assert signatures.launches == 1279 * SEARCHED_VCPUS
    assert {first.what, single.what, signatures.what} <= set(told)


def test_what_was_ruled_out_before_is_told_with_an_explanation():
    assert [item.launches for item in found(digest(replace(LAUNCH, vmm=Vmm.GCE))).ruled_out] == [SEARCHED_VCPUS]


def test_a_count_beyond_the_search_is_not_found():
    beyond = launch_digests(SEED, hashes=HASHES, cpu=LAUNCH.cpu, vcpus=SEARCHED_VCPUS + 1)[-1]
    assert found(beyond, ()).explanations == ()


@pytest.mark.parametrize(
    "change", [{"guest_features": 0}, {"firmware": firmware_seed(firmware(meta=metadata(SECTIONS[:3])))}]
)
def test_an_expected_launch_that_cannot_be_is_refused(change):
    with pytest.raises(ConfigError):
        found(bytes(48), (), replace(LAUNCH, **change))


@settings(max_examples=40)
@given(data=st.data(), count=st.integers(1, SEARCHED_VCPUS))
def test_any_one_deviation_with_any_count_is_explained(data, count):
    deviation = data.draw(st.sampled_from(DEVIATIONS))
    launched = replace(LAUNCH, vcpus=count, **deviation.values)
    explanation = only(digest(launched))
    assert len(explanation.differences) <= 2


@pytest.mark.parametrize(("vmm", "theirs"), [("qemu", "QEMU"), ("ec2", "ec2"), ("gce", "gce")])
def test_a_digest_of_sev_snp_measure_is_explained(tmp_path, vmm, theirs):
    peer = pytest.importorskip("sevsnpmeasure.guest")
    from sevsnpmeasure.sev_mode import SevMode
    from sevsnpmeasure.vmm_types import VMMType

    for name, content in (("fw", firmware(pages=2)), ("kernel", b"kernel"), ("initrd", b"initrd")):
        (tmp_path / name).write_bytes(content)
    wanted = peer.calc_launch_digest(
        SevMode.SEV_SNP,
        6,
        CPU_SIGNATURES["EPYC-Milan"],
        *(str(tmp_path / name) for name in ("fw", "kernel", "initrd")),
        f"{LINE} ",
        1,
        vmm_type=VMMType[theirs],
    )
    # Where the signature is not measured, it is no difference.
    expected = replace(LAUNCH, vmm=Vmm(vmm), cpu=CPU_SIGNATURES["EPYC-Milan"])
    explanation = only(wanted, launch=expected)
    assert [d.part for d in explanation.differences] == [Part.VCPUS, Part.CMDLINE]


@pytest.mark.vectors
def test_every_published_digest_is_explained_from_the_plain_launch():
    rows = vectors.load("launch-measurement/expected.json")
    for row in rows:
        params = row["params"]
        seed = firmware_seed(vectors.read(f"launch-measurement/{row['fixture']}"))
        hashes = kernel_hashes(b"", b"", params.get("append", "")) if "kernel" in params else None
        launch = Launch(
            firmware=seed,
            kernel=None if hashes is None else hashes.kernel,
            initrd=b"" if hashes is None else hashes.initrd,
            cmdline=b"" if hashes is None else hashes.cmdline,
            cpu=CPU_SIGNATURES["EPYC-Genoa"],
            guest_features=1,
            vmm=Vmm.QEMU,
            vcpus=3,
        )
        explanations = found(bytes.fromhex(row["expected"]), virtual_cpus(), launch).explanations
        assert explanations, row["name"]
        assert {e.launch.vcpus for e in explanations} == {params.get("vcpus", 1)}
