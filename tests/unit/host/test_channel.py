# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The real paramiko client against a guest that this test plays, over a socket pair."""

import socket
import threading
from contextlib import suppress

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import AppraisalError, FormatError, FreshnessError, HostError
from cvmtool.formats.channel import (
    MAX_ANSWER,
    Open,
    Refusal,
    closed_line,
    find_last_open,
    ready_line,
    refused_line,
)
from cvmtool.formats.control import Op
from cvmtool.formats.evidence import Evidence
from cvmtool.formats.wire import Frame, Kind, json_frame, parse_json, read_frame
from cvmtool.guest.keys import BootKeys
from cvmtool.host.channel import AgentChannel, GuestError, _SessionSocket
from tests.fakes.guest import OWNER

NONCE = b"N" * 32
OPEN = Open(nonce=NONCE, owner_key=OWNER.public, manifest_sha256=b"M" * 32)


def evidence(keys):
    return Evidence(
        report=bytes(1184),
        cert_table=b"",
        ssh_host_key=keys.ssh_host_key,
        hpke_key=keys.hpke_key,
        receipt_key=keys.receipt_key,
    )


class Sshd(paramiko.ServerInterface):
    """Lets the owner's key forward to the control address and does nothing else."""

    def __init__(self):
        self.logins = []
        self.forwards = []

    def get_allowed_auths(self, username):
        return "publickey"

    def check_auth_publickey(self, username, key):
        self.logins.append((username, key.asbytes()[-32:]))
        return paramiko.AUTH_SUCCESSFUL if key.asbytes()[-32:] == OWNER.public else paramiko.AUTH_FAILED

    def check_channel_direct_tcpip_request(self, chanid, origin, destination):
        self.forwards.append(destination)
        allowed = destination == ("127.0.0.1", 7010)
        return paramiko.OPEN_SUCCEEDED if allowed else paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED


class Guest:
    """The guest's end: answers OPEN with `reply(nonce)`, then serves SSH; each request gets `answers(request)` bytes."""

    def __init__(self, folder, *, before=b"", reply=None, answers=None):
        self.owner, self.port = socket.socketpair()
        self.keys = BootKeys()
        self.sshd = Sshd()
        self.requests = []
        self._before = before
        self._reply = reply or (lambda nonce: ready_line(nonce, evidence(self.keys)))
        self._answers = answers or (lambda _request: json_frame({"ok": True}))
        self.keys.write_host_key(folder / "key")
        self._host_key = paramiko.Ed25519Key.from_private_key_file(str(folder / "key"))
        self.transport = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        with suppress(OSError, EOFError, paramiko.SSHException):
            heard = b""
            while (found := find_last_open(heard)) is None:
                data = self.port.recv(65_536)
                if not data:
                    return
                heard += data
            self.port.sendall(self._before + self._reply(found[0].nonce))
            self.transport = paramiko.Transport(self.port)
            self.transport.add_server_key(self._host_key)
            self.transport.start_server(server=self.sshd)
            while self.transport.is_active():
                channel = self.transport.accept(timeout=0.2)
                if channel is not None:
                    threading.Thread(target=self._answer, args=(channel,), daemon=True).start()

    def _answer(self, channel):
        stream = channel.makefile("rb")
        try:
            request = parse_json(read_frame(stream.read).payload, what="request", limit=1 << 20)
        except FormatError:
            return  # the owner went before it had asked
        self.requests.append(request)
        with suppress(OSError):
            channel.sendall(self._answers(request))
            channel.shutdown_write()

    def close(self):
        if self.transport is not None:
            self.transport.close()
        with suppress(OSError):
            self.port.shutdown(socket.SHUT_RDWR)
        self.port.close()
        self._thread.join(10)


@pytest.fixture
def guest(tmp_path):
    made = []

    def make(**script):
        made.append(Guest(tmp_path, **script))
        return made[-1], AgentChannel(made[-1].owner)

    yield make
    for each in made:
        each.close()
        each.owner.close()


def nothing():
    pass


def ask(channel, seconds=10.0, alive=nothing):
    return channel.challenge(OPEN.encode(), NONCE, deadline_seconds=seconds, alive=alive)


def connected(made, **changes):
    guest, channel = made
    ask(channel)
    trust = {"nonce": NONCE, "ssh_host_key": guest.keys.ssh_host_key, "owner_key": OWNER.public, "sign": OWNER.sign}
    channel.connect(**{**trust, **changes})
    return channel


def test_a_challenge_is_answered_with_evidence(guest):
    played, channel = guest()
    assert ask(channel) == evidence(played.keys)


@pytest.mark.parametrize(
    "before",
    [
        b"boot noise \x00\xff\n",
        closed_line(b"o" * 32) + b"SSH-2.0-old\r\n" + bytes(300_000),
        ready_line(b"o" * 32, evidence(BootKeys())),
        b"\nCVM1 READY " + (b"o" * 32).hex().encode() + b" " + b"A" * (2 * MAX_ANSWER),
    ],
    ids=["noise", "old session", "old answer", "old answer without end"],
)
def test_what_an_earlier_session_left_is_dropped(guest, before):
    made = guest(before=before)
    assert connected(made).request(Op.STATUS) == {"ok": True}


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refusal.HOST_DATA, FreshnessError),
        (Refusal.BAD_REPORT, FreshnessError),
        (Refusal.NO_REPORT, HostError),
        (Refusal.BUSY, HostError),
    ],
)
def test_a_refusal_is_an_error_of_its_kind(guest, refusal, error):
    _, channel = guest(reply=lambda nonce: refused_line(nonce, refusal))
    with pytest.raises(error) as caught:
        ask(channel)
    assert caught.value.hint


def test_every_refusal_is_covered():
    assert len(Refusal) == 4


def test_a_malformed_answer_is_a_format_error(guest):
    _, channel = guest(reply=lambda nonce: b"\nCVM1 READY %b !!\n" % nonce.hex().encode())
    with pytest.raises(FormatError):
        ask(channel)


def test_an_answer_to_another_nonce_is_no_answer(guest):
    _, channel = guest(reply=lambda _nonce: ready_line(b"o" * 32, evidence(BootKeys())))
    with pytest.raises(HostError):
        ask(channel, seconds=0.5)


def test_silence_has_a_deadline_and_alive_may_end_it_sooner(guest):
    _, channel = guest(reply=lambda _nonce: b"")
    with pytest.raises(HostError) as caught:
        ask(channel, seconds=0.2)
    assert "did not answer" in caught.value.message

    def refused():
        raise AppraisalError("the boot was refused", findings=())

    _, channel = guest(reply=lambda _nonce: b"")
    with pytest.raises(AppraisalError):
        ask(channel, alive=refused)


def test_a_port_that_closes_is_the_hosts_failure_unless_alive_knows_better(guest, monkeypatch):
    monkeypatch.setattr("cvmtool.host.channel._LAST_WORD_SECONDS", 0.1)
    played, channel = guest(reply=lambda _nonce: b"")
    played.close()
    with pytest.raises(HostError):
        ask(channel)
    calls = []

    def later():
        calls.append(1)
        if len(calls) > 1:
            raise AppraisalError("the boot was refused", findings=())

    ours, theirs = socket.socketpair()
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(AppraisalError):
        ask(AgentChannel(ours), alive=later)
    ours.close()
    theirs.close()


def test_a_session_reaches_the_control_service_as_the_owner(guest):
    made = guest(answers=lambda request: json_frame({"ok": True, "echo": request["name"]}))
    channel = connected(made)
    assert channel.request(Op.FETCH, name="x", offset=3) == {"ok": True, "echo": "x"}
    assert made[0].requests == [{"op": "fetch", "name": "x", "offset": 3}]
    assert set(made[0].sshd.logins) == {("owner", OWNER.public)}
    assert made[0].sshd.forwards == [("127.0.0.1", 7010)]


def test_a_man_in_the_middle_is_found_before_the_owner_says_who_it_is(guest):
    made = guest()
    with pytest.raises(FreshnessError) as caught:
        connected(made, ssh_host_key=BootKeys().ssh_host_key)
    assert caught.value.exit_code == 7
    assert made[0].keys.ssh_host_key.hex() in caught.value.message
    made[1].close()
    made[0].close()
    assert made[0].sshd.logins == []
    assert made[0].sshd.forwards == []


def test_another_owner_cannot_log_in(guest):
    stranger = Ed25519PrivateKey.generate()
    made = guest()
    with pytest.raises(HostError):
        connected(made, owner_key=stranger.public_key().public_bytes_raw(), sign=stranger.sign)


def test_a_signature_that_is_not_the_keys_does_not_log_in(guest):
    with pytest.raises(HostError):
        connected(guest(), sign=Ed25519PrivateKey.generate().sign)


def test_garbage_in_place_of_ssh_is_the_hosts_failure(guest, monkeypatch):
    monkeypatch.setattr("cvmtool.host.channel._SSH_SECONDS", 5.0)
    keys = BootKeys()
    _, channel = guest(reply=lambda nonce: ready_line(nonce, evidence(keys)) + b"HTTP/1.1 400\r\n" * 200)
    ask(channel)
    with pytest.raises(HostError):
        channel.connect(nonce=NONCE, ssh_host_key=keys.ssh_host_key, owner_key=OWNER.public, sign=OWNER.sign)


def test_a_session_that_the_guest_closes_at_once_is_an_end_and_no_wait(guest):
    keys = BootKeys()
    _, channel = guest(reply=lambda nonce: ready_line(nonce, evidence(keys)) + b"SSH-2.0-x\r\n" + closed_line(nonce))
    ask(channel)
    with pytest.raises(HostError):
        channel.connect(nonce=NONCE, ssh_host_key=keys.ssh_host_key, owner_key=OWNER.public, sign=OWNER.sign)


def test_what_the_guest_refuses_keeps_its_word_and_its_pack(guest):
    answer = {"ok": False, "error": "pack-integrity", "detail": "block 7", "pack": "data"}
    with pytest.raises(GuestError) as caught:
        connected(guest(answers=lambda _request: json_frame(answer))).request(Op.RELEASE, sealed="")
    error = caught.value
    assert (error.op, error.error, error.detail, error.pack) == (Op.RELEASE, "pack-integrity", "block 7", "data")
    assert error.exit_code == 8


def test_what_the_guest_refuses_keeps_its_volume(guest):
    answer = {"ok": False, "error": "volume-rolled-back", "detail": "state 3", "volume": "data"}
    with pytest.raises(GuestError) as caught:
        connected(guest(answers=lambda _request: json_frame(answer))).request(Op.RELEASE, sealed="")
    assert (caught.value.error, caught.value.pack, caught.value.volume) == ("volume-rolled-back", None, "data")


@pytest.mark.parametrize("answer", [{}, {"ok": 1}, {"ok": "true"}, {"ok": None, "pack": 7, "volume": []}])
def test_an_answer_that_does_not_say_ok_is_a_no(guest, answer):
    with pytest.raises(GuestError) as caught:
        connected(guest(answers=lambda _request: json_frame(answer))).request(Op.RUN)
    assert (caught.value.pack, caught.value.volume) == (None, None)


@pytest.mark.parametrize(
    "answer",
    [
        b"X\0\0\0\0",
        b"D\0\0\0\1x",
        b"E\0\0\0\0",
        b"J\xff\xff\xff\xff",
        Frame(Kind.JSON, b'{"ok": true}').encode(),
        Frame(Kind.JSON, b"[]").encode(),
        Frame(Kind.JSON, b"\xff").encode(),
    ],
)
def test_a_broken_frame_is_a_format_error(guest, answer):
    with pytest.raises(FormatError):
        connected(guest(answers=lambda _request: answer)).request(Op.STATUS)


@pytest.mark.parametrize("answer", [b"", b"J\0\0", json_frame({"ok": True})[:-1]])
def test_an_answer_that_breaks_off_is_the_hosts_failure(guest, answer):
    with pytest.raises(HostError) as caught:
        connected(guest(answers=lambda _request: answer)).request(Op.STATUS)
    assert not isinstance(caught.value, GuestError)


def test_data_follows_an_answer_until_its_end(guest):
    pieces = [b"a" * 70_000, b"", b"c"]
    data = json_frame({"ok": True}) + b"".join(Frame(Kind.DATA, piece).encode() for piece in pieces)
    end = Frame(Kind.END, b"").encode()
    channel = connected(guest(answers=lambda _request: data + end + b"more"))
    assert list(channel.stream(Op.LOGS, offset=0)) == pieces


@pytest.mark.parametrize(
    ("tail", "error"), [(b"", HostError), (json_frame({"ok": True}), FormatError), (b"Q\0\0\0\0", FormatError)]
)
def test_data_that_does_not_end_with_an_end_is_an_error(guest, tail, error):
    data = json_frame({"ok": True}) + Frame(Kind.DATA, b"x").encode()
    channel = connected(guest(answers=lambda _request: data + tail))
    with pytest.raises(error):
        list(channel.stream(Op.LOGS, offset=0))


def test_a_guest_that_hangs_is_noticed(guest):
    release = threading.Event()

    def hang(_request):
        release.wait(30)
        return b""

    channel = connected(guest(answers=hang))
    try:
        with pytest.raises(HostError, match="said nothing"):
            list(channel.stream(Op.LOGS, offset=0, silence_seconds=0.3))
    finally:
        release.set()


def test_nothing_is_asked_of_a_session_that_is_gone(guest):
    _, channel = guest()
    with pytest.raises(HostError):
        channel.request(Op.STATUS)
    made = guest()
    channel = connected(made)
    channel.close()
    channel.close()
    with pytest.raises(HostError):
        channel.request(Op.STATUS)


MARK = closed_line(NONCE)


class Pieces:
    """A socket that gives prepared pieces, never more at a time than was asked for."""

    def __init__(self, *pieces):
        self._pieces = [piece for piece in pieces if piece]

    def recv(self, size):
        if not self._pieces:
            return b""
        piece, rest = self._pieces[0][:size], self._pieces[0][size:]
        self._pieces[:1] = [rest] if rest else []
        return piece


def drained(stream, size):
    data = b""
    while piece := stream.recv(size):
        assert len(piece) <= size
        data += piece
    assert stream.recv(size) == b""
    return data


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_the_stream_ends_at_its_mark_wherever_it_is_cut(size):
    whole = b"abcde" + MARK + b"the next session"
    for first in range(len(whole) + 1):
        for second in range(first, len(whole) + 1, 9):
            stream = _SessionSocket(Pieces(whole[first:second], whole[second:]), whole[:first], MARK)
            data = drained(stream, size)
            # What was handed on before the mark was whole may hold its beginning; nothing behind it ever is.
            assert data.startswith(b"abcde")
            assert (b"abcde" + MARK).startswith(data)
            assert data != b"abcde" + MARK


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(1, 50))
def test_what_holds_no_mark_is_handed_on_unchanged(pieces, size):
    first, rest = b"".join(pieces[:1]), pieces[1:]
    assert drained(_SessionSocket(Pieces(*rest), first, MARK), size) == b"".join(pieces)


def test_another_sessions_mark_is_data():
    other = closed_line(b"o" * 32)
    assert drained(_SessionSocket(Pieces(other, b"x"), b"", MARK), 4096) == other + b"x"


def test_bytes_are_handed_on_before_more_arrive():
    ours, theirs = socket.socketpair()
    stream = _SessionSocket(ours, b"", MARK)
    ours.settimeout(5)
    for piece in (b"a", MARK[:-1], b"b"):
        theirs.sendall(piece)
        assert stream.recv(4096) == piece
    ours.close()
    theirs.close()
