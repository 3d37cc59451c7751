# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import stat
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from cvmtool.formats.control import CLIENT_ADDRESS
from cvmtool.guest.keys import BootKeys, authorized_key, write_private


def test_host_key_file_is_what_openssh_reads(tmp_path):
    keys = BootKeys()
    path = tmp_path / "host_key"
    keys.write_host_key(path)
    assert load_ssh_private_key(path.read_bytes(), None).public_key().public_bytes_raw() == keys.ssh_host_key
    printed = subprocess.run(["ssh-keygen", "-y", "-f", str(path)], capture_output=True, check=True).stdout
    public = Ed25519PublicKey.from_public_bytes(keys.ssh_host_key)
    assert printed.split()[:2] == public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()


def test_host_key_file_is_for_its_owner_only(tmp_path):
    path = tmp_path / "host_key"
    BootKeys().write_host_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_boot_has_its_own_keys():
    one, other = BootKeys(), BootKeys()
    public = {one.ssh_host_key, one.hpke_key, one.receipt_key, other.ssh_host_key, other.hpke_key, other.receipt_key}
    assert len(public) == 6


def test_keys_do_not_print():
    assert repr(BootKeys()) == "<boot keys>"


def test_authorized_key_may_reach_the_control_service_only():
    key = Ed25519PublicKey.from_public_bytes(bytes(range(32)))
    options, kind, blob = authorized_key(bytes(range(32))).split()
    assert options == b'restrict,port-forwarding,permitopen="127.0.0.1:7010"'
    assert b"%b %b" % (kind, blob) == key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def test_a_client_s_key_may_reach_what_is_clients_and_nothing_else():
    options = authorized_key(bytes(32), address=CLIENT_ADDRESS).split()[0]
    assert options == b'restrict,port-forwarding,permitopen="127.0.0.1:7011"'


def test_write_private_replaces_and_sets_the_mode(tmp_path):
    path = tmp_path / "file"
    write_private(path, b"one")
    write_private(path, b"two", mode=0o644)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_write_private_does_not_follow_what_stands_in_the_way(tmp_path):
    (tmp_path / "file.new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "file", b"secret")
    assert not (tmp_path / "elsewhere").exists()
