# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Are the guest's GPUs genuine, fresh and acceptable? The only place where trust is given to a GPU.

Zone: owner (trusted). Pure: no I/O, no clock.
Spec: docs/protocol.md section 14; DMTF DSP0274 1.1; RFC 9334 ("composite device": the guest is the lead attester).

The guest was appraised before: what collects this evidence is measured. What must hold then, in this order:

    1  the report parses, its chain leads to NVIDIA's root, and its key signed it             NotGenuineError
    2  its nonce is this GPU's in this session                                                StaleGpuError
    3  the firmware that made the key is the one that the report names                        NotGenuineError
    4  there are as many GPUs as the job wants, none twice, and the policy accepts each       RefusedError

A guest cannot show one GPU for another: the nonce holds the place, and identities must differ. What the report cannot say is that
this GPU is on this guest's bus: that it answered, to a nonce that only this session can have made, through the measured guest's
own driver, is the evidence for it (docs/limitations.md).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cvmtool.errors import FormatError, FreshnessError
from cvmtool.formats.gpu import GpuEvidence, gpu_nonce
from cvmtool.formats.spdm import DIGEST_BYTES, STATUS_OFF, GpuReport, Opaque, parse_gpu_report
from cvmtool.owner.appraise import RefusedError, VerifiedGuest
from cvmtool.owner.checks import Check, NotGenuineError
from cvmtool.owner.gpupolicy import GpuPolicy, version_numbers
from cvmtool.owner.nvidia import NVIDIA, Chain, NvidiaRoots, parse_chain, verify_chain
from cvmtool.owner.ocsp import status_fault
from cvmtool.owner.rim import ReferenceManifest

_MADE_HERE = object()
_NVDEC_INDEX = 36  # of SPDM, NVIDIA's 35: of a video decoder that may be switched off, and is zero then
_WHY = {
    "gpu-signature": "nobody but this GPU's firmware can have said this",
    "gpu-nonce": "it binds the report to this session, this guest's keys and this place among its GPUs",
    "gpu-firmware-id": "the key belongs to the firmware that the report is about",
    "gpu-count": "the job was given this many GPUs, no fewer and no strangers",
    "gpu-identity": "one GPU must not answer for two",
    "gpu-chip": "only chips with confidential computing encrypt what crosses the bus",
    "gpu-driver": "older drivers have known holes",
    "gpu-vbios": "older firmware has known holes",
    "gpu-mode": "in the developers' mode debuggers read the GPU's memory",
    "gpu-protected-pcie": "NVLink between GPUs is not encrypted in this mode",
    "gpu-device": "only these GPUs are trusted",
    "gpu-driver-manifest": "NVIDIA says what a genuine driver measures",
    "gpu-vbios-manifest": "NVIDIA says what a genuine VBIOS measures",
    "gpu-measurements": "firmware and microcode of the GPU are those that NVIDIA released",
    "gpu-revocation": "NVIDIA has withdrawn none of the keys in between",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticGpu:
    """A GPU whose report verified for this session; only `verify_gpu` makes one. Genuine, and not yet judged."""

    index: int
    report_data: bytes
    """REPORT_DATA of the session that its nonce is from, 64 bytes."""
    report: GpuReport
    chain: Chain
    devtools: bool
    """What the guest's driver says."""
    checks: tuple[Check, ...]
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _MADE_HERE:
            raise TypeError("an AuthenticGpu is made by verify_gpu alone")

    @property
    def driver_version(self) -> str:
        """The driver in the guest, as the GPU knows it."""
        return self.report.text(Opaque.DRIVER_VERSION)

    @property
    def manifest_names(self) -> tuple[str, str]:
        """The names by which NVIDIA's service knows the reference manifests of the driver and of the VBIOS.

        Raises:
            FormatError: a field of the report cannot be part of a name.
        """
        chip = self.chain.chip
        board = [self.report.text(kind).upper() for kind in (Opaque.PROJECT, Opaque.PROJECT_SKU, Opaque.CHIP_SKU)]
        family = "NV_GPU_DRIVER" if chip == "GH100" else "NV_GPU_CC_DRIVER"
        names = (
            f"{family}_{chip}_{self.driver_version}",
            "_".join(["NV_GPU_VBIOS", *board, self.report.vbios_version.replace(".", "")]),
        )
        for name in names:
            if not (name.isascii() and name.replace("_", "").replace(".", "").replace("-", "").isalnum()):
                raise FormatError(f"gpu {self.index}: {name[:80]!r} cannot be a manifest's name")
        return names


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedGpus:
    """GPUs that the owner may trust with a job's data, in one session of one guest; `appraise_gpus` alone makes it.

    `devices`: their identities, in the order of the guest. `unchecked`: what the policy left out by name.
    """

    report_data: bytes
    devices: tuple[str, ...]
    checks: tuple[Check, ...]
    unchecked: tuple[str, ...]
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _MADE_HERE:
            raise TypeError("VerifiedGpus are made by appraise_gpus alone")


class StaleGpuError(FreshnessError):
    """A GPU's report is not the answer to this session's nonce."""


def verify_gpu(
    evidence: GpuEvidence, *, report_data: bytes, index: int, at: datetime, roots: NvidiaRoots = NVIDIA
) -> AuthenticGpu:
    """Verify that a genuine GPU answered as number `index` in the session whose report is over `report_data`.

    Raises:
        FormatError: the evidence is malformed.
        NotGenuineError: NVIDIA's root, the GPU's signature or its firmware does not vouch for it.
        StaleGpuError: it answers another session or place.
    """
    report = parse_gpu_report(evidence.report)
    chain = verify_chain(parse_chain(evidence.certificates), roots.device, at, what="gpu-chain")
    signed = _signed(report, chain)
    if not signed.passed:
        raise NotGenuineError(signed)
    nonce = gpu_nonce(report_data, index)
    fresh = _check(
        "gpu-nonce", report.nonce.hex(), nonce.hex(), passed=hmac.compare_digest(report.nonce, nonce), gpu=index
    )
    if not fresh.passed:
        raise StaleGpuError(
            fresh.sentence(),
            detail=f"{fresh.code}: {fresh.why}",
            hint="ask again; if it recurs, somebody replays a GPU's evidence",
        )
    firmware = _firmware(report, chain, index)
    if not firmware.passed:
        raise NotGenuineError(firmware)
    return AuthenticGpu(
        index=index,
        report_data=report_data,
        report=report,
        chain=chain,
        devtools=evidence.devtools,
        checks=(signed, fresh, firmware),
        token=_MADE_HERE,
    )


def appraise_gpus(
    gpus: Sequence[AuthenticGpu],
    policy: GpuPolicy,
    *,
    guest: VerifiedGuest,
    count: int,
    manifests: Mapping[str, ReferenceManifest],
    statuses: Sequence[bytes],
    at: datetime,
) -> VerifiedGpus:
    """Decide whether the GPUs of `guest` are trusted with its job, which wants `count` of them.

    `manifests`: NVIDIA's reference manifests by name (`AuthenticGpu.manifest_names`); one that is absent is a finding.
    `statuses`: answers of its status service (DER), unverified; of no account if the policy leaves revocation unchecked.

    Raises:
        RefusedError: the policy refuses one, or they are not as many as wanted, or one is there twice; all findings are listed.
        FormatError: a report holds versions that are none.
    """
    if any(not hmac.compare_digest(gpu.report_data, guest.report_data) for gpu in gpus):
        raise ValueError("a GPU of another session is not this guest's")
    if [gpu.index for gpu in gpus] != list(range(len(gpus))):
        raise ValueError("GPUs are judged in the order of the guest, all of them")
    devices = tuple(gpu.chain.device for gpu in gpus)
    checks = [
        _check("gpu-count", str(len(gpus)), str(count), passed=len(gpus) == count),
        _check(
            "gpu-identity",
            ", ".join(device or "unnamed" for device in devices) or "none",
            "a different one each",
            passed=all(devices) and len(set(devices)) == len(devices),
        ),
    ]
    for gpu in gpus:
        driver, vbios = map(manifests.get, gpu.manifest_names)
        checks += [*gpu.checks, *_judge(gpu, policy, driver, vbios)]
        if policy.revocation:
            checks.append(_revocation(gpu, (driver, vbios), statuses, at))
    if not all(check.passed for check in checks):
        raise RefusedError(tuple(checks))
    return VerifiedGpus(
        report_data=guest.report_data,
        devices=devices,
        checks=tuple(checks),
        unchecked=policy.unchecked,
        token=_MADE_HERE,
    )


def revocable(chain: Chain) -> list[tuple[x509.Certificate, tuple[x509.Certificate, ...]]]:
    """Return each certificate whose status NVIDIA's service states, with the authorities above it.

    The last is pinned; and the first of a GPU's chain, which states the firmware, the GPU made itself at its start.
    """
    first = 1 if chain.firmware_id is not None else 0
    links = chain.certificates
    return [(links[at], links[at + 1 :]) for at in range(first, len(links) - 1)]


def _judge(
    gpu: AuthenticGpu, policy: GpuPolicy, driver: ReferenceManifest | None, vbios: ReferenceManifest | None
) -> list[Check]:
    report, chain, index = gpu.report, gpu.chain, gpu.index
    running, flashed = gpu.driver_version, report.vbios_version
    plain = report.opaque.get(Opaque.PROTECTED_PCIE, STATUS_OFF) == STATUS_OFF
    checks = [
        _check("gpu-chip", chain.chip, ", ".join(sorted(policy.chips)), passed=chain.chip in policy.chips, gpu=index),
        _check("gpu-driver", running, f"{policy.min_driver} or later", gpu=index,
               passed=_reaches(running, policy.min_driver, base=10)),
        _check("gpu-vbios", flashed, f"{policy.min_vbios} or later", gpu=index,
               passed=_reaches(flashed, policy.min_vbios, base=16)),
        _check("gpu-mode", "for developers" if gpu.devtools else "confidential", "confidential", gpu=index,
               passed=not gpu.devtools),
        _check("gpu-protected-pcie", "off" if plain else "on", policy.protected_pcie.value, gpu=index,
               passed=policy.protected_pcie.allows(present=not plain)),
        _check("gpu-driver-manifest", _named(driver), f"of {chain.chip} {running}", gpu=index,
               passed=_is_of(driver, chain.chip, running)),
        _check("gpu-vbios-manifest", _named(vbios), f"of {chain.chip} {flashed}", gpu=index,
               passed=_is_of(vbios, chain.chip, flashed)),
        _measured(gpu, driver, vbios),
    ]  # fmt: skip
    if policy.devices is not None:
        listed = f"one of {len(policy.devices)} listed"
        checks.append(_check("gpu-device", chain.device, listed, passed=chain.device in policy.devices, gpu=index))
    return checks


def _named(manifest: ReferenceManifest | None) -> str:
    return "absent" if manifest is None else f"of {manifest.product} {manifest.version}"


def _is_of(manifest: ReferenceManifest | None, chip: str, version: str) -> bool:
    return manifest is not None and (manifest.product, manifest.version.upper()) == (chip, version.upper())


def _measured(gpu: AuthenticGpu, driver: ReferenceManifest | None, vbios: ReferenceManifest | None) -> Check:
    expected = {} if driver is None or vbios is None else {**driver.measurements, **vbios.measurements}
    both = set() if driver is None or vbios is None else driver.measurements.keys() & vbios.measurements.keys()
    if gpu.report.opaque.get(Opaque.NVDEC0_STATUS) == STATUS_OFF:
        expected.pop(_NVDEC_INDEX, None)
    wrong = sorted(number for number, values in expected.items() if gpu.report.measurements.get(number) not in values)
    actual = f"{len(expected) - len(wrong)} of {len(expected)} right"
    if wrong:
        actual += f", wrong at {', '.join(map(str, wrong[:8]))}"
    if both:
        actual += f", {len(both)} claimed by both manifests"
    return _check("gpu-measurements", actual, "those of both manifests, all", gpu=gpu.index,
                  passed=bool(expected) and not wrong and not both)  # fmt: skip


def _revocation(
    gpu: AuthenticGpu, manifests: Sequence[ReferenceManifest | None], statuses: Sequence[bytes], at: datetime
) -> Check:
    chains = [gpu.chain, *(manifest.chain for manifest in manifests if manifest is not None)]
    for certificate, authorities in (link for chain in chains for link in revocable(chain)):
        fault = status_fault(statuses, certificate, authorities, at)
        if fault is not None:
            actual = f"{certificate.subject.rfc4514_string()[:96]}: {fault}"
            return _check("gpu-revocation", actual, "good, all", passed=False, gpu=gpu.index)
    return _check("gpu-revocation", "good, all", "good, all", passed=True, gpu=gpu.index)


def _signed(report: GpuReport, chain: Chain) -> Check:
    r, s = (int.from_bytes(half, "big") for half in (report.signature[:DIGEST_BYTES], report.signature[DIGEST_BYTES:]))
    try:
        chain.key.verify(utils.encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return _check("gpu-signature", "not that of this report", "by the key of its chain", passed=False)
    return _check("gpu-signature", "by the key of its chain", "by the key of its chain", passed=True)


def _firmware(report: GpuReport, chain: Chain, index: int) -> Check:
    stated, certified = report.opaque.get(Opaque.FIRMWARE_ID), chain.firmware_id
    if stated is None:  # NVIDIA's own verifier lets it pass, too: the measurements are compared all the same
        return _check("gpu-firmware-id", "not stated", "the certificate's, if stated", passed=True, gpu=index)
    required = "none" if certified is None else certified.hex()
    passed = certified is not None and hmac.compare_digest(stated, certified)
    return _check("gpu-firmware-id", stated.hex()[:96], required, passed=passed, gpu=index)


def _reaches(version: str, least: str, *, base: int) -> bool:
    found, wanted = version_numbers(version, base=base), version_numbers(least, base=base)
    return found is not None and wanted is not None and found >= wanted


def _check(code: str, actual: str, required: str, *, passed: bool, gpu: int | None = None) -> Check:
    place = "" if gpu is None else f"gpu {gpu}: "
    return Check(code=code, actual=f"{place}{actual or 'empty'}", required=required, passed=passed, why=_WHY[code])
