# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Sessions beside the owner's with a guest whose code is real, over real SSH. (A whole machine: tests/scenario/test_serve.py.)"""

from contextlib import ExitStack, nullcontext
from dataclasses import replace

import pytest

from cvmtool.config import load_settings
from cvmtool.errors import AppraisalError, ConfigError, FormatError, HostError
from cvmtool.flows.cases import read_case
from cvmtool.flows.jobrecord import JobState
from cvmtool.flows.jobs import MANIFEST_FILE, load_job
from cvmtool.flows.prepare import load_keys
from cvmtool.flows.visit import host_of, invite, visit
from cvmtool.formats.channel import CLIENT_PORTS
from cvmtool.formats.control import CLIENT_OPS, CONTROL_ADDRESS, ControlError, Op
from cvmtool.formats.jobterms import Access
from cvmtool.host.channel import GuestError
from cvmtool.host.tunnel import open_tunnel
from cvmtool.owner.invitation import Invitation
from cvmtool.owner.keystore import OwnerKeys
from tests import samples
from tests.fakes.running import PORT, running_job

CLIENT = OwnerKeys(b"client" * 5 + b"ab")
STRANGER = OwnerKeys(b"nobody" * 5 + b"ab")


@pytest.fixture
def settings():
    return load_settings()


@pytest.fixture
def running(settings, monkeypatch):
    access = Access(exec=True, tunnels=(PORT,), clients=(CLIENT.public.hex(),))
    with running_job(settings, monkeypatch, access=access) as running:
        yield running


def invited(running, settings) -> Invitation:
    return invite(load_job(settings.jobs_dir, running.job.record.id), settings)


def visiting(running, settings, keys, tmp_path, **changes):
    invitation = replace(invited(running, settings), **changes)
    return visit(invitation, keys, settings, kept_in=tmp_path / "visits", stage=lambda *_: nullcontext())


def test_an_invitation_leads_to_the_machine_and_judges_by_the_jobs_policy(running, settings):
    invitation = invited(running, settings)
    assert invitation.machine == running.job.record.machine
    assert invitation.uri == running.record.uri
    assert invitation.manifest == running.guest.manifest
    assert invitation.policy == running.guest.policy()


def test_the_owner_gets_a_session_beside_the_one_that_runs_the_job(running, settings, tmp_path):
    with visiting(running, settings, load_keys(settings), tmp_path) as visited:
        assert visited.channel.request(Op.STATUS)["stage"] == "running"
        open_tunnel(visited.channel, PORT).close()


def test_a_client_gets_what_clients_get_and_nothing_else(running, settings, tmp_path):
    with visiting(running, settings, CLIENT, tmp_path) as visited:
        open_tunnel(visited.channel, PORT).close()
        for op in set(Op) - CLIENT_OPS:
            with pytest.raises(GuestError) as refused:
                visited.channel.request(op)
            assert refused.value.error == ControlError.REQUEST


def test_a_client_does_not_reach_the_owners_service(running, settings, tmp_path, monkeypatch):
    monkeypatch.setattr("cvmtool.flows.visit.CLIENT_ADDRESS", CONTROL_ADDRESS)
    with visiting(running, settings, CLIENT, tmp_path) as visited, pytest.raises(HostError):
        visited.channel.request(Op.STATUS)


def test_whom_the_job_does_not_name_asks_in_vain_and_sends_nothing(running, settings, tmp_path):
    with pytest.raises(ConfigError, match=r"not among those"), visiting(running, settings, STRANGER, tmp_path):
        pass
    assert running.sessions == 0


def test_a_guest_that_does_not_take_the_key_is_no_session(running, settings, tmp_path):
    del running.allowed[CLIENT.public]
    with pytest.raises(HostError), visiting(running, settings, CLIENT, tmp_path):
        pass


def test_what_was_decided_is_kept_and_can_be_decided_again(running, settings, tmp_path):
    with visiting(running, settings, CLIENT, tmp_path) as visited:
        case = read_case(visited.case)
    assert case.accepted
    guest = case.decide()
    assert guest.ssh_host_key == running.guest.keys.ssh_host_key
    assert guest.host_data == running.guest.manifest.host_data


def test_each_session_has_a_nonce_of_its_own(running, settings, tmp_path):
    nonces = set()
    for _ in range(2):
        with visiting(running, settings, CLIENT, tmp_path) as visited:
            nonces.add(read_case(visited.case).nonce)
    assert len(nonces) == 2


def test_a_guest_that_is_refused_gets_no_session(running, settings, tmp_path):
    policy = running.guest.policy(measurements=frozenset({b"M" * 48}))
    with pytest.raises(AppraisalError), visiting(running, settings, CLIENT, tmp_path, policy=policy):
        pass
    assert running.logins == 0


def test_a_guest_of_another_job_is_refused(running, settings, tmp_path):
    other = samples.manifest(owner_key=load_keys(settings).public.hex(), access=running.guest.manifest.access, name="x")
    with pytest.raises(AppraisalError), visiting(running, settings, CLIENT, tmp_path, manifest=other):
        pass
    assert running.logins == 0


def test_so_many_sessions_at_once_as_there_are_ports(running, settings, tmp_path):
    with ExitStack() as stack:
        for _ in CLIENT_PORTS:
            stack.enter_context(visiting(running, settings, CLIENT, tmp_path))
        with pytest.raises(HostError, match=r"none of the 4 ports"), visiting(running, settings, CLIENT, tmp_path):
            pass
    with visiting(running, settings, CLIENT, tmp_path) as visited:  # they are given back
        visited.channel.request(Op.STATUS)


def test_a_job_that_does_not_run_invites_nobody(running, settings):
    running.job.finish(JobState.DONE, exit_code=0)
    with pytest.raises(ConfigError, match="is done"):
        invited(running, settings)


def test_a_job_whose_process_died_is_taken_up_again_first(running, settings):
    running.job.let_go()
    with pytest.raises(ConfigError, match="is lost") as refused:
        invited(running, settings)
    assert refused.value.hint == f"cvmtool jobs resume {running.job.record.id}"


def test_a_machine_whose_process_died_is_not_opened_by_a_client(running, settings, tmp_path):
    invitation = invited(running, settings)
    running.let_go()
    with (
        pytest.raises(HostError, match="not in the care of any process"),
        visit(invitation, CLIENT, settings, kept_in=tmp_path, stage=lambda *_: nullcontext()),
    ):
        pass


def test_a_job_that_lets_nobody_in_invites_nobody(running, settings):
    running.job.write(MANIFEST_FILE, samples.manifest().encode())
    with pytest.raises(ConfigError, match="lets nobody in"):
        invited(running, settings)


def test_a_damaged_record_invites_nobody(running, settings):
    running.job.write(MANIFEST_FILE, b"{}")
    with pytest.raises(FormatError):
        invited(running, settings)


@pytest.mark.parametrize(
    "uri", ["qemu:///embed?root=/etc", "qemu:///embed?root=../x", "qemu+ext:///system?command=/bin/false", "none"]
)
def test_an_invitation_names_no_place_of_this_machine_and_no_program(running, settings, tmp_path, uri):
    with pytest.raises(ConfigError, match="host"), visiting(running, settings, CLIENT, tmp_path, uri=uri):
        pass


def test_a_host_that_the_client_names_wins(running, settings, tmp_path):
    here = replace(settings, host=running.record.uri)
    with visiting(running, here, CLIENT, tmp_path, uri="qemu+ssh://nowhere.invalid/system") as visited:
        visited.channel.request(Op.STATUS)


def test_the_host_of_a_job_is_its_machines(running, settings):
    assert host_of(running.job, settings).host == running.record.host
    running.job.record.machine = "another"
    assert host_of(running.job, settings) == settings
