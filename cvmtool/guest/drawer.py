# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Where a job keeps what a later launch goes on from: its checkpoint volume, if its manifest names one.

Zone: guest (measured).
Spec: docs/protocol.md sections 12 and 15.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from cvmtool.formats.control import ControlError
from cvmtool.formats.job import JobManifest
from cvmtool.formats.jobterms import CHECKPOINT
from cvmtool.formats.release import Secrets
from cvmtool.formats.volume import Epoch
from cvmtool.guest import volumes
from cvmtool.guest.oci import NOBODY
from cvmtool.guest.refusal import RefusedError
from cvmtool.guest.volumes import Opened, Places


class Drawer:
    """The checkpoint volume of one job, or none. Its methods may be called from any thread and wait for each other."""

    def __init__(self, manifest: JobManifest, places: Places | None = None) -> None:
        self._volume = manifest.checkpoint.volume if manifest.checkpoint else None
        self._places = places or Places(user=NOBODY)
        self._changing = threading.Lock()
        self._open: Opened | None = None

    def open(self, secrets: Secrets) -> dict[str, int]:
        """Open the volume; return milliseconds by its name.

        Raises:
            RefusedError: `volume-key`, or what `volumes.open_volume` says.
        """
        volume = self._volume
        if volume is None:
            return {}
        secret = secrets.volumes.get(volume.luks_uuid)
        if secret is None:
            raise RefusedError(ControlError.VOLUME_KEY, "the secrets hold no key for this volume", volume=volume.name)
        with self._changing:
            began = time.monotonic_ns()
            self._places.whole.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._places.volumes.mkdir(parents=True, exist_ok=True)
            volumes.load_modules()
            self._open = volumes.open_volume(volume, secret, self._places)
            return {volume.name: (time.monotonic_ns() - began) // 1_000_000}

    def mounted(self) -> dict[str, Path]:
        """Return where the container's part of the open volume is, by its name."""
        return {CHECKPOINT: self._places.volumes / CHECKPOINT} if self._open else {}

    def commit(self, epochs: dict[str, Epoch]) -> None:
        """Write the volume to its disk with its mark.

        Raises:
            RefusedError: `order`: another volume is named, or it is not open; `volume-integrity`.
        """
        with self._changing:
            if self._open is None or epochs.keys() != {CHECKPOINT}:
                raise RefusedError(ControlError.ORDER, f"{', '.join(epochs)[:64]!r} is not open, or not all that is")
            self._open = volumes.commit(self._open, epochs[CHECKPOINT], self._places)

    def find_damage(self) -> RefusedError | None:
        """Return what refuses the results if a block was read that is not what was written; None if all was sound."""
        with self._changing:
            if self._open is None or not volumes.is_damaged(self._open, self._places):
                return None
        detail = "blocks of it are not what was written; what the job made of them is not to be trusted"
        return RefusedError(ControlError.VOLUME_INTEGRITY, detail, volume=CHECKPOINT)

    def close(self) -> None:
        """Unmount and close the volume, so that the kernel forgets its key. Nothing is marked."""
        with self._changing:
            if self._open is not None:
                volumes.close_volume(self._open.volume, self._places)
                self._open = None
