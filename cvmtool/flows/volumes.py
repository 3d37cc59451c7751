# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The owner's record of each volume: which disk it is, where it lies, and which of its states are taken.

Zone: flows (owner's machine). A volume outlives machines. What it holds is the guest's and ciphertext; the history here is all
that tells its newest state from an older one, so it is written before a guest hears of a new state (ADR-0016).
"""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from cvmtool.config import Settings, private_dir, write_atomic
from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows.hosts import Host, OpenHost
from cvmtool.formats.pack import parse_uuid
from cvmtool.formats.volume import MARK_SIZE, Volume
from cvmtool.formats.wire import parse_json
from cvmtool.host.domain import Disk
from cvmtool.owner.epochs import History, parse_history

SCHEMA = "cvmtool/volume-record/v1"
MAX_RECORD = 65_536  # bytes
VOLUMES_FOLDER = ".volumes"  # below the host's directory of machines; no machine can have the name


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """One volume."""

    luks_uuid: str
    name: str
    size: int
    """Bytes."""
    host: str
    """As the record of its machine names it."""
    path: str
    """The host's file."""
    machine: str
    """Whose manifest has it; empty: it was kept when its machine was destroyed."""
    history: History

    def volume(self) -> Volume:
        """Return what a manifest says of it. It may be made as long as no guest has said that it was."""
        create = self.history.acknowledged is None
        return Volume(name=self.name, luks_uuid=self.luks_uuid, size=self.size, create=create)

    def disk(self) -> Disk:
        """Return the disk that a domain gets."""
        return Disk(path=self.path, serial=self.volume().serial, writable=True)

    def begun(self) -> VolumeRecord:
        """Return the record with a new state begun, to be saved before a guest hears of it.

        Raises:
            FreshnessError: too many were begun and never acknowledged.
        """
        return replace(self, history=self.history.begin(secrets.token_bytes(MARK_SIZE)))

    def acknowledged(self) -> VolumeRecord:
        """Return the record after a guest has written the state that was begun."""
        return replace(self, history=self.history.acknowledge())

    def withdrawn(self) -> VolumeRecord:
        """Return the record without the state that was begun, which no guest can have written."""
        return replace(self, history=self.history.withdraw())


class Volumes:
    """The records of one owner."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, record: VolumeRecord) -> None:
        """Keep a record."""
        document = {**asdict(record), "schema": SCHEMA, "history": record.history.encode().decode("utf-8")}
        write_atomic(
            private_dir(self._folder) / f"{record.luks_uuid}.json", json.dumps(document, indent=1).encode("utf-8")
        )

    def load(self, luks_uuid: str) -> VolumeRecord:
        """Read a record.

        Raises:
            ConfigError: there is none.
            FormatError: it is damaged.
        """
        path = self._folder / f"{parse_uuid(luks_uuid, what='volume')}.json"
        try:
            with path.open("rb") as file:
                data = file.read(MAX_RECORD + 1)
        except FileNotFoundError as error:
            raise ConfigError(f"there is no volume {luks_uuid}", hint="cvmtool vm volumes") from error
        return _parse(data, what=str(path))

    def all(self) -> Iterator[VolumeRecord]:
        """Yield every record that can be read, by machine and name."""
        found = []
        for path in self._folder.glob("*.json"):
            try:
                found.append(_parse(path.read_bytes(), what=str(path)))
            except (OSError, FormatError):
                continue
        yield from sorted(found, key=lambda record: (record.machine, record.name, record.luks_uuid))

    def forget(self, luks_uuid: str) -> None:
        """Remove a record. What the volume holds is lost with it: its states can no longer be told apart. Idempotent."""
        (self._folder / f"{parse_uuid(luks_uuid, what='volume')}.json").unlink(missing_ok=True)


def make_volume(
    host: Host, volumes: Volumes, name: str, size: int, *, machine: str, target: str, luks_uuid: str | None = None
) -> VolumeRecord:
    """Make the file of a new volume on its host; it is blank until a guest makes the volume on it.

    `size`: bytes. `target`: the host as records name it. `luks_uuid`: None for a new one.

    Raises:
        HostError: the host has no room, or does not answer; the record stays.
    """
    luks_uuid = luks_uuid or str(uuid.uuid4())
    folder = f"{host.machines}/{VOLUMES_FOLDER}"
    record = VolumeRecord(
        luks_uuid=luks_uuid,
        name=name,
        size=size,
        host=target,
        path=f"{folder}/{luks_uuid}.img",
        machine=machine,
        history=History(),
    )
    volumes.save(record)  # first: what the host holds is never unknown to its owner
    host.files.make_dir(folder)
    host.files.make_sparse(record.path, size)
    return record


def remove_volumes(records: list[VolumeRecord], volumes: Volumes, settings: Settings, reach: OpenHost) -> None:
    """Delete the files of volumes on the host of the settings, and then what opens them.

    Raises:
        HostError: the host does not answer.
    """
    host = reach(settings)
    try:
        for record in records:
            host.files.remove(record.path)
            volumes.forget(record.luks_uuid)
    finally:
        host.close()


def _parse(data: bytes, *, what: str) -> VolumeRecord:
    value = parse_json(data, what=what, limit=MAX_RECORD)
    schema = value.pop("schema", None)
    names = {item.name for item in fields(VolumeRecord)}
    texts = names - {"size"}
    size = value.get("size")
    if (
        schema != SCHEMA
        or set(value) != names
        or not all(isinstance(value[key], str) for key in texts)
        or isinstance(size, bool)
        or not isinstance(size, int)
    ):
        raise FormatError(f"{what} does not follow {SCHEMA}")
    parse_uuid(value["luks_uuid"], what=f"{what}: luks_uuid")
    return VolumeRecord(**{**value, "history": parse_history(value["history"].encode("utf-8"))})
