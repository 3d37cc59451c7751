# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The control service: one connection, one request, one answer.

Zone: guest (measured).
Spec: docs/protocol.md section 5.

It listens on the loopback address only, where nothing but sshd's forwarding reaches it: the container has a network
namespace of its own. So whoever connects has logged in with the key that HOST_DATA commits to.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

from cvmtool.errors import FormatError
from cvmtool.formats.control import CONTROL_ADDRESS, ControlError, Op
from cvmtool.formats.evidence import MAX_CERT_TABLE
from cvmtool.formats.job import MAX_ARGUMENTS, MAX_MANIFEST
from cvmtool.formats.jobterms import MAX_GRACE, MAX_PORT
from cvmtool.formats.release import MAX_SECRETS
from cvmtool.formats.volume import epoch_from
from cvmtool.formats.wire import (
    MAX_FRAME,
    Frame,
    JsonObject,
    Kind,
    json_frame,
    members,
    natural,
    parse_base64,
    parse_canonical_json,
    typed,
)
from cvmtool.guest.frames import receive
from cvmtool.guest.life import Life
from cvmtool.guest.reach import MOST_AT_ONCE
from cvmtool.guest.refusal import RefusedError

_MOST_CONNECTIONS = 32 + MOST_AT_ONCE  # so many requests, whatever else goes on
_REQUEST_SECONDS = 60.0  # to send one request
_SEND_SECONDS = 3_600.0  # an owner that stops reading a stream for longer has gone

Talk = Callable[[socket.socket], None]
"""Answers the request itself, and then takes the connection until it is over."""
Answer = tuple[JsonObject, Iterator[bytes] | None]
"""What goes into the answer, and the data that follows it."""


class ControlService:
    """Serves an address until the guest ends; `poweroff` is called when the owner asks for that.

    The control address is the owner's. At that of clients only some operations are done, and are unknown otherwise.
    """

    def __init__(
        self,
        life: Life,
        poweroff: Callable[[], None],
        *,
        address: tuple[str, int] = CONTROL_ADDRESS,
        ops: frozenset[Op] = frozenset(Op),
    ) -> None:
        self._life = life
        self._poweroff = poweroff
        self._ops = ops
        self._places = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._listener = socket.create_server(address, backlog=_MOST_CONNECTIONS)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._listener.getsockname()
        return str(host), int(port)

    def start(self) -> None:
        """Serve, in a thread of its own."""
        threading.Thread(target=self._serve, name="control", daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self._places.acquire()
            threading.Thread(target=self._converse, args=(connection,), name="request", daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_REQUEST_SECONDS)
                ending = self._answer(connection)
                if ending:
                    # The answer has a way through sshd and the port to go; the owner closes when it has it.
                    connection.recv(1)
                    self._poweroff()
        except OSError:
            return  # the owner has gone; the job goes on
        finally:
            self._places.release()

    def _answer(self, connection: socket.socket) -> bool:
        """Answer one request; whether it was the wish to end."""
        op = None
        try:
            op, request = _parse_request(receive(connection), self._ops)
            if op in {Op.EXEC, Op.TUNNEL}:
                self._talk(op, request)(connection)
                return False
            answer, data = self._do(op, request)
        except FormatError as error:
            connection.sendall(_refusal(ControlError.REQUEST, error.message))
            return False
        except RefusedError as refused:
            connection.sendall(_refusal(refused.error, refused.detail or "", pack=refused.pack, volume=refused.volume))
            return False
        connection.settimeout(_SEND_SECONDS)
        connection.sendall(json_frame({"ok": True, **answer}))
        if data is not None:
            for piece in data:
                connection.sendall(Frame(Kind.DATA, piece).encode())
            connection.sendall(Frame(Kind.END, b"").encode())
        return op is Op.POWEROFF

    def _do(self, op: Op, request: JsonObject) -> Answer:
        """Do what was asked.

        Raises:
            FormatError: the request does not have the operation's fields.
            RefusedError: it cannot be done, or not now.
        """
        what = f"request {op.value}"
        fields = {
            Op.CONFIGURE: {"manifest", "certificates"},
            Op.RELEASE: {"sealed"},
            Op.LOGS: {"offset"},
            Op.FETCH: {"name", "offset"},
            Op.COMMIT: {"epochs"},
            Op.STOP: {"grace_seconds"},
        }
        members(request, what=what, required={"op"} | fields.get(op, set()))
        match op:
            case Op.STATUS:
                return self._life.status(), None
            case Op.CONFIGURE:
                manifest = parse_base64(request["manifest"], what=f"{what}.manifest", limit=MAX_MANIFEST)
                table = parse_base64(request["certificates"], what=f"{what}.certificates", limit=MAX_CERT_TABLE)
                self._life.configure(manifest, certificates=table)
                return {}, None
            case Op.GPU_EVIDENCE:
                return self._life.gpu_evidence(), None
            case Op.RELEASE:
                sealed = parse_base64(request["sealed"], what=f"{what}.sealed", limit=MAX_SECRETS)
                return {"timings": self._life.release(sealed)}, None
            case Op.RUN:
                self._life.job.run()
                return {}, None
            case Op.LOGS:
                return {}, self._life.job.follow_log(natural(request, "offset", what=what))
            case Op.RESULTS:
                return self._life.job.results(), None
            case Op.FETCH:
                name = typed(request, "name", str, what=what)
                return {}, self._life.job.fetch(name, natural(request, "offset", what=what))
            case Op.COMMIT:
                named = typed(request, "epochs", dict, what=what)
                self._life.role.commit({name: epoch_from(epoch) for name, epoch in named.items()})
                return {}, None
            case Op.STOP:
                self._life.job.stop(natural(request, "grace_seconds", what=what, most=MAX_GRACE))
                return {}, None
            case Op.USAGE:
                return self._life.job.usage(), None
            case _:  # poweroff: the caller's part; what talks is `_talk`'s
                return {}, None

    def _talk(self, op: Op, request: JsonObject) -> Talk:
        what = f"request {op.value}"
        if op is Op.TUNNEL:
            members(request, what=what, required={"op", "port"})
            return partial(self._life.job.tunnel, natural(request, "port", what=what, least=1, most=MAX_PORT))
        members(request, what=what, required={"op", "args"})
        args = typed(request, "args", list, what=what)
        if not 1 <= len(args) <= MAX_ARGUMENTS or not all(isinstance(item, str) and "\0" not in item for item in args):
            raise FormatError(f"{what}.args is no list of 1 to {MAX_ARGUMENTS} strings without NUL")
        return partial(self._life.job.command, tuple(args))


def _parse_request(frame: Frame, ops: frozenset[Op]) -> tuple[Op, JsonObject]:
    """Read a request frame for one of `ops` (from somebody who has logged in, else unverified).

    Raises:
        FormatError: another kind of frame, not an object, or an unknown operation.
    """
    if frame.kind is not Kind.JSON:
        raise FormatError(f"request is a frame of kind {frame.kind.value!r}; {Kind.JSON.value!r} is required")
    request = parse_canonical_json(frame.payload, what="request", limit=MAX_FRAME)
    name = request.get("op")
    if name not in tuple(ops):
        raise FormatError(f"request.op is {str(name)[:32]!r}; one of {', '.join(sorted(ops))} is required")
    return Op(str(name)), request


def _refusal(error: ControlError, detail: str, **names: str | None) -> bytes:
    named = {kind: name for kind, name in names.items() if name is not None}
    return json_frame({"ok": False, "error": error.value, "detail": detail, **named})
