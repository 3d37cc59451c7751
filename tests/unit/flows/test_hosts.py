# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cvmtool.config import HostSettings, load_settings
from cvmtool.errors import ConfigError
from cvmtool.flows.hosts import Host, open_host, ssh_access
from cvmtool.host.address import SshAddress, parse_remote


def access(uri, **settings):
    target = HostSettings(name="lab", uri=uri, **settings)
    return ssh_access(target, parse_remote(uri), load_settings())


def test_files_go_where_libvirt_goes():
    found = access("qemu+ssh://u@h:2222/system", identity=Path("/id"))
    assert (found.address, found.identity) == (SshAddress(user="u", host="h", port=2222), Path("/id"))
    assert found.known_hosts == load_settings().known_hosts
    assert access("qemu+ssh://u@h/system", known_hosts=Path("/k")).known_hosts == Path("/k")


def test_tls_carries_no_files():
    with pytest.raises(ConfigError) as refusal:
        access("qemu+tls://h/system")
    assert "files = " in refusal.value.hint
    found = access("qemu+tls://h/system", files="sftp://u@other")
    assert found.address == SshAddress(user="u", host="other", port=22)


@pytest.mark.parametrize("host", ["qemu+tls://h/system", "qemu+ssh://h/system?no_verify=1", "nobody"])
def test_a_host_that_cannot_be_used_is_refused_before_anything_is_opened(host):
    with pytest.raises(ConfigError):
        open_host(replace(load_settings(), host=host))


@pytest.mark.parametrize(
    ("uri", "root", "user"),
    [
        ("qemu:///system", True, True),
        ("qemu+ssh://h/system?socket=/run/session", True, True),
        ("qemu+ssh://root@h/session", False, False),
        ("qemu:///session", False, False),
        ("qemu:///embed?root=/tmp/system", True, False),
    ],
)
def test_who_gives_files_to_qemus_user(monkeypatch, uri, root, user):
    host = Host(name="h", uri=uri, hypervisor=None, files=None, machines="/m", store=None, local=True)
    for uid, expected in ((0, root), (1000, user)):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert host.privileged is expected
