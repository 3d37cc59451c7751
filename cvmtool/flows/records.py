# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The owner's record of each machine that was started: where it is, whatever its host says or forgets.

Zone: flows (owner's machine). One file a machine, written before anything is made on the host, removed when all of it is gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cvmtool.config import private_dir, write_once
from cvmtool.errors import FormatError, HostError
from cvmtool.formats.wire import parse_json
from cvmtool.host.storage import VM_NAME, checked_name

MAX_RECORD = 65_536  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecord:
    """How to find a machine again."""

    name: str
    job: str
    host: str
    """A named host of the settings, or a libvirt URI."""
    uri: str
    """The libvirt URI it was started at."""
    machines: str
    """The host's directory of machines."""
    pid: int
    """The process that started it; an embedded driver belongs to it while it lives."""


def save_record(folder: Path, record: MachineRecord) -> None:
    """Write a machine's record; of two that start a machine of one name, one wins.

    Raises:
        HostError: there is such a machine already.
    """
    private_dir(folder)
    data = json.dumps(asdict(record), indent=1).encode("utf-8")
    if not write_once(folder / f"{checked_name(record.name)}.json", data):
        raise HostError(f"the machine {record.name} exists already", hint=f"cvmtool vm destroy {record.name}")


def forget_record(folder: Path, name: str) -> None:
    """Remove a machine's record. Idempotent."""
    (folder / f"{checked_name(name)}.json").unlink(missing_ok=True)


def load_record(folder: Path, name: str) -> MachineRecord | None:
    """Read one machine's record; None if there is none.

    Raises:
        ConfigError: no machine can have the name.
        FormatError: the record is damaged.
    """
    path = folder / f"{checked_name(name)}.json"
    try:
        with path.open("rb") as file:
            value = parse_json(file.read(MAX_RECORD + 1), what=str(path), limit=MAX_RECORD)
    except FileNotFoundError:
        return None
    texts = [field.name for field in fields(MachineRecord) if field.name != "pid"]
    pid = value.get("pid")
    if (
        set(value) != {*texts, "pid"}
        or not all(isinstance(value[key], str) for key in texts)
        or isinstance(pid, bool)
        or not isinstance(pid, int)
        or pid < 1
        or value["name"] != name
    ):
        raise FormatError(f"{path} is no record of a machine", hint="remove it, after a look at the host itself")
    return MachineRecord(**{key: str(value[key]) for key in texts}, pid=pid)


def records(folder: Path) -> Iterator[MachineRecord]:
    """Yield the records of the machines that this owner started, by name; one that cannot be read is passed over."""
    for path in sorted(folder.glob("*.json")):
        if VM_NAME.fullmatch(path.stem):
            try:
                record = load_record(folder, path.stem)
            except (OSError, FormatError):
                continue
            if record is not None:
                yield record


def process_lives(pid: int) -> bool:
    """Say whether a process with this number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except OverflowError:
        return False  # no process has such a number
    return True
