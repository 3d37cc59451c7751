# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError
from cvmtool.host.address import SshAddress, parse_remote, parse_sftp
from cvmtool.host.remote import SshAccess, connection_uri


@pytest.mark.parametrize("uri", ["qemu:///system", "qemu:///session", "qemu:///embed?root=/x", "qemu+unix:///system"])
def test_a_uri_without_a_host_is_this_machine(uri):
    assert parse_remote(uri) is None


@pytest.mark.parametrize(
    ("uri", "address", "transport", "session"),
    [
        ("qemu+ssh://h/system", SshAddress(user=None, host="h", port=22), "ssh", False),
        ("qemu+ssh://root@h.example:2222/session", SshAddress(user="root", host="h.example", port=2222), "ssh", True),
        ("qemu+libssh://u@[::1]/system", SshAddress(user="u", host="::1", port=22), "libssh", False),
        ("qemu+libssh2://u@h/system?socket=/run/x", SshAddress(user="u", host="h", port=22), "libssh2", False),
        ("qemu+tls://h/system", SshAddress(user=None, host="h", port=16514), "tls", False),
    ],
)
def test_a_remote_uri_is_read(uri, address, transport, session):
    remote = parse_remote(uri)
    assert (remote.address, remote.transport, remote.session) == (address, transport, session)
    assert remote.with_query() == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "lab",
        "ssh://h",
        "qemu+tcp://h/system",
        "qemu+ext://h/system",
        "qemu+ssh://h",
        "qemu+ssh://h/embed",
        "qemu+ssh://-oProxyCommand=x/system",
        "qemu+ssh://-o@h/system",
        "qemu+ssh://u@-h/system",
        "qemu+ssh://h:0/system",
        "qemu+ssh://h:65536/system",
        "qemu+ssh://h/system?no_verify=1",
        "qemu+ssh://h/system?socket=/x&no_verify=1",
        "qemu+ssh://h/system?command=/x",
        "qemu+ssh://h/system?keyfile=/x",
        "qemu+libssh://h/system?known_hosts=/x",
        "qemu+libssh://h/system?known_hosts_verify=ignore",
        "qemu+ssh://h/system?socket=/a b",
        "qemu+ssh://h/system\n",
        "xen+ssh://h/",
        "test+ssh://h/default",
    ],
)
def test_what_is_no_host_or_turns_a_check_off_is_refused(uri):
    with pytest.raises(ConfigError):
        parse_remote(uri)


@given(st.text(max_size=60))
def test_any_text_is_a_host_or_refused(text):
    for tried in (text, f"qemu+ssh://{text}/system", f"qemu+ssh://h/system?{text}"):
        with contextlib.suppress(ConfigError):
            remote = parse_remote(tried)
            assert remote is None or (not remote.address.host.startswith("-") and remote.uri.isprintable())


def test_where_files_go_is_read_or_refused():
    assert parse_sftp("sftp://u@h:2222") == SshAddress(user="u", host="h", port=2222)
    assert parse_sftp("sftp://h/") == SshAddress(user=None, host="h", port=22)
    for text in ("", "h", "scp://h", "sftp://h/path", "sftp://u:secret@h", "sftp://h:99999"):
        with pytest.raises(ConfigError):
            parse_sftp(text)


def test_a_host_is_known_as_openssh_writes_it():
    assert SshAddress(user="u", host="h", port=22).known_as == "h"
    assert SshAddress(user="u", host="h", port=2222).known_as == "[h]:2222"


def access(tmp_path, identity=None):
    address = SshAddress(user="u", host="h", port=22)
    return SshAccess(address=address, known_hosts=tmp_path / 'a "b" 100%', identity=identity)


def wrapped(uri, given):
    """Return the URI for libvirt and the program that stands for ssh."""
    texts = []
    result = connection_uri(
        parse_remote(uri), given, write_wrapper=lambda text: (texts.append(text), Path("/wrapper"))[1]
    )
    return result, "".join(texts)


def test_ssh_is_called_with_the_known_keys_alone(tmp_path):
    uri, program = wrapped("qemu+ssh://u@h/system?socket=/s", access(tmp_path, Path("/keys/it's")))
    assert uri == "qemu+ssh://u@h/system?socket=/s&command=/wrapper"
    for part in (
        "-F none",
        "StrictHostKeyChecking=yes",
        "BatchMode=yes",
        "GlobalKnownHostsFile=/dev/null",
        "UpdateHostKeys=no",
        "IdentitiesOnly=yes",
        "100%%",
        "'/keys/it'\"'\"'s'",
    ):
        assert part in program


def test_libssh_gets_the_same_keys(tmp_path):
    uri, program = wrapped("qemu+libssh://u@h/system", access(tmp_path, Path("/keys/id")))
    assert "known_hosts_verify=normal" in uri
    assert "keyfile=/keys/id" in uri
    assert "known_hosts=" + str(tmp_path) + "/a%20%22b%22%20100%25&" in uri
    assert program == ""


def test_tls_is_left_as_it_is():
    assert wrapped("qemu+tls://h/system?pkipath=/p", None) == ("qemu+tls://h/system?pkipath=/p", "")
