# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The owner's record of each machine without a job: what it is, how far it came, what it proved.

Zone: flows (owner's machine). One directory a machine; every file is written atomically. Where it runs stands in
`cvmtool.flows.records`, beside the machines of jobs.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from cvmtool.config import private_dir, write_atomic
from cvmtool.errors import ConfigError, FormatError, HostError
from cvmtool.flows.attempts import Attempt, now, parse_attempts
from cvmtool.flows.images import keep_image
from cvmtool.flows.vmstate import Milestone
from cvmtool.formats.machine import MachineManifest, parse_machine_manifest
from cvmtool.formats.wire import parse_json
from cvmtool.host.storage import checked_name
from cvmtool.image.bundle import Bundle, load_bundle
from cvmtool.owner.jobfile import Restart
from cvmtool.owner.policy import Policy
from cvmtool.owner.policyfile import parse_policy

# Names in a machine's directory.
RECORD_FILE = "vm.json"
MANIFEST_FILE = "manifest.json"  # canonical bytes; HOST_DATA commits to them
POLICY_FILE = "policy.toml"
GPU_POLICY_FILE = "gpu-policy.toml"  # as it was written; of a machine with GPUs alone
IMAGE_DIR = "image"
EVIDENCE_FILE = "evidence.bin"
VERDICT_FILE = "verdict.json"
LOCK_FILE = "lock"
SCHEMA = "cvmtool/vm-record/v2"
_SCHEMA_WITHOUT_GPUS = "cvmtool/vm-record/v1"
MAX_RECORD = 1 << 20  # bytes
MAX_KEPT_ATTEMPTS = 50


@dataclass(slots=True, kw_only=True)
class VmRecord:
    """What `vm status` shows of the owner's own knowledge."""

    name: str
    image: str
    image_digest: str
    simulated: bool
    host: str
    """A named host of the settings, or a libvirt URI."""
    restart: Restart
    created: str
    milestone: Milestone = Milestone.DEFINED
    """Of the running launch, or the last."""
    times: dict[str, str] = field(default_factory=dict)
    """When each milestone of that launch was last reached."""
    attempts: list[Attempt] = field(default_factory=list)
    """Launches, the last fifty, and the attested sessions of each."""
    volumes: list[str] = field(default_factory=list)
    """LUKS UUIDs."""
    gpus: list[str] = field(default_factory=list)
    """Addresses of the host's GPUs that it is given."""
    error: str | None = None
    """What the last refusal or failure said."""


class VmDir:
    """One machine's directory."""

    def __init__(self, path: Path, record: VmRecord) -> None:
        self.path = path
        self.record = record

    @classmethod
    def create(cls, vms_dir: Path, record: VmRecord) -> VmDir:
        """Make the directory of a new machine; of two that make one of one name, one wins.

        Raises:
            HostError: there is such a machine already.
        """
        path = private_dir(vms_dir) / checked_name(record.name)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError as error:
            raise HostError(
                f"the machine {record.name} exists already", hint=f"cvmtool vm start {record.name} starts it again"
            ) from error
        made = cls(path, record)
        made.save()
        return made

    def save(self) -> None:
        """Write the record."""
        self.record.attempts = self.record.attempts[-MAX_KEPT_ATTEMPTS:]
        document = {"schema": SCHEMA, **asdict(self.record)}
        write_atomic(self.path / RECORD_FILE, json.dumps(document, indent=1).encode("utf-8") + b"\n")

    def reach(self, milestone: Milestone) -> None:
        """Note how far the machine came. A start begins a new launch: what was proven was of the one before."""
        self.record.milestone = milestone
        if milestone is Milestone.STARTED:
            self.record.times = {}
        self.record.times[milestone.value] = now()
        self.save()

    def write(self, name: str, data: bytes) -> None:
        """Write one of the machine's files."""
        write_atomic(self.path / name, data)

    def keep_image(self, bundle: Bundle) -> None:
        """Keep the image as it is now."""
        keep_image(bundle, self.path / IMAGE_DIR)

    def image(self) -> Bundle:
        """Read the image that the machine was made from.

        Raises:
            BuildError: it is gone, or damaged.
        """
        return load_bundle(self.path / IMAGE_DIR)

    def manifest(self) -> MachineManifest:
        """Read the manifest.

        Raises:
            ConfigError: it is gone.
            FormatError: it is damaged.
        """
        return parse_machine_manifest(self._read(MANIFEST_FILE))

    def policy(self) -> Policy:
        """Read the policy.

        Raises:
            ConfigError: it is gone, or damaged.
        """
        return parse_policy(self._read(POLICY_FILE).decode("utf-8", "replace"))

    def gpu_policy(self) -> str | None:
        """Read the policy about its GPUs, as it was written; None if it has none.

        Raises:
            ConfigError: it is gone.
        """
        return self._read(GPU_POLICY_FILE).decode("utf-8", "replace") if self.record.gpus else None

    def remove(self) -> None:
        """Delete the directory. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def alone(self, *, wait: bool = False) -> Iterator[None]:
        """Keep other commands from this machine while the block runs; the kernel lets go however the process ends.

        Raises:
            HostError: another one works with it, and `wait` does not say to wait until it is done.
        """
        descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise HostError(
                    f"another cvmtool works with {self.record.name}",
                    hint="a guest talks to one at a time; wait for the other, or end it",
                ) from error
            self.record = load_vm(self.path.parent, self.record.name).record  # as the last one left it
            yield
        finally:
            os.close(descriptor)

    def settled(self) -> VmRecord | None:
        """Wait until no other command works with this machine; return its record as that one left it, None if it is gone."""
        with suppress(FileNotFoundError):
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            finally:
                os.close(descriptor)
        found = find_vm(self.path.parent, self.record.name)
        return None if found is None else found.record

    def _read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"the record of {self.record.name} is not whole: {name} cannot be read",
                hint=f"it was never started: cvmtool vm destroy {self.record.name}",
            ) from error


def find_vm(vms_dir: Path, name: str) -> VmDir | None:
    """Read a machine's record; None if there is none.

    Raises:
        ConfigError: no machine can have the name.
        FormatError: the record is damaged.
    """
    path = vms_dir / checked_name(name)
    try:
        with (path / RECORD_FILE).open("rb") as file:
            data = file.read(MAX_RECORD + 1)
    except FileNotFoundError:
        return None
    return VmDir(path, _parse(data, what=str(path / RECORD_FILE)))


def load_vm(vms_dir: Path, name: str) -> VmDir:
    """Read a machine's record.

    Raises:
        ConfigError: there is none.
        FormatError: the record is damaged.
    """
    found = find_vm(vms_dir, name)
    if found is None:
        raise ConfigError(f"there is no machine {name!r} of cvmtool vm start", hint="cvmtool vm list")
    return found


def load_vms(vms_dir: Path) -> Iterator[VmDir]:
    """Yield every machine by name; one whose record cannot be read is passed over."""
    for path in sorted(vms_dir.glob(f"*/{RECORD_FILE}")):
        try:
            found = find_vm(vms_dir, path.parent.name)
        except (OSError, FormatError, ConfigError):
            continue
        if found is not None:
            yield found


def _parse(data: bytes, *, what: str) -> VmRecord:
    value = parse_json(data, what=what, limit=MAX_RECORD)
    if value.get("schema") == _SCHEMA_WITHOUT_GPUS and "gpus" not in value:
        value |= {"schema": SCHEMA, "gpus": []}
    names = {item.name for item in fields(VmRecord)}
    texts = ("name", "image", "image_digest", "host", "created")
    if (
        value.pop("schema", None) != SCHEMA
        or set(value) != names
        or not all(isinstance(value[key], str) for key in texts)
        or not isinstance(value["simulated"], bool)
        or value["restart"] not in tuple(Restart)
        or value["milestone"] not in tuple(Milestone)
        or not isinstance(value["times"], dict)
        or not all(isinstance(time, str) for time in value["times"].values())
        or not all(isinstance(value[key], list) for key in ("volumes", "gpus"))
        or not all(isinstance(item, str) for item in (*value["volumes"], *value["gpus"]))
        or not (value["error"] is None or isinstance(value["error"], str))
    ):
        raise FormatError(f"{what} does not follow {SCHEMA}")
    return VmRecord(
        **{
            **value,
            "restart": Restart(value["restart"]),
            "milestone": Milestone(value["milestone"]),
            "attempts": parse_attempts(value["attempts"]),
        }
    )
