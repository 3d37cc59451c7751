# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from cryptography.x509 import ocsp

from cvmtool.errors import FormatError
from cvmtool.formats.channel import find_last_open
from cvmtool.formats.gpu import GpuEvidence
from cvmtool.formats.release import Secrets
from cvmtool.formats.spdm import parse_gpu_report
from cvmtool.owner.appraise import RefusedError
from cvmtool.owner.checks import NotGenuineError
from cvmtool.owner.gpu import (
    AuthenticGpu,
    StaleGpuError,
    VerifiedGpus,
    appraise_gpus,
    verify_gpu,
)
from cvmtool.owner.nvidia import parse_chain
from cvmtool.owner.policy import Rule
from cvmtool.owner.rim import verify_manifest
from cvmtool.owner.seal import seal
from tests.fakes.guest import FakeGuest
from tests.fakes.nvidia import (
    DRIVER,
    DRIVER_INDEXES,
    FIRMWARE_ID,
    MEASUREMENTS,
    NOW,
    VBIOS,
    VBIOS_INDEXES,
    FakeNvidia,
)
from tests.unit.owner.test_gpupolicy import LOOSE, POLICY
from tests.vectors import need, read

NVIDIA = FakeNvidia()
GPU = NVIDIA.gpu()
SESSION = b"D" * 64


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    fake = FakeGuest(tmp_path_factory.mktemp("guest"))
    session = fake.session()
    return session.judge(fake.answer(find_last_open(session.challenge())[0]), datetime.now(UTC))


@pytest.fixture(scope="module")
def manifests():
    return {
        name: verify_manifest(document, NOW, root=NVIDIA.roots.manifests)
        for name, document in NVIDIA.manifests().items()
    }


def verified(gpu, guest=None, index=0):
    session = SESSION if guest is None else guest.report_data
    evidence = gpu.evidence(session, index)
    return verify_gpu(evidence, report_data=session, index=index, at=NOW, roots=NVIDIA.roots)


def judged(guest, manifests, *gpus, policy=POLICY, count=None, statuses=None):
    found = [verified(gpu, guest, index) for index, gpu in enumerate(gpus)]
    if statuses is None:
        statuses = [status for gpu in gpus for status in NVIDIA.statuses(gpu)]
    return appraise_gpus(
        found,
        policy,
        guest=guest,
        count=len(gpus) if count is None else count,
        manifests=manifests,
        statuses=statuses,
        at=NOW,
    )


def refused(*args, **named):
    with pytest.raises(RefusedError) as caught:
        judged(*args, **named)
    return [finding.code for finding in caught.value.findings]


# A report, and whose it is


def test_a_gpu_that_answers_this_session_is_genuine():
    gpu = verified(GPU)
    assert gpu.driver_version == DRIVER
    assert gpu.manifest_names == tuple(NVIDIA.manifests())
    assert [check.code for check in gpu.checks] == ["gpu-signature", "gpu-nonce", "gpu-firmware-id"]


@pytest.mark.parametrize(("session", "index"), [(b"E" * 64, 0), (SESSION, 1)], ids=["another session", "another place"])
def test_an_answer_to_another_nonce_is_stale(session, index):
    evidence = GPU.evidence(SESSION)
    with pytest.raises(StaleGpuError, match="gpu nonce"):
        verify_gpu(evidence, report_data=session, index=index, at=NOW, roots=NVIDIA.roots)


def test_a_nonce_written_over_an_old_report_breaks_the_signature():
    old = GPU.evidence(b"E" * 64)
    nonce = parse_gpu_report(GPU.evidence(SESSION).report).nonce
    forged = replace(old, report=old.report[:4] + nonce + old.report[36:])
    with pytest.raises(NotGenuineError, match="gpu signature"):
        verify_gpu(forged, report_data=SESSION, index=0, at=NOW, roots=NVIDIA.roots)


def test_another_gpus_chain_vouches_for_nothing():
    evidence = replace(GPU.evidence(SESSION), certificates=NVIDIA.gpu().pem)
    with pytest.raises(NotGenuineError, match="gpu signature"):
        verify_gpu(evidence, report_data=SESSION, index=0, at=NOW, roots=NVIDIA.roots)


def test_a_gpu_of_our_own_making_is_not_nvidias():
    with pytest.raises(NotGenuineError, match="gpu chain"):
        verify_gpu(GPU.evidence(SESSION), report_data=SESSION, index=0, at=NOW)


@pytest.mark.parametrize("certified", [b"\x01" * 48, None])
def test_a_key_of_other_firmware_is_refused(certified):
    with pytest.raises(NotGenuineError, match="gpu firmware id"):
        verified(NVIDIA.gpu(certified=certified))


def test_firmware_that_is_not_named_is_left_to_the_measurements():
    assert verified(replace(GPU, firmware=None)).checks[-1].actual == "gpu 0: not stated"


def test_a_name_that_would_leave_the_path_is_refused():
    with pytest.raises(FormatError, match="manifest's name"):
        _ = verified(replace(GPU, driver=b"../x")).manifest_names


def test_any_flipped_byte_is_refused():
    evidence = GPU.evidence(SESSION)
    for at in range(0, len(evidence.report), 97):
        report = bytearray(evidence.report)
        report[at] ^= 0x10
        with pytest.raises((NotGenuineError, FormatError, StaleGpuError)):
            verify_gpu(
                replace(evidence, report=bytes(report)), report_data=SESSION, index=0, at=NOW, roots=NVIDIA.roots
            )


# Whether it is acceptable


def test_gpus_that_are_as_nvidia_says_are_trusted(guest, manifests):
    found = judged(guest, manifests, GPU)
    assert found.devices == ("41431d480fe5e87274",)
    assert found.report_data == guest.report_data
    assert all(check.passed for check in found.checks)
    assert found.unchecked == ()


def test_two_are_trusted_in_the_order_of_the_guest(guest, manifests):
    found = judged(guest, manifests, GPU, NVIDIA.gpu("0002"), policy=LOOSE)
    assert found.devices == ("41431d480fe5e87274", "0002")
    assert found.unchecked == ("gpu-devices", "gpu-revocation")


def test_one_gpu_does_not_answer_for_two(guest, manifests):
    assert refused(guest, manifests, GPU, GPU, policy=LOOSE) == ["gpu-identity"]


def test_a_gpu_without_an_identity_is_refused(guest, manifests):
    assert "gpu-identity" in refused(guest, manifests, NVIDIA.gpu(None), policy=LOOSE)


@pytest.mark.parametrize("count", [0, 2])
def test_a_job_gets_as_many_as_it_wants(guest, manifests, count):
    assert refused(guest, manifests, GPU, count=count) == ["gpu-count"]


def test_no_gpu_is_not_enough(guest, manifests):
    assert "gpu-count" in refused(guest, manifests, count=1)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"measurements": {**MEASUREMENTS, 22: bytes(48)}}, "gpu-measurements"),
        ({"measurements": {n: v for n, v in MEASUREMENTS.items() if n != 2}}, "gpu-measurements"),
        ({"devtools": True}, "gpu-mode"),
        ({"protected_pcie": b"\xaa"}, "gpu-protected-pcie"),
    ],
    ids=["another", "a missing one", "developers' mode", "protected PCIe"],
)
def test_a_gpu_in_another_state_is_refused(guest, manifests, change, code):
    assert refused(guest, manifests, replace(GPU, **change)) == [code]


def test_a_measurement_that_no_manifest_states_is_not_compared(guest, manifests):
    assert judged(guest, manifests, replace(GPU, measurements={**MEASUREMENTS, 64: bytes(48)}))


def test_the_decoders_measurement_counts_while_it_is_on(guest, manifests):
    off = {**MEASUREMENTS, 36: bytes(48)}
    assert 36 in DRIVER_INDEXES
    assert judged(guest, manifests, replace(GPU, nvdec=b"\x55", measurements=off))
    assert refused(guest, manifests, replace(GPU, measurements=off)) == ["gpu-measurements"]


def test_other_versions_need_their_own_manifests(guest, manifests):
    newer = replace(GPU, driver=b"550.90.08\0")
    assert refused(guest, manifests, newer) == ["gpu-driver-manifest", "gpu-measurements"]
    renamed = {**manifests, "NV_GPU_DRIVER_GH100_550.90.08": manifests[f"NV_GPU_DRIVER_GH100_{DRIVER}"]}
    assert refused(guest, renamed, newer) == ["gpu-driver-manifest"]


def test_a_manifest_of_another_chip_is_none(guest, manifests):
    other = verify_manifest(NVIDIA.manifest(VBIOS, VBIOS_INDEXES, product="GB100"), NOW, root=NVIDIA.roots.manifests)
    assert refused(guest, {**manifests, "NV_GPU_VBIOS_1010_0200_882_96009F0001": other}, GPU) == ["gpu-vbios-manifest"]


def test_what_both_manifests_claim_is_nobodys(guest, manifests):
    both = verify_manifest(NVIDIA.manifest(VBIOS, (1, 2, 8)), NOW, root=NVIDIA.roots.manifests)
    found = refused(guest, {**manifests, "NV_GPU_VBIOS_1010_0200_882_96009F0001": both}, GPU)
    assert found == ["gpu-measurements"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"chips": frozenset({"GB100"})}, "gpu-chip"),
        ({"min_driver": "550.90.08"}, "gpu-driver"),
        ({"min_driver": "1000.0"}, "gpu-driver"),
        ({"min_vbios": "96.00.A0.00.00"}, "gpu-vbios"),
        ({"devices": frozenset({"0002"})}, "gpu-device"),
        ({"protected_pcie": Rule.REQUIRED}, "gpu-protected-pcie"),
    ],
)
def test_each_rule_refuses(guest, manifests, change, code):
    assert refused(guest, manifests, GPU, policy=replace(POLICY, **change)) == [code]


def told(checks):
    return json.dumps([check.to_json() for check in checks], indent=1) + "\n"


def test_what_is_said_of_a_gpu_that_is_trusted(guest, manifests, golden):
    gpu = replace(GPU, firmware=None)
    text = told(judged(guest, manifests, gpu).checks)
    golden(
        "gpu-trusted.json", text.replace(parse_gpu_report(gpu.evidence(guest.report_data).report).nonce.hex(), "NONCE")
    )


def test_what_is_said_of_a_gpu_that_is_refused(guest, manifests, golden):
    bad = replace(
        NVIDIA.gpu(None), devtools=True, protected_pcie=b"\xaa", driver=b"550.90.06\0", vbios=bytes.fromhex("009e009601000000"),
        measurements={**MEASUREMENTS, 1: bytes(48)},
    )  # fmt: skip
    other = verify_manifest(NVIDIA.manifest("1.2", (2, 9)), NOW, root=NVIDIA.roots.manifests)
    mine = verify_manifest(NVIDIA.manifest("550.90.05", (1, 2)), NOW, root=NVIDIA.roots.manifests)
    policy = replace(POLICY, chips=frozenset({"GB202", "GB100"}), devices=frozenset({"0001", "0002"}))
    known = {"NV_GPU_DRIVER_GH100_550.90.06": mine, "NV_GPU_VBIOS_1010_0200_882_96009E0001": other}
    with pytest.raises(RefusedError) as caught:
        judged(guest, known, bad, policy=policy, count=2, statuses=[])
    nonce = parse_gpu_report(bad.evidence(guest.report_data).report).nonce.hex()
    golden("gpu-refused.json", told(caught.value.checks).replace(nonce, "NONCE"))
    assert all(not check.passed for check in caught.value.checks if check.code not in GENUINE)


GENUINE = {"gpu-signature", "gpu-nonce", "gpu-firmware-id"}


@pytest.mark.parametrize("missing", [0, 1], ids=["the driver's", "the VBIOS's"])
def test_one_manifest_is_not_enough(guest, manifests, missing):
    known = dict(manifests)
    del known[list(known)[missing]]
    with pytest.raises(RefusedError) as caught:
        judged(guest, known, GPU)
    absent, measured = caught.value.findings
    assert absent.actual == "gpu 0: absent"
    assert measured.actual == "gpu 0: 0 of 0 right"


def test_later_chips_have_manifests_of_another_name():
    names = verified(NVIDIA.gpu(chip="GB100")).manifest_names
    assert names[0] == f"NV_GPU_CC_DRIVER_GB100_{DRIVER}"


@pytest.mark.parametrize(
    ("least", "reached"),
    [("96.00.9F.00.01", True), ("96.00.9E.FF.FF", True), ("96.00.9F.00.02", False), ("96.00.A0.00.00", False)],
)
def test_vbios_versions_are_compared_in_hex(guest, manifests, least, reached):
    policy = replace(POLICY, min_vbios=least)
    if reached:
        assert judged(guest, manifests, GPU, policy=policy)
    else:
        assert refused(guest, manifests, GPU, policy=policy) == ["gpu-vbios"]


def test_what_is_said_of_evidence_that_is_not_genuine():
    evidence = GPU.evidence(SESSION)
    with pytest.raises(NotGenuineError) as unsigned:
        verify_gpu(
            replace(evidence, report=evidence.report[:-1] + bytes([evidence.report[-1] ^ 1])),
            report_data=SESSION,
            index=0,
            at=NOW,
            roots=NVIDIA.roots,
        )
    check = unsigned.value.check
    assert (check.actual, check.required) == ("not that of this report", "by the key of its chain")
    for certified, required in ((b"\x01" * 48, "01" * 48), (None, "none")):
        with pytest.raises(NotGenuineError) as other:
            verified(NVIDIA.gpu(certified=certified))
        assert (other.value.check.actual, other.value.check.required) == (f"gpu 0: {FIRMWARE_ID.hex()}", required)


def test_all_findings_are_listed(guest, manifests):
    bad = replace(GPU, devtools=True, measurements={**MEASUREMENTS, 1: bytes(48)})
    policy = replace(POLICY, min_driver="999.1", chips=frozenset({"GB100"}))
    assert refused(guest, manifests, bad, policy=policy, count=3) == [
        "gpu-count", "gpu-chip", "gpu-driver", "gpu-mode", "gpu-measurements",
    ]  # fmt: skip


def test_a_version_that_is_none_reaches_nothing(guest, manifests):
    assert "gpu-driver" in refused(guest, manifests, replace(GPU, driver=b"new"), policy=LOOSE)


# Whether it was withdrawn


def test_without_a_word_of_the_status_service_nothing_is_trusted(guest, manifests):
    assert refused(guest, manifests, GPU, statuses=[]) == ["gpu-revocation"]
    assert judged(guest, manifests, GPU, statuses=[], policy=replace(POLICY, revocation=False))


@pytest.mark.parametrize(
    "link",
    [
        lambda: (GPU.brom, NVIDIA.identity),
        lambda: (NVIDIA.identity, NVIDIA.device_root),
        lambda: (NVIDIA.rim_signer, NVIDIA.rim_ca),
        lambda: (NVIDIA.rim_ca, NVIDIA.rim_root),
    ],
    ids=["the GPU", "its line", "a manifest's signer", "its authority"],
)
def test_one_that_was_withdrawn_is_refused(guest, manifests, link):
    revoked = NVIDIA.status(*link(), status=ocsp.OCSPCertStatus.REVOKED)
    assert refused(guest, manifests, GPU, statuses=[*NVIDIA.statuses(GPU), revoked]) == ["gpu-revocation"]


# The types


def test_a_gpu_of_another_session_is_not_judged(guest, manifests):
    with pytest.raises(ValueError, match="another session"):
        appraise_gpus([verified(GPU)], POLICY, guest=guest, count=1, manifests=manifests, statuses=[], at=NOW)


@pytest.fixture(scope="module")
def wanting(tmp_path_factory):
    """A guest whose manifest wants one GPU, verified twice."""
    base = FakeGuest(tmp_path_factory.mktemp("base")).manifest
    manifest = replace(base, resources=replace(base.resources, gpus=1))
    fake = FakeGuest(tmp_path_factory.mktemp("wanting"), manifest=manifest)

    def judge(nonce):
        session = fake.session(nonce)
        return session.judge(fake.answer(find_last_open(session.challenge())[0]), datetime.now(UTC))

    return manifest, judge(b"1" * 32), judge(b"2" * 32)


def test_keys_leave_for_a_guest_with_gpus_once_both_are_verified(wanting, manifests):
    manifest, guest, other = wanting
    secrets = Secrets(packs={pack.root_hash: b"p" * 32 for pack in manifest.packs})
    gpus = judged(guest, manifests, GPU)
    assert seal(guest, secrets, manifest=manifest, gpus=gpus)
    for lookalike in (None, SimpleNamespace(report_data=guest.report_data, devices=("x",)), gpus.devices):
        with pytest.raises(TypeError):
            seal(guest, secrets, manifest=manifest, gpus=lookalike)
    with pytest.raises(ValueError, match="another session"):
        seal(other, secrets, manifest=manifest, gpus=gpus)
    two = judged(guest, manifests, GPU, NVIDIA.gpu("0002"), policy=LOOSE)
    with pytest.raises(ValueError, match="not as many"):
        seal(guest, secrets, manifest=manifest, gpus=two)


def test_gpus_are_judged_all_and_in_order(guest, manifests):
    second = verified(GPU, guest, index=1)
    with pytest.raises(ValueError, match="order"):
        appraise_gpus([second], POLICY, guest=guest, count=1, manifests=manifests, statuses=[], at=NOW)


def test_nobody_else_makes_them():
    with pytest.raises(TypeError):
        VerifiedGpus(report_data=SESSION, devices=(), checks=(), unchecked=(), token=None)
    with pytest.raises(TypeError):
        AuthenticGpu(index=0, report_data=SESSION, report=None, chain=None, devtools=False, checks=(), token=None)


@pytest.mark.nvidia
def test_nvidias_own_sample_is_genuine_and_stale():
    """A real GH100's report verifies up to its nonce, which no session of ours made."""
    need()
    evidence = GpuEvidence(
        report=bytes.fromhex(read("nvidia/hopperAttestationReport.txt").decode()),
        certificates=read("nvidia/hopperCertChain.txt"),
        devtools=False,
    )
    assert len(parse_chain(evidence.certificates)) == 5
    with pytest.raises(StaleGpuError, match="931d8dd0add203ac"):
        verify_gpu(evidence, report_data=SESSION, index=0, at=NOW)
    with pytest.raises(NotGenuineError, match="gpu signature"):
        verify_gpu(replace(evidence, report=evidence.report[:-1] + b"\0"), report_data=SESSION, index=0, at=NOW)
