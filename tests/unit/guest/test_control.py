# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvmtool.formats.control import CLIENT_OPS, ControlError, Op
from cvmtool.formats.evidence import MAX_CERT_TABLE
from cvmtool.formats.volume import Epoch
from cvmtool.formats.wire import MAX_FRAME, Frame, Kind, json_frame, read_frame, to_base64
from cvmtool.guest.control import ControlService
from cvmtool.guest.refusal import RefusedError


class FakeLife:
    """A life whose job, and whose role, it is itself."""

    def __init__(self):
        self.did = []
        self.job = self.role = self

    def status(self):
        return {"stage": "waiting", "exit_code": None}

    def configure(self, data, *, certificates):
        self.did.append(("configure", data, certificates))

    def release(self, sealed):
        raise RefusedError(ControlError.PACK_KEY, "wrong", pack="tools")

    def commit(self, epochs):
        self.did.append(("commit", epochs))
        if "gone" in epochs:
            raise RefusedError(ControlError.VOLUME_INTEGRITY, "no", volume="gone")

    def run(self):
        self.did.append(("run",))

    def stop(self, grace_seconds):
        self.did.append(("stop", grace_seconds))

    def results(self):
        raise RefusedError(ControlError.ORDER, "not yet")

    def follow_log(self, offset):
        return iter([b"one", b"two"][offset:])

    def tunnel(self, port, owner):
        if port == 1:
            raise RefusedError(ControlError.ACCESS, "not named")
        owner.sendall(json_frame({"ok": True, "port": port}) + Frame(Kind.DATA, b"inside").encode())

    def command(self, args, owner):
        owner.sendall(json_frame({"ok": True, "args": list(args)}))

    def fetch(self, name, offset):
        return iter([name.encode(), b"x" * MAX_FRAME])


@pytest.fixture(scope="module")
def life():
    return FakeLife()


@pytest.fixture(scope="module")
def service(life):
    off = threading.Event()
    service = ControlService(life, off.set, address=("127.0.0.1", 0))
    service.start()
    service.off = off
    return service


def exchange(service, data):
    """Send bytes; return the frames that come until the service closes."""
    with socket.create_connection(service.address, timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        file = connection.makefile("rb")
        frames = []
        while file.peek(1):
            frames.append(read_frame(file.read))
        return frames


def ask(service, **request):
    first, *rest = exchange(service, json_frame(request))
    return json.loads(first.payload), rest


def test_status(service):
    assert ask(service, op="status") == ({"ok": True, "stage": "waiting", "exit_code": None}, [])


def test_configure_decodes(service, life):
    request = {"op": "configure", "manifest": to_base64(b"{}"), "certificates": to_base64(b"table")}
    assert ask(service, **request)[0] == {"ok": True}
    assert life.did[-1] == ("configure", b"{}", b"table")


def test_more_certificates_than_a_table_holds_are_refused(service):
    request = {"op": "configure", "manifest": to_base64(b"{}"), "certificates": to_base64(bytes(MAX_CERT_TABLE + 1))}
    assert ask(service, **request)[0]["error"] == "request"


def test_data_follows_and_ends(service):
    answer, frames = ask(service, op="logs", offset=0)
    assert answer == {"ok": True}
    assert frames == [Frame(Kind.DATA, b"one"), Frame(Kind.DATA, b"two"), Frame(Kind.END, b"")]


def test_offset_is_passed_on(service):
    assert ask(service, op="logs", offset=1)[1] == [Frame(Kind.DATA, b"two"), Frame(Kind.END, b"")]


def test_fetch(service):
    _, frames = ask(service, op="fetch", name="m.json", offset=0)
    assert [len(frame.payload) for frame in frames] == [6, MAX_FRAME, 0]


def test_commit(service, life):
    epoch = Epoch(counter=3, mark="0b" * 32)
    assert ask(service, op="commit", epochs={"data": epoch.to_json()})[0] == {"ok": True}
    assert life.did[-1] == ("commit", {"data": epoch})
    assert ask(service, op="stop", grace_seconds=30)[0] == {"ok": True}
    assert life.did[-1] == ("stop", 30)
    assert ask(service, op="commit", epochs={"gone": epoch.to_json()})[0] == {
        "ok": False,
        "error": "volume-integrity",
        "detail": "no",
        "volume": "gone",
    }


def test_refusal_is_words_and_the_pack_s_name(service):
    assert ask(service, op="release", sealed="")[0] == {
        "ok": False,
        "error": "pack-key",
        "detail": "wrong",
        "pack": "tools",
    }
    assert ask(service, op="results")[0] == {"ok": False, "error": "order", "detail": "not yet"}


def test_what_talks_answers_for_itself(service):
    assert ask(service, op="tunnel", port=8000) == ({"ok": True, "port": 8000}, [Frame(Kind.DATA, b"inside")])
    assert ask(service, op="exec", args=["id", ""]) == ({"ok": True, "args": ["id", ""]}, [])


def test_what_talks_is_refused_like_anything_else(service):
    assert ask(service, op="tunnel", port=1)[0] == {"ok": False, "error": "access", "detail": "not named"}


@pytest.fixture(scope="module")
def clients(life):
    service = ControlService(life, pytest.fail, address=("127.0.0.1", 0), ops=CLIENT_OPS)
    service.start()
    return service


FIELDS = {
    Op.CONFIGURE: {"manifest": to_base64(b"{}"), "certificates": ""},
    Op.RELEASE: {"sealed": ""},
    Op.LOGS: {"offset": 0},
    Op.FETCH: {"name": "m.json", "offset": 0},
    Op.COMMIT: {"epochs": {}},
    Op.STOP: {"grace_seconds": 0},
    Op.EXEC: {"args": ["id"]},
}


@pytest.mark.parametrize("op", sorted(set(Op) - CLIENT_OPS))
def test_clients_get_nothing_but_status_and_tunnels(clients, life, op):
    did = list(life.did)
    answer, frames = ask(clients, op=op.value, **FIELDS.get(op, {}))
    assert (answer["error"], frames, life.did) == ("request", [], did)
    assert "status, tunnel is required" in answer["detail"]


def test_what_clients_do_get(clients):
    assert ask(clients, op="status")[0]["stage"] == "waiting"
    assert ask(clients, op="tunnel", port=8000)[0] == {"ok": True, "port": 8000}


BAD = {
    "port of another type": json_frame({"op": "tunnel", "port": "22"}),
    "no port": json_frame({"op": "tunnel"}),
    "port 0": json_frame({"op": "tunnel", "port": 0}),
    "port too high": json_frame({"op": "tunnel", "port": 65_536}),
    "no command": json_frame({"op": "exec", "args": []}),
    "command of another type": json_frame({"op": "exec", "args": "id"}),
    "word of another type": json_frame({"op": "exec", "args": ["id", 1]}),
    "word with NUL": json_frame({"op": "exec", "args": ["id\0"]}),
    "unknown operation": json_frame({"op": "shell"}),
    "no operation": json_frame({}),
    "unknown key": json_frame({"op": "status", "x": 1}),
    "missing key": json_frame({"op": "logs"}),
    "negative offset": json_frame({"op": "logs", "offset": -1}),
    "offset of another type": json_frame({"op": "logs", "offset": True}),
    "name of another type": json_frame({"op": "fetch", "name": 1, "offset": 0}),
    "not base64": json_frame({"op": "configure", "manifest": "*", "certificates": ""}),
    "no certificates": json_frame({"op": "configure", "manifest": ""}),
    "no grace": json_frame({"op": "stop"}),
    "too much grace": json_frame({"op": "stop", "grace_seconds": 3601}),
    "no epochs": json_frame({"op": "commit"}),
    "epochs of another type": json_frame({"op": "commit", "epochs": []}),
    "no epoch": json_frame({"op": "commit", "epochs": {"data": {"counter": 1}}}),
    "list": b"J\0\0\0\2[]",
    "not canonical": b'J\0\0\0\x10{"op" :"status"}',
    "data frame": Frame(Kind.DATA, b"x").encode(),
    "unknown frame": b"X\0\0\0\0",
    "huge frame": b"J\xff\xff\xff\xff",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_what_is_no_request(service, data):
    (frame,) = exchange(service, data)
    answer = json.loads(frame.payload)
    assert (answer["ok"], answer["error"]) == (False, "request")


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_bytes_get_an_answer_or_none(service, data):
    try:
        frames = exchange(service, data)
    except OSError:
        frames = []  # it closed before it had read everything
    for frame in frames:
        assert json.loads(frame.payload)["error"] == "request"
    assert ask(service, op="status")[0]["ok"] is True


def test_service_outlives_those_who_hang_up(service):
    for _ in range(100):
        socket.create_connection(service.address, timeout=20).close()
    assert ask(service, op="status")[0]["ok"] is True


def test_poweroff_answers_first(service):
    assert not service.off.is_set()
    with socket.create_connection(service.address, timeout=20) as connection:
        connection.sendall(json_frame({"op": "poweroff"}))
        assert json.loads(read_frame(connection.makefile("rb").read).payload) == {"ok": True}
        assert not service.off.is_set()
    assert service.off.wait(20)
