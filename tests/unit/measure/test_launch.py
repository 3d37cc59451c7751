# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Launch digests against published values and against sev-snp-measure."""

import hashlib
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvmtool.errors import ConfigError
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.launch import (
    MAX_VCPUS,
    PageType,
    Vmm,
    firmware_seed,
    launch_digest,
    launch_digests,
    section_pages,
)
from cvmtool.measure.vmsa import CPU_SIGNATURES
from tests import vectors
from tests.unit.measure.test_ovmf import SECTIONS, firmware, metadata

FOLDER = "launch-measurement"
FIRMWARE = firmware(pages=3)
HASHES = kernel_hashes(b"kernel", b"initrd", "quiet")
PUBLISHED = 16


def digest(**changes):
    arguments = {"firmware": FIRMWARE, "hashes": HASHES, "cpu": "EPYC-Genoa", "vcpus": 2, **changes}
    return launch_digest(arguments.pop("firmware"), **arguments)


def profile(params):
    vmm = Vmm(params.get("vmm", "qemu"))
    return Vmm.EC2_RDX0 if vmm is Vmm.EC2 and params.get("ec2_rdx") == 0 else vmm


@pytest.mark.vectors
def test_every_published_digest():
    rows = vectors.load(f"{FOLDER}/expected.json")
    assert len(rows) >= PUBLISHED
    for row in rows:
        params = row["params"]
        hashes = kernel_hashes(b"", b"", params.get("append", "")) if "kernel" in params else None
        found = launch_digest(
            vectors.read(f"{FOLDER}/{row['fixture']}"),
            hashes=hashes,
            cpu=params.get("sig", "EPYC-v4"),
            vcpus=params.get("vcpus", 1),
            guest_features=params["feat"],
            vmm=profile(params),
        )
        assert found.hex() == row["expected"], row["name"]


@pytest.mark.vectors
def test_the_digest_depends_on_what_was_published_and_on_nothing_less():
    rows = vectors.load(f"{FOLDER}/expected.json")
    assert len({row["expected"] for row in rows}) == len(rows)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cpu=st.sampled_from(sorted(CPU_SIGNATURES)),
    vcpus=st.integers(1, 12),
    features=st.integers(0, (1 << 20) - 1).map(lambda bits: bits | 1),
    vmm=st.sampled_from(["qemu", "ec2", "gce"]),
    pages=st.integers(1, 4),
    kernel=st.none() | st.tuples(st.binary(max_size=64), st.binary(max_size=64), st.text("abc =/", max_size=20)),
)
def test_the_same_as_sev_snp_measure(tmp_path_factory, *, cpu, vcpus, features, vmm, pages, kernel):
    peer = pytest.importorskip("sevsnpmeasure.guest")
    from sevsnpmeasure.sev_mode import SevMode
    from sevsnpmeasure.vmm_types import VMMType

    folder = tmp_path_factory.mktemp("peer")
    image = firmware(pages=pages)
    (folder / "fw").write_bytes(image)
    hashes = None
    names = {"kernel": "", "initrd": "", "append": ""}
    if kernel is not None:
        hashes = kernel_hashes(*kernel)
        (folder / "k").write_bytes(kernel[0])
        (folder / "i").write_bytes(kernel[1])
        names = {"kernel": str(folder / "k"), "initrd": str(folder / "i"), "append": kernel[2]}
    theirs = peer.calc_launch_digest(
        SevMode.SEV_SNP,
        vcpus,
        CPU_SIGNATURES[cpu],
        str(folder / "fw"),
        names["kernel"],
        names["initrd"],
        names["append"],
        features,
        vmm_type={"qemu": VMMType.QEMU, "ec2": VMMType.ec2, "gce": VMMType.gce}[vmm],
    )
    ours = launch_digest(image, hashes=hashes, cpu=cpu, vcpus=vcpus, guest_features=features, vmm=Vmm(vmm))
    assert ours.hex() == theirs.hex()


def test_our_signatures_are_those_of_sev_snp_measure():
    peer = pytest.importorskip("sevsnpmeasure.vcpu_types")
    assert {name: value for name, value in CPU_SIGNATURES.items() if name in peer.CPU_SIGS} == {
        name: value for name, value in peer.CPU_SIGS.items() if name in CPU_SIGNATURES
    }
    assert peer.CPU_SIGS.keys() <= CPU_SIGNATURES.keys()


def test_one_pass_gives_the_digest_of_every_count():
    every = launch_digests(FIRMWARE, hashes=HASHES, cpu="EPYC-Genoa", vcpus=5)
    assert every == tuple(digest(vcpus=count) for count in range(1, 6))
    assert len(set(every)) == 5
    assert all(len(value) == 48 for value in every)


@pytest.mark.parametrize(
    "change",
    [
        {"firmware": firmware(pages=4)},
        {"firmware": FIRMWARE[:100] + b"\1" + FIRMWARE[101:]},
        {"firmware": firmware(pages=3, table=(0x810C10, 0x3F0))},
        {"firmware": firmware(pages=3, meta=metadata(SECTIONS[::-1]))},
        {"hashes": None},
        {"hashes": kernel_hashes(b"kernel2", b"initrd", "quiet")},
        {"hashes": kernel_hashes(b"kernel", b"initrd2", "quiet")},
        {"hashes": kernel_hashes(b"kernel", b"initrd", "quie")},
        {"vcpus": 1},
        {"vcpus": 3},
        {"cpu": "EPYC-Milan"},
        {"guest_features": 0x21},
        *({"vmm": vmm} for vmm in Vmm if vmm is not Vmm.QEMU),
    ],
)
def test_each_input_changes_the_digest(change):
    assert digest(**change) != digest()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"firmware": firmware(meta=metadata(SECTIONS[:3]))}, "SNP_KERNEL_HASHES"),
        ({"firmware": firmware(table=(0x810C00, 175))}, "hash table has 175"),
        ({"vcpus": 0}, "vcpus"),
        ({"vcpus": MAX_VCPUS + 1}, "vcpus"),
        ({"cpu": "host"}, "cpu model"),
        ({"guest_features": 0}, "guest features"),
        ({"guest_features": 2}, "guest features"),
        ({"guest_features": (1 << 64) | 1}, "guest features"),
        ({"guest_features": -1}, "guest features"),
    ],
)
def test_an_impossible_launch_is_refused(change, field):
    with pytest.raises(ConfigError) as refusal:
        digest(**change)
    assert field in refusal.value.message


def test_a_firmware_without_the_section_is_measured_when_there_is_no_kernel():
    assert digest(firmware=firmware(meta=metadata(SECTIONS[:3])), hashes=None)


def test_pages_are_typed_and_ordered():
    def kinds(hashes, vmm):
        return [page.kind for page in section_pages(firmware_seed(FIRMWARE).firmware, hashes, vmm)]

    assert kinds(HASHES, Vmm.QEMU) == [PageType.ZERO] * 9 + [PageType.SECRETS, PageType.CPUID, PageType.NORMAL]
    assert kinds(HASHES, Vmm.EC2)[-1] is PageType.CPUID
    assert kinds(None, Vmm.QEMU)[-1] is PageType.ZERO
    assert PageType.UNMEASURED in set(kinds(HASHES, Vmm.GCE))


@pytest.mark.parametrize("vmm", Vmm)
@pytest.mark.parametrize("hashes", [None, HASHES], ids=["bare", "kernel"])
def test_a_seed_is_as_good_as_the_firmware(vmm, hashes):
    seed = firmware_seed(FIRMWARE)
    assert len(seed.digest) == 48
    assert digest(firmware=seed, vmm=vmm, hashes=hashes) == digest(vmm=vmm, hashes=hashes)


def test_a_seed_by_hand():
    """Two pages, written out after the specification, with nothing of ours."""
    image = firmware(pages=2)
    value = bytes(48)
    for number in range(2):
        page = image[4096 * number : 4096 * (number + 1)]
        gpa = 0x1_0000_0000 - 8192 + 4096 * number
        info = value + hashlib.sha384(page).digest() + struct.pack("<HBBIQ", 112, 1, 0, 0, gpa)
        assert len(info) == 112
        value = hashlib.sha384(info).digest()
    assert firmware_seed(image).digest == value
