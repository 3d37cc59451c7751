# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's own Python binding on a libnvidia-ml of our own, which a C compiler makes of tests/fakes/nvml.c."""

import ctypes
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from cvmtool.formats.channel import Open
from cvmtool.formats.control import ControlError
from cvmtool.formats.gpu import gpu_nonce, parse_gpu_evidence
from cvmtool.formats.release import Secrets, release_info
from cvmtool.guest.attest import Attested
from cvmtool.guest.console import Console
from cvmtool.guest.gpu import accept_work, collect_gpu_evidence
from cvmtool.guest.keys import BootKeys
from cvmtool.guest.life import Life
from cvmtool.guest.refusal import RefusedError
from cvmtool.owner.gpu import verify_gpu
from tests.fakes.kernel import OtherKernel
from tests.fakes.nvidia import NOW, FakeNvidia
from tests.unit.guest import samples

pynvml = pytest.importorskip("pynvml")

NVIDIA = FakeNvidia()
SESSION = b"D" * 64


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a libnvidia-ml with")
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).parents[2] / "fakes/nvml.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", path, source], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture
def driver(library, tmp_path, monkeypatch):
    library.fake_dir(str(tmp_path).encode())
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    (tmp_path / "state").write_bytes(bytes((1, 0, 0)))
    return tmp_path


def plug(folder, *gpus):
    (folder / "count").write_bytes(bytes([len(gpus)]))
    for index, gpu in enumerate(gpus):
        evidence = gpu.evidence(SESSION, index)
        (folder / f"{index}.report").write_bytes(evidence.report)
        (folder / f"{index}.pem").write_bytes(evidence.certificates)


def refused(call, *args):
    with pytest.raises(RefusedError) as caught:
        call(*args)
    assert caught.value.error is ControlError.GPU
    return caught.value.detail


def test_each_gpu_is_asked_with_its_own_nonce_and_the_owner_believes_the_answer(driver):
    plug(driver, NVIDIA.gpu(), NVIDIA.gpu("0002"))
    evidence = collect_gpu_evidence(SESSION)
    assert len(evidence) == 2
    for index, entry in enumerate(evidence):
        assert (driver / f"{index}.nonce").read_bytes() == gpu_nonce(SESSION, index)
        assert not entry.devtools
        assert verify_gpu(entry, report_data=SESSION, index=index, at=NOW, roots=NVIDIA.roots)


def test_the_developers_mode_is_said(driver):
    plug(driver, NVIDIA.gpu())
    (driver / "state").write_bytes(bytes((1, 1, 0)))
    assert collect_gpu_evidence(SESSION)[0].devtools


def test_no_gpu_is_no_evidence(driver):
    plug(driver)
    assert collect_gpu_evidence(SESSION) == ()


def test_without_confidential_computing_there_is_none(driver):
    plug(driver, NVIDIA.gpu())
    (driver / "state").write_bytes(bytes(3))
    assert "is off" in refused(collect_gpu_evidence, SESSION)


def test_a_gpu_that_gives_no_report_is_named_by_the_driver(driver):
    plug(driver, NVIDIA.gpu())
    (driver / "0.report").unlink()
    assert "nvidia's driver" in refused(collect_gpu_evidence, SESSION)


def test_more_than_any_guest_is_given(driver):
    (driver / "count").write_bytes(bytes([9]))
    assert "9 GPUs" in refused(collect_gpu_evidence, SESSION)


def test_work_is_taken_when_the_owner_has_released(driver):
    assert (driver / "state").read_bytes()[2] == 0
    accept_work()
    assert (driver / "state").read_bytes()[2] == 1


def test_a_driver_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    assert "nvidia's driver" in refused(collect_gpu_evidence, SESSION)


def test_an_image_without_the_binding_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "no driver for GPUs" in refused(accept_work)


class Role(SimpleNamespace):
    """A job that takes its keys."""

    unlocked = True

    def release(self, _secrets, _attested):
        self.opened = True
        return {"tools": 1}


@pytest.fixture
def life():
    """A guest that is configured for a job with one GPU, and that job."""
    base = samples.manifest()
    keys = BootKeys()
    owner = bytes.fromhex(base.owner_key)
    manifest = replace(base, resources=replace(base.resources, gpus=1))
    challenge = Open(nonce=b"n" * 32, owner_key=owner, manifest_sha256=manifest.sha256)
    attested = Attested(challenge=challenge, evidence=None, report_data=SESSION, host_data=manifest.host_data)
    role = Role(opened=False)
    kernel = OtherKernel()
    made = Life(
        keys,
        lambda: attested,
        Console(Path("/dev/null")),
        make_job=lambda *_: role,
        make_machine=lambda *_: role,
        kernel=kernel,
    )
    made.told = kernel.told
    made.seal = lambda: Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM).encrypt(
        Secrets(packs={"ab" * 32: b"p" * 32}).encode(),
        X25519PublicKey.from_public_bytes(keys.hpke_key),
        release_info(report_data=SESSION, host_data=manifest.host_data),
    )
    made.configured = lambda: made.configure(manifest.encode(), certificates=b"")
    return made


def test_the_guest_shows_its_gpus_once_it_knows_its_job(life, driver):
    plug(driver, NVIDIA.gpu())
    with pytest.raises(RefusedError) as early:
        life.gpu_evidence()
    assert early.value.error is ControlError.ORDER
    life.configured()
    assert life.told == []
    (entry,) = parse_gpu_evidence(life.gpu_evidence())
    assert life.told == ["bring up"]
    assert verify_gpu(entry, report_data=SESSION, index=0, at=NOW, roots=NVIDIA.roots)


def test_the_gpus_take_work_with_the_keys_and_not_before(life, driver):
    plug(driver, NVIDIA.gpu())
    life.configured()
    life.gpu_evidence()
    with pytest.raises(RefusedError):
        life.release(bytes(64))
    assert (driver / "state").read_bytes()[2] == 0
    life.release(life.seal())
    assert life.role.opened
    assert (driver / "state").read_bytes()[2] == 1


def test_a_guest_whose_image_has_no_driver_opens_nothing(life, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    life.configured()
    with pytest.raises(RefusedError) as refusal:
        life.release(life.seal())
    assert refusal.value.error is ControlError.GPU
    assert not life.role.opened
