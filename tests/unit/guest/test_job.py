# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The job's order and its secrets, with a machine that only pretends to have disks and containers."""

import dataclasses
import hashlib
import json
import socket
import threading
import time
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from cvmtool.formats.channel import Open
from cvmtool.formats.control import ControlError, Stage, Stream
from cvmtool.formats.dsse import pae, parse_envelope
from cvmtool.formats.evidence import Evidence, host_data, report_data
from cvmtool.formats.job import OutputKind
from cvmtool.formats.pack import Role
from cvmtool.formats.parties import Party
from cvmtool.formats.receipt import InputDigest, parse_statement
from cvmtool.formats.release import Secrets, release_info
from cvmtool.formats.volume import Epoch
from cvmtool.formats.wire import canonical_json
from cvmtool.guest.attest import Attested
from cvmtool.guest.console import Console
from cvmtool.guest.container import Cause, Outcome, Rooms
from cvmtool.guest.drawer import Drawer
from cvmtool.guest.job import Hands, Job
from cvmtool.guest.keys import BootKeys
from cvmtool.guest.life import Life
from cvmtool.guest.refusal import RefusedError
from cvmtool.guest.unlock import Damage, Places
from tests.fakes.kernel import OtherKernel
from tests.unit.guest import samples

MANIFEST = samples.manifest()
DATA = MANIFEST.encode()
KEYS = BootKeys()
PASSPHRASES = {pack.root_hash: bytes([index]) * 32 for index, pack in enumerate(MANIFEST.packs)}


def attested(*, nonce=b"n" * 32, data=DATA):
    owner = bytes.fromhex(MANIFEST.owner_key)
    sha256 = hashlib.sha256(data).digest()
    launched = host_data(owner_key=owner, manifest_sha256=sha256)
    keys = {"ssh_host_key": KEYS.ssh_host_key, "hpke_key": KEYS.hpke_key, "receipt_key": KEYS.receipt_key}
    bound = report_data(nonce=nonce, host_data=launched, **keys)
    return Attested(
        challenge=Open(nonce=nonce, owner_key=owner, manifest_sha256=sha256),
        evidence=Evidence(report=samples.report(bound, launched), cert_table=b"", **keys),
        report_data=bound,
        host_data=launched,
    )


def seal(session, secrets=None, *, info=None, key=KEYS.hpke_key):
    plain = Secrets(packs=PASSPHRASES).encode() if secrets is None else secrets
    info = info or release_info(report_data=session.report_data, host_data=session.host_data)
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    return suite.encrypt(plain, X25519PublicKey.from_public_bytes(key), info=info)


class Guest:
    """A job on a pretended machine; `go` lets its container end."""

    def __init__(self, root):
        self.session = attested()
        self.asked: list[list[str]] = []
        self.opened, self.did, self.damage, self.refusal = [], [], None, None
        self.go, self.code = threading.Event(), 0
        self.rooms = Rooms(work=root, cgroups=root / "cgroups")
        self.rooms.outputs.mkdir()
        hands = Hands(
            open_packs=self.open_packs,
            close_packs=lambda packs, places: self.did.append("close"),
            find_damage=lambda manifest, places: self.damage,
            run_container=self.run_container,
            stop_container=lambda rooms: self.did.append("stop"),
            make_drawer=lambda manifest: self.drawer,
        )
        self.drawer = Drawer(MANIFEST)
        self.console = root / "console"
        self.console.touch()
        self.said = []
        console = Console(self.console)
        say = console.say
        console.say = lambda word: (self.said.append(word.value), say(word))

        def make_job(manifest, certificates):
            places = Places(packs=root / "packs")
            more = {"certificates": certificates, "simulated": True}
            return Job(manifest, KEYS, console, places=places, rooms=self.rooms, hands=hands, **more)

        def make_machine(manifest):
            raise AssertionError(f"{manifest.name} is a job")

        kernel = OtherKernel()
        self.life = Life(
            KEYS, lambda: self.session, console, make_job=make_job, make_machine=make_machine, kernel=kernel
        )

    @property
    def job(self):
        return self.life.job

    def open_packs(self, packs, passphrases, places):
        if self.refusal:
            raise self.refusal
        self.asked.append([pack.name for pack in packs])
        self.opened.append({root: bytes(key) for root, key in passphrases.items()})
        return {"tools": 5}

    def run_container(self, manifest, mounted, log, rooms, ending):
        self.did.append("run")
        self.mounted, self.ending = mounted, ending
        log.add(Stream.STDOUT, b"hello")
        (rooms.outputs / "metrics.json").write_text("{}")
        (rooms.outputs / "left").write_text("x")
        self.go.wait(20)
        return Outcome(
            exit_code=self.code, cause=Cause.EXITED, started="2026-01-01T00:00:00Z", finished="2026-01-01T00:00:09Z"
        )

    def reach(self, stage):
        steps = {
            Stage.CONFIGURED: lambda: self.life.configure(DATA, certificates=b"TABLE"),
            Stage.UNLOCKED: lambda: self.life.release(seal(self.session)),
            Stage.RUNNING: lambda: self.job.run(),  # noqa: PLW0108 - there is no job yet
            Stage.DONE: self.finish,
        }
        for reached, step in steps.items():
            if stage is Stage.WAITING:
                return
            step()
            if reached is stage:
                return

    def finish(self):
        self.go.set()
        while self.life.status()["stage"] != "done":
            list(self.job.follow_log(0))


@pytest.fixture
def guest(tmp_path):
    guest = Guest(tmp_path)
    yield guest
    guest.go.set()


def refused(call, *arguments):
    with pytest.raises(RefusedError) as caught:
        call(*arguments)
    return caught.value.error


def test_the_whole_way(guest):
    life = guest.life
    assert life.status() == {"stage": "waiting", "exit_code": None}
    life.configure(DATA, certificates=b"")
    job = life.job
    assert life.release(seal(guest.session)) == {"tools": 5}
    job.run()
    assert life.status() == {"stage": "running", "exit_code": None}
    guest.finish()
    assert life.status() == {"stage": "done", "exit_code": 0}
    results = job.results()
    digest = hashlib.sha256(b"{}").hexdigest()
    assert results["outputs"] == [{"name": "metrics.json", "kind": "json", "size": 2, "sha256": digest}]
    assert results["refused"] == [{"name": "left", "reason": "not declared in the job"}]
    assert results["cause"] == "exited"
    assert b"".join(job.fetch("metrics.json", 0)) == b"{}"
    assert guest.said == ["attested", "unlocked", "running", "done"]
    canonical_json(results)


ORDER = [
    (Stage.WAITING, lambda life, sealed: life.release(sealed)),
    (Stage.WAITING, lambda life, sealed: life.job.run()),
    (Stage.WAITING, lambda life, sealed: life.job.follow_log(0)),
    (Stage.CONFIGURED, lambda life, sealed: life.job.run()),
    (Stage.UNLOCKED, lambda life, sealed: life.release(sealed)),
    (Stage.UNLOCKED, lambda life, sealed: life.job.follow_log(0)),
    (Stage.UNLOCKED, lambda life, sealed: life.job.results()),
    (Stage.RUNNING, lambda life, sealed: life.release(sealed)),
    (Stage.RUNNING, lambda life, sealed: life.job.results()),
    (Stage.RUNNING, lambda life, sealed: life.job.fetch("metrics.json", 0)),
    (Stage.DONE, lambda life, sealed: life.release(sealed)),
]


@pytest.mark.parametrize(("stage", "call"), ORDER)
def test_order(guest, stage, call):
    guest.reach(stage)
    assert refused(call, guest.life, seal(guest.session)) is ControlError.ORDER
    assert guest.life.status()["stage"] == stage.value


def test_nothing_before_a_challenge_was_answered(guest):
    guest.session = None
    assert refused(configure(guest), DATA) is ControlError.ORDER


def configure(guest):
    return lambda data: guest.life.configure(data, certificates=b"")


def test_configure_and_run_may_be_repeated(guest):
    guest.reach(Stage.RUNNING)
    guest.life.configure(DATA, certificates=b"")
    guest.job.run()
    guest.finish()
    guest.job.run()
    assert guest.did.count("run") == 1
    assert guest.life.status()["stage"] == "done"


def test_a_job_commits_no_volumes(guest):
    guest.reach(Stage.UNLOCKED)
    assert (
        refused(lambda: guest.life.role.commit({"checkpoint": Epoch(counter=1, mark="00" * 32)})) is ControlError.ORDER
    )


class PretendedDrawer:
    """A checkpoint volume that is opened, marked and closed, or refused."""

    def __init__(self, did):
        self.did, self.refusal, self.damage = did, None, None

    def open(self, secrets):
        if self.refusal:
            raise self.refusal
        self.did.append("open checkpoint")
        return {"checkpoint": 7}

    def mounted(self):
        return {"checkpoint": Path("/checkpoint-of-the-guest")}

    def commit(self, epochs):
        self.did.append(("commit", epochs))

    def find_damage(self):
        return self.damage

    def close(self):
        self.did.append("close checkpoint")


@pytest.fixture
def keeping(guest):
    guest.drawer = PretendedDrawer(guest.did)
    return guest


def test_a_checkpoint_is_open_while_the_container_runs(keeping):
    keeping.reach(Stage.CONFIGURED)
    assert keeping.life.release(seal(keeping.session)) == {"tools": 5, "checkpoint": 7}
    keeping.job.run()
    epochs = {"checkpoint": Epoch(counter=2, mark="00" * 32)}
    keeping.life.role.commit(epochs)
    keeping.finish()
    assert keeping.mounted["checkpoint"] == Path("/checkpoint-of-the-guest")
    keeping.life.forget()
    assert keeping.did == ["open checkpoint", "run", ("commit", epochs), "stop", "close checkpoint", "close"]


def test_packs_are_closed_when_the_checkpoint_is_refused(keeping):
    keeping.drawer.refusal = RefusedError(ControlError.VOLUME_ROLLED_BACK, "old", volume="checkpoint")
    keeping.reach(Stage.CONFIGURED)
    assert refused(keeping.life.release, seal(keeping.session)) is ControlError.VOLUME_ROLLED_BACK
    assert keeping.did == ["close"]
    assert keeping.life.status()["stage"] == "configured"


def test_nothing_leaves_that_a_changed_checkpoint_led_to(keeping):
    keeping.drawer.damage = RefusedError(ControlError.VOLUME_INTEGRITY, "changed", volume="checkpoint")
    keeping.reach(Stage.DONE)
    assert refused(keeping.job.results) is ControlError.VOLUME_INTEGRITY
    assert refused(keeping.job.fetch, "metrics.json", 0) is ControlError.VOLUME_INTEGRITY


def test_a_container_is_stopped_once_it_runs(guest):
    guest.reach(Stage.UNLOCKED)
    assert refused(guest.job.stop, 5) is ControlError.ORDER
    guest.job.run()
    guest.job.stop(5)
    guest.job.stop(500)
    assert guest.ending.wanted
    assert guest.ending.limit(float("inf")) - time.monotonic() <= 5
    guest.finish()
    guest.job.stop(5)


def test_manifest_that_the_launch_does_not_commit_to(guest):
    other = dataclasses.replace(MANIFEST, name="evil").encode()
    assert refused(configure(guest), other) is ControlError.MANIFEST
    assert guest.life.status()["stage"] == "waiting"


@pytest.mark.parametrize(
    "data",
    [b"{}", DATA + b"\n", dataclasses.replace(MANIFEST, owner_key="99" * 32).encode()],
    ids=["no manifest", "not canonical", "another owner"],
)
def test_manifest_that_the_launch_commits_to_and_is_none(guest, data):
    guest.session = attested(data=data)
    assert refused(configure(guest), data) is ControlError.MANIFEST


def test_passphrases_arrive_as_they_were_sealed(guest):
    guest.reach(Stage.UNLOCKED)
    assert guest.opened == [PASSPHRASES]


OTHER = attested(nonce=b"o" * 32)
SEALED = {
    "to another session": lambda session: seal(OTHER),
    "to another key": lambda session: seal(session, key=BootKeys().hpke_key),
    "for another purpose": lambda session: seal(session, info=b"cvmtool/v1/other"),
    "flipped": lambda session: seal(session)[:-1] + bytes([seal(session)[-1] ^ 1]),
    "cut": lambda session: seal(session)[:40],
    "empty": lambda session: b"",
    "not secrets": lambda session: seal(session, b"{}"),
    "short passphrase": lambda session: seal(
        session, canonical_json({"schema": "cvmtool/secrets/v1", "packs": {"00" * 32: "00"}, "volumes": {}})
    ),
}


@pytest.mark.parametrize("make", SEALED.values(), ids=SEALED)
def test_secret_that_is_not_for_us(guest, make):
    guest.reach(Stage.CONFIGURED)
    assert refused(guest.life.release, make(guest.session)) is ControlError.SEALED
    assert guest.opened == []
    assert guest.life.status()["stage"] == "configured"


def test_secret_of_an_earlier_session_is_stale(guest):
    guest.reach(Stage.CONFIGURED)
    sealed = seal(guest.session)
    guest.session = OTHER
    assert refused(guest.life.release, sealed) is ControlError.SEALED


def test_no_refusal_repeats_a_passphrase(guest):
    guest.reach(Stage.CONFIGURED)
    secret = "5e" * 31 + "xy"
    sealed = seal(
        guest.session, canonical_json({"schema": "cvmtool/secrets/v1", "packs": {"00" * 32: secret}, "volumes": {}})
    )
    with pytest.raises(RefusedError) as caught:
        guest.life.release(sealed)
    assert secret[:8] not in f"{caught.value.message} {caught.value.detail}"


def test_pack_that_does_not_open_can_be_tried_again(guest):
    guest.reach(Stage.CONFIGURED)
    guest.refusal = RefusedError(ControlError.PACK_KEY, "no", pack="tools")
    assert refused(guest.life.release, seal(guest.session)) is ControlError.PACK_KEY
    guest.refusal = None
    guest.life.release(seal(guest.session))
    assert guest.life.status()["stage"] == "unlocked"


def test_receipt_says_what_happened_and_is_signed_with_the_attested_key(guest):
    guest.code = 7
    guest.reach(Stage.RUNNING)
    released = guest.session
    guest.session = OTHER  # the owner came back later, with another challenge
    guest.finish()
    results = guest.job.results()
    envelope = parse_envelope(json.dumps(results["receipt"]).encode())
    Ed25519PublicKey.from_public_bytes(KEYS.receipt_key).verify(envelope.signature, pae(envelope.payload))
    assert envelope.keyid == hashlib.sha256(KEYS.receipt_key).hexdigest()
    statement = parse_statement(envelope.payload)
    shown = dataclasses.replace(released.evidence, cert_table=b"TABLE")  # what the owner verified it with
    assert (statement.nonce, statement.evidence) == (released.challenge.nonce, shown)
    assert statement.manifest_sha256 == hashlib.sha256(DATA).digest()
    assert statement.owner_key.hex() == MANIFEST.owner_key
    assert statement.inputs == tuple(
        InputDigest(name=pack.name, role=pack.role, root_hash=pack.root_hash) for pack in MANIFEST.packs
    )
    assert [(item.name, item.kind, item.sha256) for item in statement.outputs] == [
        ("metrics.json", OutputKind.JSON, hashlib.sha256(b"{}").hexdigest())
    ]
    report = released.evidence.report
    assert (statement.image_id, statement.measurement) == (report[0x20:0x30], report[0x90:0xC0])
    assert (statement.network, statement.gpus) == (MANIFEST.network, MANIFEST.resources.gpus)
    assert statement.access == ()
    assert (statement.exit_code, statement.simulated) == (7, True)
    assert (statement.log_size, statement.log_sha256) == (results["log"]["size"], results["log"]["sha256"])
    log = b"".join(guest.job.follow_log(0))
    assert hashlib.sha256(log).hexdigest() == statement.log_sha256
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(KEYS.receipt_key).verify(envelope.signature, pae(envelope.payload + b" "))


@pytest.mark.parametrize("pack", ["tools", None])
def test_damaged_pack_leaves_no_results(guest, pack):
    guest.damage = Damage(pack=pack, detail="the host changed it")
    guest.reach(Stage.DONE)
    for call in (guest.job.results, lambda: guest.job.fetch("metrics.json", 0)):
        with pytest.raises(RefusedError) as caught:
            call()
        assert (caught.value.error, caught.value.pack) == (ControlError.PACK_INTEGRITY, pack)


@pytest.mark.parametrize(("name", "offset"), [("left", 0), ("../log", 0), ("metrics.json", 3)])
def test_fetching_what_is_no_output(guest, name, offset):
    guest.reach(Stage.DONE)
    assert refused(guest.job.fetch, name, offset) is ControlError.OUTPUT


def test_end_stops_the_container_before_its_packs_close(guest):
    guest.life.forget()
    assert guest.did == []
    guest.reach(Stage.RUNNING)
    guest.life.forget()
    assert guest.did[-2:] == ["stop", "close"]


@pytest.mark.parametrize("stage", [Stage.CONFIGURED, Stage.UNLOCKED, Stage.DONE])
def test_nothing_is_reached_unless_the_container_runs(guest, stage):
    guest.reach(stage)
    with socket.socket() as owner:
        for ask in (lambda: guest.job.tunnel(8000, owner), lambda: guest.job.command(("id",), owner)):
            with pytest.raises(RefusedError) as refused:
                ask()
            assert refused.value.error is ControlError.ORDER


def test_what_a_container_uses_is_said_while_it_runs(guest):
    guest.reach(Stage.UNLOCKED)
    assert refused(guest.job.usage) is ControlError.ORDER
    guest.job.run()
    assert refused(guest.job.usage) is ControlError.ORDER  # crun has not made its group yet
    group = guest.rooms.cgroups / "job"
    group.mkdir(parents=True)
    for name, text in (("memory.current", "7\n"), ("memory.peak", "9\n"), ("cpu.stat", "usage_usec 11\nuser_usec 5\n")):
        (group / name).write_text(text)
    used = guest.job.usage()
    assert used.pop("outputs_bytes") > 0
    assert used == {"memory_bytes": 7, "memory_peak_bytes": 9, "cpu_microseconds": 11}
    guest.finish()
    assert refused(guest.job.usage) is ControlError.ORDER


def test_a_running_container_is_reached_as_its_manifest_says(guest):
    guest.reach(Stage.RUNNING)
    with socket.socket() as owner:
        for ask in (lambda: guest.job.tunnel(8000, owner), lambda: guest.job.command(("id",), owner)):
            with pytest.raises(RefusedError) as refused:
                ask()
            assert refused.value.error is ControlError.ACCESS  # this one says: nobody
    guest.finish()


POOLED = samples.manifest(
    packs=(samples.pack(), samples.pack("clinic", Role.INPUT), samples.pack("ward", Role.INPUT)),
    parties=(Party(owner_key="77" * 32, packs=("clinic",)), Party(owner_key="88" * 32, packs=("ward",))),
    recipients=("55" * 32,),
)


def key_of(*names):
    return {pack.root_hash: pack.name.encode().ljust(32) for pack in POOLED.packs if pack.name in names}


@pytest.fixture
def pooled(guest):
    guest.nonce = iter(range(256))
    new_session(guest)
    guest.life.configure(POOLED.encode(), certificates=b"TABLE")
    return guest


def new_session(guest):
    guest.session = attested(nonce=bytes((next(guest.nonce),)) * 32, data=POOLED.encode())
    return guest.session


def release(guest, *names, secrets=None):
    sealed = seal(new_session(guest), Secrets(packs=key_of(*names) if secrets is None else secrets).encode())
    return guest.life.release(sealed)


def test_a_job_of_several_owners_is_unlocked_when_each_has_released(pooled):
    assert pooled.life.status() == {"stage": "configured", "exit_code": None, "closed": ["tools", "clinic", "ward"]}
    release(pooled, "ward")
    assert pooled.life.status()["closed"] == ["tools", "clinic"]
    release(pooled, "clinic")
    assert pooled.said == ["attested"]
    assert refused(pooled.job.run) is ControlError.ORDER
    release(pooled, "tools")
    assert pooled.life.status() == {"stage": "unlocked", "exit_code": None, "closed": []}
    assert pooled.said == ["attested", "unlocked"]
    assert pooled.opened == [key_of("ward"), key_of("clinic"), key_of("tools")]
    assert pooled.asked == [["ward"], ["clinic"], ["tools"]]


def test_the_receipt_of_several_owners_shows_the_session_of_the_last_release(pooled):
    for name in ("clinic", "ward", "tools"):
        release(pooled, name)
    last = pooled.session
    new_session(pooled)
    pooled.job.run()
    pooled.finish()
    statement = parse_statement(parse_envelope(json.dumps(pooled.job.results()["receipt"]).encode()).payload)
    assert statement.nonce == last.challenge.nonce
    assert [item.owner for item in statement.inputs] == [None, "77" * 32, "88" * 32]


def test_no_owner_opens_a_pack_twice_or_one_that_is_not_the_jobs(pooled):
    release(pooled, "clinic")
    for secrets in (key_of("clinic"), {"ab" * 32: b"x" * 32}, {}):
        with pytest.raises(RefusedError) as again:
            release(pooled, secrets=secrets)
        assert again.value.error is ControlError.PACK_KEY
    assert pooled.life.status()["closed"] == ["tools", "ward"]


def test_a_pack_that_does_not_open_leaves_those_of_others_open(pooled):
    release(pooled, "clinic")
    pooled.refusal = RefusedError(ControlError.PACK_KEY, "another passphrase", pack="ward")
    assert refused(lambda: release(pooled, "ward")) is ControlError.PACK_KEY
    assert pooled.life.status()["closed"] == ["tools", "ward"]
    pooled.refusal = None
    release(pooled, "ward", "tools")
    assert pooled.life.status()["stage"] == "unlocked"


def test_what_a_party_sealed_for_one_session_opens_in_no_other(pooled):
    sealed = seal(new_session(pooled), Secrets(packs=key_of("clinic")).encode())
    new_session(pooled)
    assert refused(lambda: pooled.life.release(sealed)) is ControlError.SEALED
    assert pooled.life.status()["closed"] == ["tools", "clinic", "ward"]
