# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes between descriptors and a session: with paramiko on both sides, over a socket pair."""

import os
import secrets
import socket
import threading
from contextlib import suppress

import paramiko
import pytest

from cvmtool.errors import HostError
from cvmtool.host.terminal import Ends, Window, converse


class Guest(paramiko.ServerInterface):
    """A server that lets anybody in and keeps what was asked."""

    def __init__(self, serve):
        self.serve = serve
        self.asked = threading.Event()
        self.sizes = []

    def check_auth_none(self, username):
        return paramiko.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username):
        return "none"

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel, command):
        def work():
            self.asked.wait(30)  # the client has its answer
            self.serve(channel)

        threading.Thread(target=work, daemon=True).start()
        return True

    def check_channel_pty_request(self, channel, term, width, height, pixelwidth, pixelheight, modes):
        self.sizes.append((width, height))
        return True

    def check_channel_window_change_request(self, channel, width, height, pixelwidth, pixelheight):
        self.sizes.append((width, height))
        return True


@pytest.fixture
def start():
    opened = []

    def connect(serve):
        ours, theirs = socket.socketpair()
        guest = Guest(serve)
        server = paramiko.Transport(theirs)
        server.add_server_key(paramiko.ECDSAKey.generate())
        server.start_server(event=threading.Event(), server=guest)
        client = paramiko.Transport(ours)
        client.start_client()
        client.auth_none("owner")
        opened.extend([client, server])
        session = client.open_session()
        session.get_pty("xterm", 80, 24)
        session.exec_command("work")
        guest.asked.set()
        return guest, session

    yield connect
    for transport in opened:
        transport.close()


class Streams:
    """This side's standard streams: input from bytes, output into memory."""

    def __init__(self, data):
        self._read_input, self._write_input = os.pipe()
        self._read_output, self._write_output = os.pipe()
        self._read_errors, self._write_errors = os.pipe()
        self.ends = Ends(stdin=self._read_input, stdout=self._write_output, stderr=self._write_errors)
        self.output, self.errors = bytearray(), bytearray()
        self._threads = [
            threading.Thread(target=self._feed, args=(data,)),
            threading.Thread(target=self._take, args=(self._read_output, self.output)),
            threading.Thread(target=self._take, args=(self._read_errors, self.errors)),
        ]
        for thread in self._threads:
            thread.start()

    def _feed(self, data):
        with suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._write_input, data) :]
        os.close(self._write_input)

    def _take(self, descriptor, into):
        while data := os.read(descriptor, 65_536):
            into += data

    def end(self):
        os.close(self._read_input)
        os.close(self._write_output)
        os.close(self._write_errors)
        for thread in self._threads:
            thread.join(30)


def echo(channel):
    while data := channel.recv(10_000):
        channel.sendall(data)
    channel.sendall_stderr(b"that was all")
    channel.send_exit_status(7)
    channel.close()


def test_megabytes_go_both_ways_at_once(start):
    data = secrets.token_bytes(8 << 20)
    _, session = start(echo)
    streams = Streams(data)
    status = converse(session, streams.ends)
    streams.end()
    assert status == 7
    assert bytes(streams.output) == data
    assert bytes(streams.errors) == b"that was all"


def test_a_guest_that_ends_first_ends_the_session(start):
    def serve(channel):
        channel.sendall(b"done")
        channel.send_exit_status(0)
        channel.close()

    _, session = start(serve)
    waiting, _hold = os.pipe()  # a terminal at which nobody types
    streams = Streams(b"")
    ends = Ends(stdin=waiting, stdout=streams.ends.stdout, stderr=streams.ends.stderr)
    assert converse(session, ends) == 0
    streams.end()
    assert bytes(streams.output) == b"done"


def test_a_program_that_ends_without_reading_all_has_its_status(start):
    def serve(channel):
        channel.send_exit_status(2)
        channel.close()

    _, session = start(serve)
    streams = Streams(b"x" * (4 << 20))
    assert converse(session, streams.ends) == 2
    streams.end()


def test_a_session_that_is_cut_is_no_success(start):
    _, session = start(lambda channel: (channel.recv(1), channel.close()))
    streams = Streams(b"")
    with pytest.raises(HostError, match="without a status"):
        converse(session, streams.ends)
    streams.end()


def test_a_changed_window_is_told(start):
    told = [Window(term="xterm", columns=100, rows=40)]
    seen = threading.Event()

    def serve(channel):
        seen.wait(30)
        channel.send_exit_status(0)
        channel.close()

    def resized():
        if told:
            return told.pop()
        if (100, 40) in guest.sizes:
            seen.set()
        return None

    guest, session = start(serve)
    streams = Streams(b"")
    assert converse(session, streams.ends, resized=resized) == 0
    streams.end()
    assert guest.sizes == [(80, 24), (100, 40)]
