# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What an owner knows of the states of a volume, so that an older one is not taken for the newest.

Zone: owner. Pure: the marks come in as bytes; whoever calls keeps the history on disk.
Spec: docs/protocol.md section 12; ADR-0021.

A state is begun before the guest hears of it and acknowledged after the guest has written it. Between the two nobody can
know which of both a disk holds, so both are taken. Begun states have marks of their own: one counter on two disks that
came from the same state would tell nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvmtool.errors import FormatError, FreshnessError
from cvmtool.formats.release import MAX_ACCEPTED, VolumeSecret
from cvmtool.formats.volume import MARK_SIZE, Epoch, epoch_from
from cvmtool.formats.wire import canonical_json, members, parse_canonical_json, typed

SCHEMA = "cvmtool/volume-history/v1"
MAX_HISTORY = 8_192  # bytes, encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The states of one volume that its owner takes."""

    acknowledged: Epoch | None = None
    """The last state that a guest said it had written; None: there was none."""
    begun: tuple[Epoch, ...] = ()
    """States that a guest was told to write since, oldest first; at most 16."""

    def begin(self, mark: bytes) -> History:
        """Return the history with one more state begun; keep it on disk before the guest hears of it.

        `mark`: 32 random bytes, never used before.

        Raises:
            FreshnessError: too many were begun and never acknowledged.
            ValueError: a mark of another size.
        """
        if len(mark) != MARK_SIZE:
            raise ValueError(f"mark has {len(mark)} bytes; {MARK_SIZE} are required")
        if len(self.begun) == MAX_ACCEPTED:
            raise FreshnessError(
                f"{len(self.begun)} states of the volume were begun and none was acknowledged; the host has broken off each time",
                hint="nobody can tell any more which of them the disk holds; go back to a copy of the data, in a new volume",
            )
        known = [*self.begun, *([self.acknowledged] if self.acknowledged else [])]
        counter = max((epoch.counter for epoch in known), default=0) + 1
        return History(acknowledged=self.acknowledged, begun=(*self.begun, Epoch(counter=counter, mark=mark.hex())))

    @property
    def next(self) -> Epoch:
        """The state that was begun last: what the guest is to write.

        Raises:
            ValueError: none was begun.
        """
        if not self.begun:
            raise ValueError("no state was begun")
        return self.begun[-1]

    def acknowledge(self) -> History:
        """Return the history after the guest has said that it wrote `next`: nothing else is taken any more.

        Raises:
            ValueError: none was begun.
        """
        return History(acknowledged=self.next)

    def withdraw(self) -> History:
        """Return the history without `next`, which no guest can have written.

        That is so when the secret was never sent, or when the guest refused the volume with `volume-missing`, `volume-header`,
        `volume-key` or `volume-rolled-back`; after any other error it may be on the disk.

        Raises:
            ValueError: none was begun.
        """
        if not self.begun:
            raise ValueError("no state was begun")
        return History(acknowledged=self.acknowledged, begun=self.begun[:-1])

    def secret(self, passphrase: bytes) -> VolumeSecret:
        """Return what is released to a guest that is to open the volume and mark it with `next`.

        Raises:
            ValueError: none was begun.
        """
        taken = (*([self.acknowledged] if self.acknowledged else []), *self.begun[:-1])
        return VolumeSecret(passphrase=passphrase, blank=self.acknowledged is None, accept=taken, next=self.next)

    def encode(self) -> bytes:
        """Return the canonical bytes, to be kept."""
        return canonical_json(
            {
                "schema": SCHEMA,
                "acknowledged": self.acknowledged.to_json() if self.acknowledged else None,
                "begun": [epoch.to_json() for epoch in self.begun],
            }
        )


def parse_history(data: bytes) -> History:
    """Read a history.

    Raises:
        FormatError: anything but the one form that `History.encode` gives.
    """
    what = "volume history"
    value = parse_canonical_json(data, what=what, limit=MAX_HISTORY)
    members(value, what=what, required={"schema", "acknowledged", "begun"})
    if value["schema"] != SCHEMA:
        raise FormatError(f"{what}.schema is {str(value['schema'])[:48]!r}; {SCHEMA!r} is required")
    begun = typed(value, "begun", list, what=what)
    if len(begun) > MAX_ACCEPTED:
        raise FormatError(f"{what}.begun has {len(begun)} entries; at most {MAX_ACCEPTED} are allowed")
    return History(
        acknowledged=None if value["acknowledged"] is None else epoch_from(value["acknowledged"]),
        begun=tuple(epoch_from(epoch) for epoch in begun),
    )
