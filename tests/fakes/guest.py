# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The real guest code on a simulated launch, without a machine: it opens what the owner seals and signs receipts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cvmtool.dryrun.faults import Fault
from cvmtool.dryrun.psp import SimulatedPsp
from cvmtool.formats.channel import Open
from cvmtool.formats.control import Stream
from cvmtool.formats.evidence import Evidence, host_data, report_data
from cvmtool.formats.job import JobManifest
from cvmtool.formats.pack import PackDescriptor
from cvmtool.formats.reportmsg import ReportRequest
from cvmtool.guest.attest import Attested
from cvmtool.guest.console import Console
from cvmtool.guest.container import Cause, Outcome, Rooms
from cvmtool.guest.job import Hands, Job
from cvmtool.guest.keys import BootKeys
from cvmtool.guest.life import Life
from cvmtool.guest.machine import Machine
from cvmtool.guest.shell import Shell
from cvmtool.guest.unlock import Places
from cvmtool.owner.amdroots import SimulatedRoot
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.policy import Policy, baseline
from cvmtool.owner.session import Session
from tests import fakes, samples
from tests.fakes.kernel import OtherKernel

OWNER = OwnerKeys(b"seed" * 8)


class FakeGuest:
    """One boot of a guest that was launched for `manifest`."""

    def __init__(self, folder: Path, manifest: JobManifest | None = None, fault: Fault = Fault.NONE) -> None:
        self.manifest = manifest or samples.manifest(owner_key=OWNER.public.hex())
        self.keys = BootKeys()
        self.facts = replace(fakes.FACTS, host_data=self.manifest.host_data)
        self._psp = SimulatedPsp(fakes.fake_amd(), self.facts, fault)
        self._current: Attested | None = None
        self.opened: dict[str, bytes] = {}
        self._outputs = {"model.safetensors": b"", "logs/metrics.json": b'{"accuracy":0.9}'}
        folder.mkdir(parents=True, exist_ok=True)
        hands = Hands(
            open_packs=self._open,
            close_packs=lambda _packs, _places: None,
            find_damage=lambda _manifest, _places: None,
            run_container=self._run,
            stop_container=lambda _rooms: None,
        )
        self.life = Life(
            self.keys,
            lambda: self._current,
            Console(folder / "console"),
            make_job=lambda manifest, certificates: Job(
                manifest,
                self.keys,
                Console(folder / "console"),
                certificates=certificates,
                simulated=True,
                places=Places(packs=folder / "packs"),
                rooms=Rooms(work=folder),
                hands=hands,
            ),
            make_machine=lambda manifest: Machine(manifest, Shell(allowed=False)),
            kernel=OtherKernel(),
        )

    def answer(self, challenge: Open) -> Evidence:
        """What the agent answers: evidence over the challenge, for the owner and job that it names."""
        launched = host_data(owner_key=challenge.owner_key, manifest_sha256=challenge.manifest_sha256)
        keys = {
            "ssh_host_key": self.keys.ssh_host_key,
            "hpke_key": self.keys.hpke_key,
            "receipt_key": self.keys.receipt_key,
        }
        bound = report_data(nonce=challenge.nonce, host_data=launched, **keys)
        report = self._psp.report(ReportRequest(report_data=bound))
        evidence = Evidence(report=report, cert_table=self._psp.table, **keys)
        self._current = Attested(challenge=challenge, evidence=evidence, report_data=bound, host_data=launched)
        return evidence

    def _open(
        self, packs: Sequence[PackDescriptor], passphrases: dict[str, bytearray], _places: Places
    ) -> dict[str, int]:
        self.opened |= {root: bytes(passphrase) for root, passphrase in passphrases.items()}
        return dict.fromkeys((pack.name for pack in packs), 0)

    def _run(self, _manifest, _mounted, log, rooms: Rooms, _ending) -> Outcome:
        log.add(Stream.STDOUT, b"epoch 1\n")
        for name, data in self._outputs.items():
            path = rooms.outputs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return Outcome(exit_code=0, cause=Cause.EXITED, started="2026-01-01T00:00:00Z", finished="2026-01-01T00:00:01Z")

    def policy(self, **changes) -> Policy:
        """The dry run's policy for exactly this launch."""
        base = baseline(
            roots=SimulatedRoot(fakes.fake_amd().root_fingerprint),
            measurements=frozenset({self.facts.digest()}),
            host_data=frozenset({self.manifest.host_data}),
        )
        return replace(base, **changes)

    def session(self, nonce: bytes = fakes.NONCE, **changes) -> Session:
        """The owner's challenge to it, not sent yet."""
        return Session(
            **{
                "owner_key": OWNER.public,
                "manifest_sha256": self.manifest.sha256,
                "host_data": self.manifest.host_data,
                "policy": self.policy(),
                "nonce": nonce,
                **changes,
            }
        )
