# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The attested channel on a real guest: cut, contested, filled with garbage, impersonated."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import paramiko
import pytest

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.dryrun.amd import FakeAmd
from cvmtool.errors import FreshnessError, HostError
from cvmtool.flows.attach import Challenge, attach, demand_evidence, judge
from cvmtool.flows.machine import Machine, start_machine
from cvmtool.flows.platform import DryRun
from cvmtool.flows.prepare import Prepared
from cvmtool.flows.run import configure
from cvmtool.flows.train import BOOT_SECONDS, job_policy
from cvmtool.formats.channel import AGENT_PORT
from cvmtool.formats.control import Op
from cvmtool.formats.manifest import Mode
from cvmtool.formats.wire import to_base64
from cvmtool.host.channel import GuestError

pytestmark = [pytest.mark.vm, pytest.mark.image]


def no_stage(_stage: object, _text: str) -> nullcontext[None]:
    return nullcontext()


@pytest.fixture(scope="module")
def platform(settings: Settings) -> DryRun:
    return DryRun(amd=FakeAmd.load_or_create(settings.dryrun_dir))


@pytest.fixture(scope="module")
def machine(prepared: Prepared, settings: Settings) -> Iterator[Machine]:
    started = start_machine(
        f"channel-{secrets.token_hex(4)}",
        prepared.launch(Mode.DRYRUN),
        settings=settings,
        reporter=JsonReporter(),
    )
    yield started
    started.remove()


@pytest.fixture(scope="module")
def challenge(prepared: Prepared, settings: Settings, platform: DryRun) -> Challenge:
    return Challenge(
        keys=prepared.keys,
        manifest=prepared.manifest,
        policy=job_policy(prepared.bundle, prepared.manifest, platform),
        cases_dir=settings.cases_dir,
        boot_seconds=BOOT_SECONDS,
    )


def test_reconnect_after_cut(machine: Machine, challenge: Challenge, platform: DryRun) -> None:
    boots = set()
    for _ in range(5):
        with attach(machine, challenge, platform, stage=no_stage) as attached:
            assert attached.channel.request(Op.STATUS)["stage"] == "waiting"
            boots.add(attached.evidence.hpke_key)
            attached.channel._port.close()  # the wire is cut, in the middle of a session
    assert len(boots) == 1  # the same boot answered, over a new nonce each time


def test_second_client_takes_over(machine: Machine, challenge: Challenge, platform: DryRun) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(attach(machine, challenge, platform, stage=no_stage))
        second = stack.enter_context(attach(machine, challenge, platform, stage=no_stage))
        assert second.channel.request(Op.STATUS)["ok"] is True
        with pytest.raises(HostError):
            first.channel.request(Op.STATUS)


@pytest.mark.parametrize(
    "garbage", [b"\0" * 100_000, secrets.token_bytes(4096), b"GET / HTTP/1.1\r\n\r\n", b"\nCVM1 OPEN 00"]
)
def test_garbage_on_the_port_is_ignored(
    garbage: bytes, machine: Machine, challenge: Challenge, platform: DryRun
) -> None:
    port = machine.hypervisor.open_port(machine.name, AGENT_PORT)
    port.sendall(garbage)
    port.close()
    with attach(machine, challenge, platform, stage=no_stage) as attached:
        assert attached.channel.request(Op.STATUS)["ok"] is True


def test_other_host_key_is_refused(machine: Machine, challenge: Challenge, platform: DryRun, stack: ExitStack) -> None:
    channel, session, evidence = demand_evidence(machine, challenge, platform, stack)
    judge(session, evidence, challenge, machine)
    signed = []
    with pytest.raises(FreshnessError):
        channel.connect(
            nonce=session.nonce,
            ssh_host_key=secrets.token_bytes(32),
            owner_key=challenge.keys.public,
            sign=lambda data: signed.append(data) or challenge.keys.sign(data),
        )
    assert signed == []  # the owner did not even try to log in


def test_another_owner_is_refused_by_the_guest(machine: Machine, challenge: Challenge, platform: DryRun) -> None:
    from cvmtool.owner.keystore import generate_keys

    stranger = replace(challenge, keys=generate_keys())
    with pytest.raises(FreshnessError), attach(machine, stranger, platform, stage=no_stage):
        pass


def test_session_gets_no_shell(machine: Machine, challenge: Challenge, platform: DryRun) -> None:
    with attach(machine, challenge, platform, stage=no_stage) as attached:
        transport = attached.channel._ssh()
        with pytest.raises(paramiko.ChannelException):
            transport.open_session()  # no session channel at all: no exec, no PTY, no subsystem, no SFTP
        for port in (22, 7011, 80):
            with pytest.raises(paramiko.ChannelException):
                transport.open_channel("direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 0))
        with pytest.raises(paramiko.SSHException):
            transport.request_port_forward("127.0.0.1", 0)


def test_operations_out_of_order_are_refused(machine: Machine, challenge: Challenge, platform: DryRun) -> None:
    with attach(machine, challenge, platform, stage=no_stage) as attached:
        for op, fields in (
            (Op.RUN, {}),
            (Op.RESULTS, {}),
            (Op.LOGS, {"offset": 0}),
            (Op.RELEASE, {"sealed": to_base64(secrets.token_bytes(64))}),
        ):
            with pytest.raises(GuestError) as refused:
                attached.channel.request(op, **fields)
            assert refused.value.error == "order"
        with pytest.raises(GuestError) as refused:
            attached.channel.request(Op.CONFIGURE, manifest=to_base64(b"{}"), certificates="")
        assert refused.value.error == "manifest"


def test_secret_of_another_session_does_not_open(machine: Machine, challenge: Challenge, platform: DryRun) -> None:
    from cvmtool.formats.release import Secrets
    from cvmtool.owner.seal import seal

    packs = {pack.root_hash: challenge.keys.pack_passphrase(pack.luks_uuid) for pack in challenge.manifest.packs}
    with attach(machine, challenge, platform, stage=no_stage) as attached:
        sealed = seal(attached.guest, Secrets(packs=packs), manifest=challenge.manifest)
    with attach(machine, challenge, platform, stage=no_stage) as attached:
        configure(attached, challenge.manifest)
        with pytest.raises(GuestError) as refused:
            attached.channel.request(Op.RELEASE, sealed=to_base64(sealed))
        assert refused.value.error == "sealed"


def test_guest_death_is_noticed(prepared: Prepared, settings: Settings, challenge: Challenge, platform: DryRun) -> None:
    doomed = start_machine(
        f"doomed-{secrets.token_hex(4)}",
        prepared.launch(Mode.DRYRUN),
        settings=settings,
        reporter=JsonReporter(),
    )
    try:
        with attach(doomed, challenge, platform, stage=no_stage) as attached:
            assert attached.channel.request(Op.STATUS)["ok"] is True
            doomed.hypervisor.destroy(doomed.name)
            with pytest.raises(HostError):
                attached.channel.request(Op.STATUS)
    finally:
        doomed.remove()
