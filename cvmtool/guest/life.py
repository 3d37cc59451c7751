# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The guest's one life: it waits for the manifest that its launch commits to, and is then a job's or a machine's for good.

Zone: guest (measured).
Spec: docs/protocol.md sections 1, 5 and 6.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from cvmtool.errors import FormatError
from cvmtool.formats.control import ControlError, Stage
from cvmtool.formats.job import JobManifest
from cvmtool.formats.machine import MachineManifest, Manifest, parse_manifest
from cvmtool.formats.release import Secrets, parse_secrets, release_info
from cvmtool.formats.wire import JsonObject
from cvmtool.guest.attest import Attested
from cvmtool.guest.console import Console, Word
from cvmtool.guest.driver import bring_up
from cvmtool.guest.gpu import accept_work, collect_gpu_evidence
from cvmtool.guest.job import Job
from cvmtool.guest.keys import BootKeys
from cvmtool.guest.lockdown import lock_down
from cvmtool.guest.machine import Machine
from cvmtool.guest.refusal import RefusedError

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)

MakeJob = Callable[[JobManifest, bytes], Job]
"""Gets the manifest and the certificate table for the receipt."""
MakeMachine = Callable[[MachineManifest], Machine]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What a manifest does to the kernel that it runs on, and what cannot be taken back."""

    lock_down: Callable[[], None]
    bring_up: Callable[[], None]


KERNEL = Kernel(lock_down=lock_down, bring_up=bring_up)
"""The guest's own. A test gives another: it would lock down the machine on which it runs."""


class Life:
    """What this guest is for. Every public method may be called from any thread."""

    def __init__(
        self,
        keys: BootKeys,
        attested: Callable[[], Attested | None],
        console: Console,
        *,
        make_job: MakeJob,
        make_machine: MakeMachine,
        kernel: Kernel,
    ) -> None:
        self._keys = keys
        self._attested = attested
        self._console = console
        self._make_job = make_job
        self._make_machine = make_machine
        self._kernel = kernel
        self._changing = threading.Lock()
        self._role: Job | Machine | None = None
        self._gpus = 0

    def status(self) -> JsonObject:
        """Return the stage, and what a job or a machine adds to it."""
        if self._role is None:
            return {"stage": Stage.WAITING.value, "exit_code": None}
        return self._role.status()

    def configure(self, data: bytes, *, certificates: bytes) -> None:
        """Take the manifest that HOST_DATA commits to, of either kind. Again is fine.

        `certificates`: the certificate table with which the owner verified this guest's report, at most 32,768 bytes. It goes
        into a job's receipt, which then verifies offline even where the host hands no certificates over; nothing else is made
        of it here, and whoever reads the receipt verifies it again.

        Raises:
            RefusedError: `manifest`; `shell`: it asks for one, and this image gives none; `kernel`: it cannot be closed to modules.
        """
        with self._changing:
            manifest = _committed(data, self._require_session())
            if self._role is None:
                if not manifest.resources.gpus:  # else when the driver is loaded
                    self._kernel.lock_down()
                if isinstance(manifest, JobManifest):
                    self._role = self._make_job(manifest, certificates)
                else:
                    self._role = self._make_machine(manifest)
                self._gpus = manifest.resources.gpus
                self._console.say(Word.ATTESTED)

    def gpu_evidence(self) -> JsonObject:
        """Return the evidence of every GPU, over nonces of this session. For a job that has GPUs the driver comes up first.

        Raises:
            RefusedError: `order`; `gpu`: there is no driver, or it gives none; `kernel`: it cannot be closed behind it.
        """
        with self._changing:
            self._require_role()
            if self._gpus:
                self._kernel.bring_up()
            evidence = collect_gpu_evidence(self._require_session().report_data)
            return {"gpus": [entry.to_json() for entry in evidence]}

    def release(self, sealed: bytes) -> dict[str, int]:
        """Open the sealed secret and with it every pack or volume that it is for; return milliseconds by its name.

        Raises:
            RefusedError: `order`, `sealed`, `gpu`, or what the packs or volumes say.
        """
        with self._changing:
            role = self._require_role()
            attested = self._require_session()
            secrets = self._unseal(sealed, attested)
            if self._gpus:
                accept_work()  # the owner seals once the GPUs are verified, too
            timings = role.release(secrets, attested)
            if role.unlocked:
                self._console.say(Word.UNLOCKED)
            return timings

    @property
    def job(self) -> Job:
        """The job.

        Raises:
            RefusedError: `order`: there is none, or not yet.
        """
        role = self._require_role()
        if not isinstance(role, Job):
            raise RefusedError(ControlError.ORDER, "this guest was launched for a machine without a job")
        return role

    @property
    def role(self) -> Job | Machine:
        """What this guest is.

        Raises:
            RefusedError: `order`: not known yet.
        """
        return self._require_role()

    def forget(self) -> None:
        """End what runs and close every disk, so that the kernel drops their keys. The guest is about to end.

        Raises:
            OSError: something would not end.
        """
        if self._role is not None:
            self._role.forget()

    def _unseal(self, sealed: bytes, attested: Attested) -> Secrets:
        info = release_info(report_data=attested.report_data, host_data=attested.host_data)
        try:
            opened = bytearray(_SUITE.decrypt(sealed, self._keys.hpke, info=info))
        except (InvalidTag, ValueError) as error:
            raise RefusedError(ControlError.SEALED, "not sealed to this guest and this session") from error
        try:
            # Python may leave copies behind. What can be wiped is; the processor encrypts the rest.
            return parse_secrets(bytes(opened))
        except FormatError as error:
            raise RefusedError(ControlError.SEALED, error.message) from error
        finally:
            opened[:] = bytes(len(opened))

    def _require_role(self) -> Job | Machine:
        if self._role is None:
            raise RefusedError(ControlError.ORDER, f"the stage is {Stage.WAITING.value}; the manifest comes first")
        return self._role

    def _require_session(self) -> Attested:
        attested = self._attested()
        if attested is None:
            raise RefusedError(ControlError.ORDER, "no challenge was answered yet")
        return attested


def _committed(data: bytes, attested: Attested) -> Manifest:
    """Return the manifest, if it is the one that the launch commits to and its owner's."""
    found, required = hashlib.sha256(data).digest(), attested.challenge.manifest_sha256
    if not hmac.compare_digest(found, required):
        raise RefusedError(
            ControlError.MANIFEST,
            f"manifest sha-256 is {found.hex()}; the launch commits to {required.hex()}",
        )
    try:
        manifest = parse_manifest(data)
    except FormatError as error:
        raise RefusedError(ControlError.MANIFEST, error.message) from error
    if manifest.owner_key != attested.challenge.owner_key.hex():
        raise RefusedError(ControlError.MANIFEST, "manifest.owner_key is not the launch's owner")
    return manifest
