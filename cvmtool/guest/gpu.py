# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Collect evidence of this guest's GPUs through NVIDIA's driver, and let them take work once the owner has released the keys.

Zone: guest (measured). The only door to NVML (nvidia-ml-py).
Spec: docs/protocol.md section 14; NVML, "Confidential computing".

A GPU in confidential mode refuses work until the driver is told that it was attested. That is told after the release, so a
GPU that the owner refused never sees data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cvmtool.formats.control import ControlError
from cvmtool.formats.gpu import MAX_GPUS, GpuEvidence, gpu_nonce
from cvmtool.guest.refusal import RefusedError


def collect_gpu_evidence(report_data: bytes) -> tuple[GpuEvidence, ...]:
    """Return the evidence of every GPU that the driver has, each over its own nonce of the session over `report_data`.

    Raises:
        RefusedError: `gpu`: no driver, too many GPUs, confidential computing is off, or one gives no report.
    """
    with _driver() as nvml:
        count = nvml.nvmlDeviceGetCount()
        if count > MAX_GPUS:
            raise RefusedError(ControlError.GPU, f"the driver has {count} GPUs; at most {MAX_GPUS} are allowed")
        state = nvml.nvmlSystemGetConfComputeState()
        if not state.ccFeature:
            raise RefusedError(ControlError.GPU, "confidential computing is off on this guest's GPUs; on is required")
        return tuple(
            _evidence(nvml, index, gpu_nonce(report_data, index), devtools=bool(state.devToolsMode))
            for index in range(count)
        )


def accept_work() -> None:
    """Let the GPUs take work. Until then they refuse it.

    Raises:
        RefusedError: `gpu`: the driver does not.
    """
    with _driver() as nvml:
        nvml.nvmlSystemSetConfComputeGpusReadyState(nvml.NVML_CC_ACCEPTING_CLIENT_REQUESTS_TRUE)


@contextmanager
def _driver() -> Iterator[Any]:
    try:
        import pynvml  # noqa: PLC0415 - images without GPUs do not have it
    except ImportError as error:
        raise RefusedError(ControlError.GPU, "this image has no driver for GPUs") from error
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise RefusedError(ControlError.GPU, f"nvidia's driver: {error}") from error


def _evidence(nvml: Any, index: int, nonce: bytes, *, devtools: bool) -> GpuEvidence:  # noqa: ANN401 - pynvml has no types
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    answer = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(device, nonce)
    certificates = nvml.nvmlDeviceGetConfComputeGpuCertificate(device)
    return GpuEvidence(
        report=bytes(answer.attestationReport)[: answer.attestationReportSize],
        certificates=bytes(certificates.attestationCertChain)[: certificates.attestationCertChainSize],
        devtools=devtools,
    )
