# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What an owner does around each state of its volumes: begun at home, written by the guest, acknowledged at home.

Zone: flows. Spec: docs/protocol.md section 12, "What the owner does".
"""

from __future__ import annotations

from collections.abc import Iterable

from cvmtool.errors import CvmError, FreshnessError, VerificationError
from cvmtool.flows.volumes import Volumes
from cvmtool.formats.control import ControlError, Op
from cvmtool.formats.release import VolumeSecret
from cvmtool.host.channel import AgentChannel, GuestError
from cvmtool.owner.keystore import OwnerKeys

_NOTHING_WRITTEN = frozenset(
    {
        ControlError.VOLUME_MISSING,
        ControlError.VOLUME_HEADER,
        ControlError.VOLUME_KEY,
        ControlError.VOLUME_ROLLED_BACK,
    }
)
"""After these the guest has not marked the volume."""


class States:
    """The next state of each of some volumes, kept at home before a guest hears of it."""

    def __init__(self, volumes: Volumes, luks_uuids: Iterable[str]) -> None:
        """Begin them.

        Raises:
            FreshnessError: too many of one were begun and never acknowledged.
            ConfigError, FormatError: there is no such volume, or its record is damaged.
        """
        self._volumes = volumes
        self._begun = [volumes.load(luks_uuid).begun() for luks_uuid in luks_uuids]
        for record in self._begun:
            volumes.save(record)

    def secrets(self, keys: OwnerKeys) -> dict[str, VolumeSecret]:
        """Return what opens the volumes and marks them, by UUID."""
        return {item.luks_uuid: item.history.secret(keys.volume_passphrase(item.luks_uuid)) for item in self._begun}

    def commit(self, channel: AgentChannel) -> None:
        """Have the guest write every volume with its state.

        Raises:
            GuestError: it cannot; the states stay begun.
            VerificationError: a volume is not what was written.
            HostError: the connection broke; whether it did is not known.
        """
        if not self._begun:
            return
        epochs = {record.name: record.history.next.to_json() for record in self._begun}
        try:
            channel.request(Op.COMMIT, epochs=epochs)
        except GuestError as error:
            raise volume_verdict(error) or error from error
        self.acknowledge()

    def acknowledge(self) -> None:
        """Keep that the guest has written them: nothing older is taken any more."""
        for record in self._begun:
            self._volumes.save(record.acknowledged())

    def refused(self, error: GuestError) -> None:
        """Take back the state of the volume at which a guest broke off, if it cannot have written it."""
        for record in self._begun:
            if record.name == error.volume and error.error in _NOTHING_WRITTEN:
                self._volumes.save(record.withdrawn())


def volume_verdict(error: GuestError) -> CvmError | None:
    """Return the owner's verdict if what the guest met is a volume that the host changed."""
    name = error.volume or "unknown"
    if error.error == ControlError.VOLUME_ROLLED_BACK:
        return FreshnessError(
            f"volume {name}: the host gave back an earlier state of it",
            detail=error.detail,
            hint="it was not opened for writing; have the host restore the newest state",
        )
    if error.error in {ControlError.VOLUME_INTEGRITY, ControlError.VOLUME_HEADER, ControlError.VOLUME_KEY}:
        return VerificationError(
            f"volume {name}: {error.error}: it is not what its guest wrote",
            detail=error.detail,
            hint="the host changed the disk, or its copy is damaged",
        )
    return None
