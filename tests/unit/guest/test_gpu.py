# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's own Python binding on a libnvidia-ml of our own, which a C compiler makes of tests/fakes/nvml.c."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cvmtool.formats.control import ControlError
from cvmtool.formats.gpu import gpu_nonce
from cvmtool.guest.gpu import accept_work, collect_gpu_evidence
from cvmtool.guest.refusal import RefusedError
from cvmtool.owner.gpu import verify_gpu
from tests.fakes.nvidia import NOW, FakeNvidia

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
