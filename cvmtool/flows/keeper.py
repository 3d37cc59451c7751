# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint volume of a run, at its owner's: made before the machine, marked while the container works, removed at the end.

Zone: flows. The record of its states refuses an old disk when the job is started again (docs/protocol.md sections 12, 15).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from cvmtool.config import Settings
from cvmtool.errors import ConfigError, CvmError, HostError
from cvmtool.flows.hosts import OpenHost, open_host
from cvmtool.flows.volumes import VolumeRecord, Volumes, make_volume, remove_volumes
from cvmtool.flows.volumestates import States
from cvmtool.formats.job import JobManifest
from cvmtool.host.channel import AgentChannel
from cvmtool.host.domain import Disk
from cvmtool.host.embedded import embedded_root
from cvmtool.owner.epochs import History

_GIVE_UP_SECONDS = 5.0  # for a mark that is on its way over a connection that broke


class Keeper:
    """The checkpoint volume of one manifest. Without one it has nothing to do, and does that."""

    def __init__(
        self, manifest: JobManifest, settings: Settings, *, every_seconds: float, open_host: OpenHost = open_host
    ) -> None:
        """Take the volume that a manifest names. `every_seconds`: between two marks, which bounds what a host can turn back."""
        self._volume = manifest.checkpoint.volume if manifest.checkpoint else None
        self._settings = settings
        self._volumes = Volumes(settings.volumes_dir)
        self._every_seconds = every_seconds
        self._open_host = open_host

    def make(self, machine: str) -> tuple[Disk, ...]:
        """Return the volume as a machine's disk. It is made on the host of the settings unless an earlier launch has done so.

        Raises:
            HostError: the host has no room, or does not answer.
            ConfigError: an earlier launch was on another host.
        """
        if self._volume is None:
            return ()
        host = self._open_host(self._settings)
        try:
            known = self._find()
            if known is None:
                known = make_volume(
                    host,
                    self._volumes,
                    self._volume.name,
                    self._volume.size,
                    machine=machine,
                    target=host.name,
                    luks_uuid=self._volume.luks_uuid,
                )
            elif embedded_root(known.host) is None and known.host != host.name:
                raise ConfigError(
                    f"the job's checkpoints are on {known.host[:80]}; the machine would be on {host.name[:80]}",
                    hint=f"go on there: --host {known.host[:80]}",
                )
            elif known.machine != machine:
                self._volumes.save(replace(known, machine=machine))
        finally:
            host.close()
        return (known.disk(),)

    def disks(self) -> tuple[Disk, ...]:
        """Return the volume as it is in the machine that runs; its host is not asked.

        Raises:
            ConfigError: the volume is not on record any more.
        """
        if self._volume is None:
            return ()
        return (self._volumes.load(self._volume.luks_uuid).disk(),)

    def begin(self) -> States:
        """Begin the next state, before a guest hears of it.

        Raises:
            FreshnessError: too many were begun and never acknowledged.
        """
        return States(self._volumes, [self._volume.luks_uuid] if self._volume else [])

    @contextmanager
    def marking(self, channel: AgentChannel) -> Iterator[None]:
        """Have the guest mark the volume now and then while the block runs.

        Raises:
            VerificationError: the volume is not what was written; the connection was closed at once.
            FreshnessError: too many states were begun and never acknowledged.
        """
        if self._volume is None:
            yield
            return
        over, refusals = threading.Event(), list[CvmError]()

        def mark() -> None:
            while not over.wait(self._every_seconds):
                try:
                    self.begin().commit(channel)
                except HostError:
                    return  # whoever follows the container meets the same, and says it
                except CvmError as error:
                    refusals.append(error)
                    channel.close()
                    return

        thread = threading.Thread(target=mark, name="checkpoints", daemon=True)
        thread.start()
        try:
            yield
            over.set()
            thread.join()
        except HostError:
            over.set()
            thread.join(_GIVE_UP_SECONDS)
            if not refusals:
                raise
        finally:
            over.set()
        if refusals:
            raise refusals[0]

    def settle(self, *, done: bool, notice: Callable[[str], None]) -> None:
        """Delete the volume if nobody needs it any more: the run is `done`, or no guest ever wrote to it. Idempotent.

        A host that does not answer keeps the file; the record stays with it.
        """
        known = self._find()
        if known is None:
            return
        if not done and known.history != History():
            notice(
                f"the checkpoints of {known.machine} are kept: cvmtool jobs resume {known.machine} goes on from them; "
                f"cvmtool vm volumes --remove {known.luks_uuid} drops them"
            )
            return
        # Libvirt inside a process is another one each time, on the same files.
        host = self._settings.host if embedded_root(known.host) is not None else known.host
        try:
            remove_volumes([known], self._volumes, replace(self._settings, host=host), self._open_host)
        except HostError as error:
            notice(f"the checkpoint volume of {known.machine} is left on its host: {error.message}; cvmtool vm volumes")

    def _find(self) -> VolumeRecord | None:
        volume = self._volume
        if volume is None:
            return None
        return next((record for record in self._volumes.all() if record.luks_uuid == volume.luks_uuid), None)
