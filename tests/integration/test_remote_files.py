# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A host's files over SSH do what the local ones do, from a server whose key is known, and from no other."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cvmtool.errors import HostError
from cvmtool.host.address import SshAddress
from cvmtool.host.remote import RemoteFiles, SshAccess, fetch_host_key, fingerprint, known_hosts_line
from cvmtool.host.store import Artefact, Store
from tests.fakes.remote_host import RemoteHost, lacking, remote_host
from tests.unit.host.test_files import (  # noqa: F401 - the same contract, held by the fixture `files` below
    test_a_tree_goes_and_what_its_links_name_stays,
    test_directories_are_passable_whatever_the_umask,
    test_links_and_names,
    test_reading_is_bounded,
    test_sending_goes_on_where_it_stopped,
    test_sizes_and_entries,
    test_what_is_written_can_be_read_by_everybody_and_replaces,
    test_what_the_host_cannot_do_is_its_failure,
)


@pytest.fixture(scope="module")
def server() -> Iterator[RemoteHost]:
    if reason := lacking(libvirt=False):
        pytest.skip(reason)
    with remote_host(libvirt=False) as host:
        yield host


@pytest.fixture(scope="module")
def access(server: RemoteHost) -> SshAccess:
    address = SshAddress(user=server.user, host="127.0.0.1", port=server.port)
    return SshAccess(address=address, known_hosts=server.known_hosts, identity=server.identity)


@pytest.fixture
def files(access: SshAccess) -> Iterator[RemoteFiles]:
    opened = RemoteFiles(access)
    yield opened
    opened.close()


def test_the_key_that_a_host_shows_is_openssh_s_own_words(server: RemoteHost, access: SshAccess) -> None:
    kind, key = fetch_host_key(access.address)
    assert fingerprint(key) == server.fingerprint()
    assert known_hosts_line(access.address, kind, key) == server.known_hosts.read_text()


def test_an_unknown_host_is_refused_with_its_fingerprint(server: RemoteHost, access: SshAccess, tmp_path: Path) -> None:
    for known in (tmp_path / "missing", tmp_path / "empty"):
        known.touch() if known.name == "empty" else None
        with pytest.raises(HostError) as refusal:
            RemoteFiles(replace(access, known_hosts=known))
        assert server.fingerprint() in refusal.value.message
        assert server.fingerprint() in str(refusal.value.hint)
        assert not known.exists() or known.read_text() == ""


def test_a_changed_host_is_refused_with_both_fingerprints(
    server: RemoteHost, access: SshAccess, tmp_path: Path
) -> None:
    other = server.identity.with_suffix(".pub").read_text().split()[1]
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} ssh-ed25519 {other}\n")
    with pytest.raises(HostError) as refusal:
        RemoteFiles(replace(access, known_hosts=known))
    assert refusal.value.message.count("SHA256:") == 2
    assert server.fingerprint() in refusal.value.message


def test_an_identity_that_is_not_accepted_is_named(server: RemoteHost, access: SshAccess) -> None:
    with pytest.raises(HostError, match="accepts no key of ours"):
        RemoteFiles(replace(access, identity=server.folder / "host_key"))


def test_a_port_where_nobody_listens_is_the_hosts_failure(access: SshAccess) -> None:
    with pytest.raises(HostError, match="does not answer"):
        RemoteFiles(replace(access, address=replace(access.address, port=1)))


def test_names_are_no_commands(files: RemoteFiles, tmp_path: Path) -> None:
    odd = tmp_path / "a '$(touch x)' \"; touch y; #"
    odd.mkdir()
    (odd / "file").write_bytes(b"abc")
    assert files.digest(str(odd / "file")) == hashlib.sha256(b"abc").hexdigest()
    assert [entry.name for entry in files.entries(str(odd))] == ["file"]
    files.remove_tree(str(odd))
    assert list(tmp_path.iterdir()) == []


def test_a_host_without_openssl_hashes_too(files: RemoteFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    ask, asked = files._ask, []

    def without(words: list[str], action: str, **options: float) -> tuple[int, bytes, bytes]:
        asked.append(words[0])
        return ask(["no-" + words[0], *words[1:]] if words[0] == "openssl" else words, action, **options)

    monkeypatch.setattr(files, "_ask", without)
    assert files.digest(str(tmp_path / "file")) == hashlib.sha256(b"abc").hexdigest()
    assert asked == ["openssl", "sha256sum"]


def test_what_an_account_may_not_do_is_the_hosts_failure(files: RemoteFiles) -> None:
    with pytest.raises(HostError):
        files.make_dir("/proc/cvmtool/x")
    with pytest.raises(HostError):
        files.read("/proc/self/nothing", 1)


def test_a_full_disk_is_said(files: RemoteFiles, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(1 << 20))
    with pytest.raises(HostError):
        files.append(source, "/dev/full", start=0, progress=lambda _done, _total: None)


def test_a_cut_upload_goes_on_where_it_stopped(server: RemoteHost, access: SshAccess, tmp_path: Path) -> None:
    """The connection is killed under a running upload; the next one sends what had not arrived, and no more."""
    source = tmp_path / "source"
    data = bytes(range(256)) * (192 << 12)  # 192 MiB
    source.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    artefact = Artefact(path=source, sha256=digest, size=len(data))
    machines, locks = tmp_path / "machines", tmp_path / "locks"
    locks.mkdir()
    (machines / "m").mkdir(parents=True)
    target = str(machines / "m" / "disk")
    part = machines / ".store/sha256" / f"{digest}.{'0' * 12}.part"

    def cut() -> None:
        while not part.exists() or part.stat().st_size < len(data) // 3:
            time.sleep(0.001)
        server.cut()

    first = RemoteFiles(access)
    killer = threading.Thread(target=cut)
    killer.start()
    with pytest.raises(HostError):
        Store(first, str(machines), uploader="0" * 12, locks=locks).place(artefact, target, lambda _d, _t: None)
    killer.join()
    first.close()
    arrived = part.stat().st_size
    assert len(data) // 3 <= arrived < len(data)
    told: list[int] = []
    second = RemoteFiles(access)
    store = Store(second, str(machines), uploader="0" * 12, locks=locks)
    store.place(artefact, target, lambda done, _total: told.append(done))
    second.close()
    assert min(told) > arrived
    assert Path(target).read_bytes() == data
    assert sorted(path.name for path in part.parent.iterdir()) == [digest]
