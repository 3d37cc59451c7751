# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The job of this guest's one life: unlocked, run, collected; in this order and no other.

Zone: guest (measured).
Spec: docs/protocol.md sections 5 and 11.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cvmtool.formats.control import ControlError, Stage
from cvmtool.formats.dsse import Envelope
from cvmtool.formats.job import JobManifest
from cvmtool.formats.pack import PackDescriptor
from cvmtool.formats.release import Secrets
from cvmtool.formats.volume import Epoch
from cvmtool.formats.wire import JsonObject
from cvmtool.guest import unlock
from cvmtool.guest.attest import Attested
from cvmtool.guest.console import Console, Word
from cvmtool.guest.container import Outcome, Rooms, run_container, stop_container, usage_of
from cvmtool.guest.drawer import Drawer
from cvmtool.guest.ending import Ending
from cvmtool.guest.keys import BootKeys
from cvmtool.guest.log import LogBook
from cvmtool.guest.outputs import Accepted, Rejected, collect
from cvmtool.guest.reach import Reach
from cvmtool.guest.receipt import sign_receipt
from cvmtool.guest.refusal import RefusedError

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Hands:
    """What the job does to the machine; tests give others."""

    open_packs: Callable[[Sequence[PackDescriptor], dict[str, bytearray], unlock.Places], dict[str, int]] = (
        unlock.open_packs
    )
    close_packs: Callable[[Sequence[PackDescriptor], unlock.Places], None] = unlock.close_packs
    find_damage: Callable[[JobManifest, unlock.Places], unlock.Damage | None] = unlock.find_damage
    run_container: Callable[[JobManifest, dict[str, Path], LogBook, Rooms, Ending], Outcome] = run_container
    stop_container: Callable[[Rooms], None] = stop_container
    make_drawer: Callable[[JobManifest], Drawer] = Drawer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Results:
    outcome: Outcome
    accepted: dict[str, Accepted]
    rejected: list[Rejected]
    receipt: Envelope
    damage: unlock.Damage | None
    checkpoint: RefusedError | None
    """What is wrong with the checkpoint volume."""


class Job:
    """One job. Every public method may be called from any thread; those that change the stage wait for each other."""

    def __init__(
        self,
        manifest: JobManifest,
        keys: BootKeys,
        console: Console,
        *,
        certificates: bytes,
        simulated: bool,
        places: unlock.Places | None = None,
        rooms: Rooms | None = None,
        hands: Hands | None = None,
    ) -> None:
        self._manifest = manifest
        self._certificates = certificates
        self._keys = keys
        self._console = console
        self._simulated = simulated
        self._places = places or unlock.Places()
        self._rooms = rooms or Rooms()
        self._hands = hands or Hands()
        self._changing = threading.Lock()
        self._stage = Stage.CONFIGURED
        self._open: set[str] = set()
        self._released: Attested | None = None
        self._log: LogBook | None = None
        self._results: _Results | None = None
        self._ending = Ending()
        self._reach = Reach(manifest, self._rooms)
        self._drawer = self._hands.make_drawer(manifest)

    def status(self) -> JsonObject:
        """Return the stage and, when done, the exit code; of a job of several owners also which packs are still closed."""
        results = self._results
        status: JsonObject = {
            "stage": self._stage.value,
            "exit_code": results.outcome.exit_code if results else None,
        }
        return status | ({"closed": [pack.name for pack in self._closed()]} if self._manifest.parties else {})

    @property
    def unlocked(self) -> bool:
        """Whether all is open, and nothing runs yet."""
        return self._stage is Stage.UNLOCKED

    def release(self, secrets: Secrets, attested: Attested) -> dict[str, int]:
        """Open every pack, and the checkpoint volume; return milliseconds by name. The receipt shows this session.

        A job of several owners is released by each of them: what is theirs is opened, and the last one's session is shown.

        Raises:
            RefusedError: `order`, or what `unlock.open_packs` and `Drawer.open` say; then what this call opened is closed again.
        """
        with self._changing:
            self._require(Stage.CONFIGURED)
            packs = self._closed()
            if self._manifest.parties:
                packs = tuple(pack for pack in packs if pack.root_hash in secrets.packs)
                if not packs:
                    raise RefusedError(ControlError.PACK_KEY, "the secrets hold no key for a pack that is still closed")
            passphrases = {root: bytearray(passphrase) for root, passphrase in secrets.packs.items()}
            timings = self._hands.open_packs(packs, passphrases, self._places)
            try:
                timings |= self._drawer.open(secrets)
            except RefusedError:
                self._hands.close_packs(packs, self._places)
                raise
            self._open.update(pack.name for pack in packs)
            if not self._closed():
                self._released = replace(attested, evidence=replace(attested.evidence, cert_table=self._certificates))
                self._stage = Stage.UNLOCKED
            return timings

    def _closed(self) -> tuple[PackDescriptor, ...]:
        return tuple(pack for pack in self._manifest.packs if pack.name not in self._open)

    def run(self) -> None:
        """Start the container, once.

        Raises:
            RefusedError: `order`.
        """
        with self._changing:
            if self._stage in {Stage.RUNNING, Stage.DONE}:
                return
            self._require(Stage.UNLOCKED)
            self._log = LogBook(self._rooms.work / "log", limit=self._manifest.limits.log_mib * _MIB)
            self._stage = Stage.RUNNING
            self._console.say(Word.RUNNING)
            threading.Thread(target=self._work, args=(self._log,), name="job").start()

    def stop(self, grace_seconds: float) -> None:
        """Have the container end: asked at once, killed after the grace. Idempotent.

        Raises:
            RefusedError: `order`: it has not begun.
        """
        if self._stage not in {Stage.RUNNING, Stage.DONE}:
            raise RefusedError(ControlError.ORDER, f"the stage is {self._stage.value}; running is required")
        self._ending.ask(grace_seconds)

    def usage(self) -> JsonObject:
        """Return what the container uses; `container.usage_of` says what that is.

        Raises:
            RefusedError: `order`: it does not run.
        """
        self._require(Stage.RUNNING)
        try:
            return {**usage_of(self._rooms)}
        except (OSError, ValueError) as error:
            raise RefusedError(ControlError.ORDER, "the container is about to run, or has just ended") from error

    def tunnel(self, port: int, owner: socket.socket) -> None:
        """Carry a connection to a port of the container, until it is over.

        Raises:
            RefusedError: `order`: the container does not run; `access`, as `Reach.tunnel`.
        """
        self._require(Stage.RUNNING)
        self._reach.tunnel(port, owner)

    def command(self, args: tuple[str, ...], owner: socket.socket) -> None:
        """Run a command in the container, until it is over.

        Raises:
            RefusedError: `order`: the container does not run; `access`, as `Reach.command`.
        """
        self._require(Stage.RUNNING)
        self._reach.command(args, owner)

    def commit(self, epochs: dict[str, Epoch]) -> None:
        """Write the checkpoint volume to its disk with its mark; the container works on.

        Raises:
            RefusedError: `order`: no such volume is open; `volume-integrity`.
        """
        self._drawer.commit(epochs)

    def follow_log(self, offset: int) -> Iterator[bytes]:
        """Yield the log from byte `offset` until the container has ended.

        Raises:
            RefusedError: `order`: it has not begun.
        """
        if self._log is None:
            raise RefusedError(ControlError.ORDER, f"the stage is {self._stage.value}; running or done is required")
        return self._log.follow(offset)

    def results(self) -> JsonObject:
        """Return what the job came to.

        Raises:
            RefusedError: `order`; `pack-integrity` or `volume-integrity` when the host has changed a disk under the running job.
        """
        results = self._require_results()
        log = self._log
        return {
            "exit_code": results.outcome.exit_code,
            "cause": results.outcome.cause.value,
            "outputs": [item.to_json() for item in results.accepted.values()],
            "refused": [item.to_json() for item in results.rejected],
            "log": {"size": log.size, "sha256": log.sha256} if log else None,
            "receipt": results.receipt.to_json(),
        }

    def fetch(self, name: str, offset: int) -> Iterator[bytes]:
        """Yield an output's bytes from `offset`.

        Raises:
            RefusedError: `order`, `pack-integrity`, or `output`: there is none of that name.
        """
        output = self._require_results().accepted.get(name)
        if output is None or offset > output.leaving:
            raise RefusedError(ControlError.OUTPUT, f"no output {name[:128]!r} with {offset} bytes")
        return output.read_from(offset)

    def forget(self) -> None:
        """End the container and close the packs, so that the kernel drops their keys. The guest is about to end.

        Raises:
            OSError: the container would not end.
        """
        self._hands.stop_container(self._rooms)
        self._drawer.close()
        self._hands.close_packs(self._manifest.packs, self._places)

    def _work(self, log: LogBook) -> None:
        manifest = self._manifest
        mounted = {pack.name: self._places.mount_point(pack) for pack in manifest.packs} | self._drawer.mounted()
        outcome = self._hands.run_container(manifest, mounted, log, self._rooms, self._ending)
        log.end()
        damage = self._hands.find_damage(manifest, self._places)
        checkpoint = self._drawer.find_damage()
        accepted, rejected = collect(manifest, self._rooms.outputs)
        released = self._released
        if released is None:
            raise RuntimeError("a job ran before its keys were released")
        receipt = sign_receipt(
            self._keys,
            released=released,
            manifest=manifest,
            outcome=outcome,
            outputs=accepted,
            log=log,
            accesses=self._reach.close(),
            simulated=self._simulated,
        )
        with self._changing:
            self._results = _Results(
                outcome=outcome,
                accepted={item.output.name: item for item in accepted},
                rejected=rejected,
                receipt=receipt,
                damage=damage,
                checkpoint=checkpoint,
            )
            self._stage = Stage.DONE
        self._console.say(Word.DONE)

    def _require(self, stage: Stage) -> None:
        if self._stage is not stage:
            raise RefusedError(ControlError.ORDER, f"the stage is {self._stage.value}; {stage.value} is required")

    def _require_results(self) -> _Results:
        if self._results is None:
            raise RefusedError(ControlError.ORDER, f"the stage is {self._stage.value}; {Stage.DONE.value} is required")
        damage = self._results.damage
        if damage is not None:
            detail = f"{damage.detail}; what the job made of it is not to be trusted"
            raise RefusedError(ControlError.PACK_INTEGRITY, detail, pack=damage.pack)
        if self._results.checkpoint is not None:
            raise self._results.checkpoint
        return self._results
