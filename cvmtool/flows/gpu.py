# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Attest the GPUs of a guest that was just verified, inside its session and before anything is sealed.

Zone: flows. What NVIDIA's services hand over is kept and counts for nothing until it verifies (`cvmtool.owner.gpu`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cvmtool.errors import ConfigError, CvmError, HostError
from cvmtool.flows.collateral import KeyService, Store
from cvmtool.formats.control import Op
from cvmtool.formats.gpu import GpuEvidence, parse_gpu_evidence
from cvmtool.formats.machine import Manifest
from cvmtool.formats.wire import JsonObject, canonical_json, parse_base64, parse_json
from cvmtool.host.gpu import Gpu, parse_gpus
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.gpu import AuthenticGpu, VerifiedGpus, appraise_gpus, revocable, verify_gpu
from cvmtool.owner.gpupolicy import GpuPolicy, parse_gpu_policy
from cvmtool.owner.nvidia import NVIDIA, Chain, NvidiaRoots
from cvmtool.owner.ocsp import status_path
from cvmtool.owner.rim import MAX_MANIFEST, ReferenceManifest, verify_manifest

MANIFEST_URL = "https://rim.attestation.nvidia.com"
STATUS_URL = "https://ocsp.ndis.nvidia.com"
GPU_DIR = "gpu"  # below the cache directory
GPU_EVIDENCE_FILE = "gpu-evidence.json"
_MAX_ANSWER = 2 * MAX_MANIFEST


class Control(Protocol):
    """The attested channel, as far as this needs it."""

    def request(self, op: Op, **fields: object) -> JsonObject:
        """Run an operation in the guest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaCollateral:
    """NVIDIA's reference manifests and revocation answers: from its services, or (None) from what is kept alone."""

    store: Store
    manifests: KeyService | None
    statuses: KeyService | None
    roots: NvidiaRoots = NVIDIA

    def manifest(self, name: str, at: datetime) -> ReferenceManifest | None:
        """Return a verified manifest by name, None if it is neither kept nor to be had.

        Raises:
            NotGenuineError, FormatError: what the service gives is not NVIDIA's (what is kept and is not is fetched anew).
            ConfigError: `cvmtool[gpu]` is not installed.
        """
        kept = self.store.get(f"{name}.swidtag")
        if kept is not None and (self.manifests is None or _verifies(kept, at, self.roots)):
            return verify_manifest(kept, at, root=self.roots.manifests)
        if self.manifests is None:
            return None
        try:
            answer = self.manifests.get(f"/v1/rim/{name}")
        except HostError:
            return None  # a finding of the appraisal, which names the manifest
        found = parse_json(answer, what="nvidia's manifest service", limit=_MAX_ANSWER)
        document = parse_base64(found.get("rim"), what="nvidia's manifest service: rim", limit=MAX_MANIFEST)
        verified = verify_manifest(document, at, root=self.roots.manifests)
        self.store.put(f"{name}.swidtag", document)
        return verified

    def status(self, chains: Iterable[Chain]) -> list[bytes]:
        """Return what the status service says of each certificate that may be withdrawn: unverified, and as far as it says it.

        Nothing is kept for good: an answer that was is the answer somebody wants to hide behind. Without a service, what lies
        in the store is taken, and its own period judges it.
        """
        answers = []
        for path in dict.fromkeys(status_path(one, above[0]) for chain in chains for one, above in revocable(chain)):
            name = f"{hashlib.sha256(path.encode()).hexdigest()}.ocsp"
            answer = self._asked(path) if self.statuses is not None else self.store.get(name)
            if answer is not None:
                self.store.put(name, answer)
                answers.append(answer)
        return answers

    def _asked(self, path: str) -> bytes | None:
        try:
            return None if self.statuses is None else self.statuses.get(path)
        except HostError:
            return None  # a finding of the appraisal, if the policy asks for it


def nvidia_collateral(cache: Path, *, online: bool = True) -> NvidiaCollateral:
    """Return NVIDIA's services with what is kept of them below the cache directory; not `online`: what is kept alone."""
    return NvidiaCollateral(
        store=Store(cache / GPU_DIR),
        manifests=KeyService(MANIFEST_URL) if online else None,
        statuses=KeyService(STATUS_URL) if online else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWish:
    """The GPUs of its host that a machine without a job is given, and the policy that each must pass. By default none.

    `policy`: as it was written.

    Raises:
        ConfigError: one is given without the other, or the policy is none.
    """

    devices: tuple[Gpu, ...] = ()
    policy: str | None = None

    def __post_init__(self) -> None:
        if self.policy is None and self.devices:
            raise ConfigError(
                f"{len(self.devices)} GPUs are named and no GPU policy is given; one is required: --gpu-policy FILE",
                hint="what it must say: docs/howto/gpu.md",
            )
        if self.policy is not None and not self.devices:
            raise ConfigError(
                "a GPU policy is given and no GPU is named; one or more are required",
                hint="name each: --gpu 0000:41:00.0 (lspci -D -d 10de: on the host)",
            )
        if self.policy is not None:
            parse_gpu_policy(self.policy)

    @classmethod
    def named(cls, addresses: Sequence[str], policy: str | None) -> GpuWish:
        """Return the wish for the GPUs at these PCI addresses.

        Raises:
            ConfigError: as the class; or an address is none, one is there twice, or there are too many.
        """
        return cls(devices=parse_gpus(addresses), policy=policy)

    @property
    def judged_by(self) -> GpuPolicy | None:
        """The policy; None if there are no GPUs."""
        return None if self.policy is None else parse_gpu_policy(self.policy)


def refuse_gpus_in_a_dry_run(wanted: int) -> None:
    """Refuse a dry run that wants GPUs, so many, before anything of it starts.

    Raises:
        ConfigError: it wants some.
    """
    if wanted:
        raise ConfigError(
            f"resources.gpus is {wanted}; a dry run has none: nothing simulates a GPU's signature",
            hint="leave the GPUs out to try the rest",
        )


def attest_gpus(
    channel: Control,
    guest: VerifiedGuest,
    manifest: Manifest,
    policy: GpuPolicy | None,
    *,
    collateral: NvidiaCollateral,
    at: datetime,
    keep: Callable[[bytes], None],
) -> VerifiedGpus | None:
    """Demand evidence of the guest's GPUs and judge it; None where the manifest wants none. Then, and only then, seal.

    Args:
        channel: the attested session with `guest`, which has its manifest.
        guest: the verified guest.
        manifest: what it was launched for.
        policy: what is acceptable.
        collateral: where NVIDIA's manifests and revocation answers come from.
        at: the time of judgement.
        keep: gets the evidence (JSON) before it is judged.

    Raises:
        RefusedError: the policy refuses them; all findings are listed.
        NotGenuineError, StaleGpuError, FormatError: a GPU's evidence, or a manifest, is not what it must be.
        GuestError: the guest has none to show.
        ConfigError: no policy, or `cvmtool[gpu]` is not installed.
    """
    wanted = manifest.resources.gpus
    if not wanted:
        return None
    if policy is None:
        raise ConfigError(f"the guest is to have {wanted} GPUs and no GPU policy is given; one is required")
    evidence = parse_gpu_evidence(channel.request(Op.GPU_EVIDENCE))
    keep(canonical_json({"report_data": guest.report_data.hex(), "gpus": [entry.to_json() for entry in evidence]}))
    gpus = verify_all(evidence, guest.report_data, at=at, roots=collateral.roots)
    manifests = {
        name: found
        for name in dict.fromkeys(name for gpu in gpus for name in gpu.manifest_names)
        if (found := collateral.manifest(name, at)) is not None
    }
    chains = [*(gpu.chain for gpu in gpus), *(found.chain for found in manifests.values())]
    return appraise_gpus(
        gpus,
        policy,
        guest=guest,
        count=wanted,
        manifests=manifests,
        statuses=collateral.status(chains) if policy.revocation else [],
        at=at,
    )


def verify_all(
    evidence: Sequence[GpuEvidence], report_data: bytes, *, at: datetime, roots: NvidiaRoots = NVIDIA
) -> list[AuthenticGpu]:
    """Verify the evidence of each GPU, in the order of the guest.

    Raises:
        NotGenuineError, StaleGpuError, FormatError: one of them is not what it must be.
    """
    return [
        verify_gpu(entry, report_data=report_data, index=index, at=at, roots=roots)
        for index, entry in enumerate(evidence)
    ]


def gpu_verdict(gpus: VerifiedGpus) -> JsonObject:
    """Return what records and scripts get of a verdict about GPUs: their identities, every check, and what was not asked for."""
    return {
        "devices": list(gpus.devices),
        "checks": [check.to_json() for check in gpus.checks],
        "unchecked": list(gpus.unchecked),
    }


def _verifies(document: bytes, at: datetime, roots: NvidiaRoots) -> bool:
    try:
        verify_manifest(document, at, root=roots.manifests)
    except ConfigError:
        raise
    except CvmError:
        return False
    return True
