# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a machine runs on: SEV-SNP, or the simulation of a dry run. All that the two differ in, on the owner's side, is here.

Zone: flows. Three things: which of the image's measured command lines is booted, whose root is believed, and who answers the
guest's report requests (the hardware does, unseen by us; in a dry run a thread of this process).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from cvmtool.config import Settings
from cvmtool.dryrun.amd import FakeAmd
from cvmtool.dryrun.faults import Fault
from cvmtool.errors import ConfigError, FormatError, VerificationError
from cvmtool.flows.collateral import KeyService, Store, collect
from cvmtool.flows.gpu import NvidiaCollateral, attest_gpus, nvidia_collateral, refuse_gpus_in_a_dry_run
from cvmtool.flows.machine import Machine
from cvmtool.flows.simulate import secure_processor
from cvmtool.formats.certtable import CertKind, CertTable, parse_cert_table
from cvmtool.formats.evidence import Evidence
from cvmtool.formats.machine import Manifest
from cvmtool.formats.manifest import Mode
from cvmtool.host.channel import AgentChannel
from cvmtool.owner.amdroots import AmdRoots, Roots, SimulatedRoot
from cvmtool.owner.appraise import VerifiedGuest
from cvmtool.owner.gpu import VerifiedGpus
from cvmtool.owner.gpupolicy import GpuPolicy
from cvmtool.owner.kds import certificate_table
from cvmtool.owner.verify import certificates_of

KDS_DIR = "kds"  # below the cache directory
_COMPLETE = (CertKind.ASK, CertKind.ARK, CertKind.CRL)


class Platform(Protocol):
    """What a machine runs on."""

    @property
    def mode(self) -> Mode:
        """Which of the image's command lines is booted."""

    @property
    def roots(self) -> Roots:
        """Whose signature counts."""

    def processor(self, machine: Machine) -> AbstractContextManager[None]:
        """Answer the guest's report requests while the block runs, if nobody else does."""

    def complete(self, evidence: Evidence, at: datetime) -> Evidence:
        """Return the evidence with every certificate and the revocation list that it verifies with.

        What the host hands over is used; what it withholds is fetched. Both are untrusted until the report verifies.

        Raises:
            HostError: something is missing and cannot be had.
        """

    def verify_gpus(
        self, channel: AgentChannel, guest: VerifiedGuest, manifest: Manifest, *, keep: Callable[[bytes], None]
    ) -> VerifiedGpus | None:
        """Verify the GPUs of a verified guest that has its manifest; None where that wants none.

        `keep` gets their evidence before it is judged.

        Raises:
            AppraisalError, VerificationError, FreshnessError, FormatError: they are not trusted.
            ConfigError: the manifest wants some, and nobody said what is acceptable.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """QEMU without SEV-SNP: the simulated secure processor, with a fault if one is wanted (`cvmtool drill`)."""

    amd: FakeAmd
    fault: Fault = Fault.NONE

    @property
    def mode(self) -> Mode:
        """The command line that accepts a simulated report."""
        return Mode.DRYRUN

    @property
    def roots(self) -> Roots:
        """This machine's own root: no production policy accepts it."""
        return SimulatedRoot(self.amd.root_fingerprint)

    def processor(self, machine: Machine) -> AbstractContextManager[None]:
        """Answer from what the live domain was given."""
        return secure_processor(machine, self.amd, fault=self.fault)

    def complete(self, evidence: Evidence, at: datetime) -> Evidence:  # noqa: ARG002 - one shape for both
        """Return the evidence: there is no key service to ask about a simulated chip."""
        return evidence

    def verify_gpus(
        self,
        channel: AgentChannel,  # noqa: ARG002 - one shape for both
        guest: VerifiedGuest,  # noqa: ARG002
        manifest: Manifest,
        *,
        keep: Callable[[bytes], None],  # noqa: ARG002
    ) -> VerifiedGpus | None:
        """Refuse a guest that is to have GPUs: nothing simulates their signatures."""
        refuse_gpus_in_a_dry_run(manifest.resources.gpus)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SevSnp:
    """AMD's hardware."""

    store: Store
    """Collateral that is kept."""
    service: KeyService | None
    """AMD's key service or a mirror; None: nobody is asked."""
    roots: Roots = field(default_factory=AmdRoots)
    gpu_policy: GpuPolicy | None = None
    gpu_collateral: NvidiaCollateral | None = None

    @property
    def mode(self) -> Mode:
        """The command line that believes the hardware alone."""
        return Mode.PRODUCTION

    def processor(self, machine: Machine) -> AbstractContextManager[None]:  # noqa: ARG002 - the processor is in the machine
        """Do nothing: the guest asks its own processor."""
        return nullcontext()

    def complete(self, evidence: Evidence, at: datetime) -> Evidence:
        """Fetch what the host did not hand over."""
        table = parse_cert_table(evidence.cert_table) if evidence.cert_table else CertTable(entries=())
        signer = table.get(CertKind.VCEK) or table.get(CertKind.VLEK)
        if signer is not None and all(table.get(kind) is not None for kind in _COMPLETE):
            return evidence
        try:
            found = collect(
                evidence.report,
                roots=self.roots,
                at=at,
                store=self.store,
                service=self.service,
                given=certificates_of(table),
                crl=table.get(CertKind.CRL),
            )
        except (FormatError, VerificationError, ConfigError):
            return evidence  # it will be refused: by the one who judges, who keeps a record of it
        return replace(evidence, cert_table=certificate_table(found.certificates, found.crl).encode())

    def verify_gpus(
        self, channel: AgentChannel, guest: VerifiedGuest, manifest: Manifest, *, keep: Callable[[bytes], None]
    ) -> VerifiedGpus | None:
        """Verify them with NVIDIA's certificates and manifests."""
        if not manifest.resources.gpus:
            return None
        if self.gpu_collateral is None:
            raise ConfigError(
                "the guest is to have GPUs, and nobody said where NVIDIA's manifests are; required: a GPU policy"
            )
        return attest_gpus(
            channel,
            guest,
            manifest,
            self.gpu_policy,
            collateral=self.gpu_collateral,
            at=datetime.now(UTC),
            keep=keep,
        )


def dry_run(settings: Settings) -> DryRun:
    """Return this machine's simulation; its root is made at first use."""
    return DryRun(amd=FakeAmd.load_or_create(settings.dryrun_dir))


def sev_snp(settings: Settings, *, key_service: str | None, gpu_policy: GpuPolicy | None = None) -> SevSnp:
    """Return AMD's hardware, with what is kept of its key service and the service itself at that URL; None: nobody is asked.

    `gpu_policy`: what is acceptable of GPUs; NVIDIA's services are then asked, unless nobody is.
    """
    return SevSnp(
        store=Store(settings.cache_dir / KDS_DIR),
        service=None if key_service is None else KeyService(key_service),
        gpu_policy=gpu_policy,
        gpu_collateral=None
        if gpu_policy is None
        else nvidia_collateral(settings.cache_dir, online=key_service is not None),
    )
