# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A guest without a job: volumes that outlive it, and a shell for its owner if image and manifest agree.

Zone: guest (measured).
Spec: docs/protocol.md sections 5, 12 and 13.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cvmtool.formats.control import ControlError, Stage
from cvmtool.formats.machine import MachineManifest
from cvmtool.formats.release import Secrets, VolumeSecret
from cvmtool.formats.volume import Epoch, Volume
from cvmtool.formats.wire import JsonObject
from cvmtool.guest import volumes
from cvmtool.guest.attest import Attested
from cvmtool.guest.refusal import RefusedError
from cvmtool.guest.shell import Shell
from cvmtool.guest.volumes import Opened, Places


@dataclass(frozen=True, slots=True, kw_only=True)
class Hands:
    """What the machine does to its disks; tests give others."""

    load_modules: Callable[[], None] = volumes.load_modules
    open_volume: Callable[[Volume, VolumeSecret, Places], Opened] = volumes.open_volume
    commit: Callable[[Opened, Epoch, Places], Opened] = volumes.commit
    is_damaged: Callable[[Opened, Places], bool] = volumes.is_damaged
    close_volume: Callable[[Volume, Places], None] = volumes.close_volume


class Machine:
    """One machine. Every public method may be called from any thread; those that touch the disks wait for each other."""

    def __init__(
        self, manifest: MachineManifest, shell: Shell, *, places: Places | None = None, hands: Hands | None = None
    ) -> None:
        """Take the manifest.

        Raises:
            RefusedError: `shell`: it asks for one, and this image gives none.
        """
        if manifest.shell:
            shell.require_allowed()
        self._manifest = manifest
        self._shell = shell
        self._places = places or Places()
        self._hands = hands or Hands()
        self._changing = threading.Lock()
        self._stage = Stage.CONFIGURED
        self._open: dict[str, Opened] = {}

    def status(self) -> JsonObject:
        """Return the stage, whether there is a shell, and every open volume."""
        return {
            "stage": self._stage.value,
            "exit_code": None,
            "shell": self._shell.granted,
            "volumes": [
                {
                    "name": name,
                    "counter": opened.epoch.counter,
                    "created": opened.created,
                    "damaged": self._hands.is_damaged(opened, self._places),
                }
                for name, opened in tuple(self._open.items())  # another thread may close them meanwhile
            ],
        }

    @property
    def unlocked(self) -> bool:
        """Whether every volume is open."""
        return self._stage is Stage.UNLOCKED

    def release(self, secrets: Secrets, attested: Attested) -> dict[str, int]:  # noqa: ARG002 - a job keeps the session
        """Open every volume, then grant the shell; return milliseconds by volume name. If one fails, all are closed again.

        Raises:
            RefusedError: `order`, or what `volumes.open_volume` and `Shell.grant` say.
        """
        with self._changing:
            if self._stage is not Stage.CONFIGURED:
                raise RefusedError(ControlError.ORDER, f"the stage is {self._stage.value}; configured is required")
            timings = {}
            self._places.whole.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._places.volumes.mkdir(parents=True, exist_ok=True)
            if self._manifest.volumes:
                self._hands.load_modules()
            try:
                for volume in self._manifest.volumes:
                    began = time.monotonic_ns()
                    self._open[volume.name] = self._open_one(volume, secrets)
                    timings[volume.name] = (time.monotonic_ns() - began) // 1_000_000
                if self._manifest.shell:
                    self._shell.grant()
            except RefusedError:
                self._close()
                raise
            self._stage = Stage.UNLOCKED
            return timings

    def commit(self, epochs: dict[str, Epoch]) -> None:
        """Write every named volume to its disk with its mark.

        Raises:
            RefusedError: `order`: not unlocked, or no such volume is open; `volume-integrity`.
        """
        with self._changing:
            for name, epoch in epochs.items():
                opened = self._open.get(name)
                if opened is None or self._stage is not Stage.UNLOCKED:
                    raise RefusedError(ControlError.ORDER, f"no volume {name[:64]!r} is open")
                self._open[name] = self._hands.commit(opened, epoch, self._places)

    def forget(self) -> None:
        """End what the owner runs and close the volumes, so that the kernel drops their keys. The guest is about to end.

        Raises:
            OSError: a process of the owner would not end.
        """
        with self._changing:
            try:
                if self._shell.granted:
                    self._shell.end()
            finally:
                self._close()

    def _open_one(self, volume: Volume, secrets: Secrets) -> Opened:
        secret = secrets.volumes.get(volume.luks_uuid)
        if secret is None:
            raise RefusedError(ControlError.VOLUME_KEY, "the secrets hold no key for this volume", volume=volume.name)
        return self._hands.open_volume(volume, secret, self._places)

    def _close(self) -> None:
        for opened in self._open.values():
            self._hands.close_volume(opened.volume, self._places)
        self._open.clear()
