# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from cvmtool.errors import HostError
from cvmtool.host.files import LocalFiles
from cvmtool.host.store import Artefact, Store

DATA = bytes(range(256)) * 4096


class Files(LocalFiles):
    """Counts what is sent, cuts a connection after some bytes, and damages what arrives."""

    def __init__(self):
        self.sent, self.cut_at, self.damage = 0, None, False

    def append(self, source, path, *, start, progress):
        if self.cut_at is not None:
            with Path(path).open("r+b" if start else "wb") as file:
                file.seek(start)
                file.write(source.read_bytes()[start : self.cut_at])
            self.sent += self.cut_at - start
            self.cut_at = None
            raise HostError("the connection is gone")
        super().append(source, path, start=start, progress=progress)
        self.sent += source.stat().st_size - start
        if self.damage:
            with Path(path).open("r+b") as file:
                file.write(b"!")


@pytest.fixture
def files():
    return Files()


@pytest.fixture
def store(files, tmp_path):
    (tmp_path / "locks").mkdir()
    for name in ("a", "b"):
        (tmp_path / "machines" / name).mkdir(parents=True)
    return new_store(files, tmp_path)


def new_store(files, tmp_path, uploader="0" * 12):
    return Store(files, str(tmp_path / "machines"), uploader=uploader, locks=tmp_path / "locks")


@pytest.fixture
def artefact(tmp_path):
    return made(tmp_path, DATA)


def made(tmp_path, data):
    digest = hashlib.sha256(data).hexdigest()
    path = tmp_path / f"source-{digest[:8]}"
    path.write_bytes(data)
    return Artefact(path=path, sha256=digest, size=len(data))


def objects(tmp_path):
    return sorted(path.name for path in (tmp_path / "machines/.store/sha256").iterdir())


def target(tmp_path, machine="a", name="disk"):
    return str(tmp_path / "machines" / machine / name)


def nothing(_done, _total):
    pass


def test_an_object_is_sent_once_and_every_machine_has_it(store, files, artefact, tmp_path):
    told = []
    assert store.place(artefact, target(tmp_path, "a"), lambda done, total: told.append((done, total))) is True
    assert store.place(artefact, target(tmp_path, "b"), nothing) is False
    assert files.sent == artefact.size
    assert told[-1] == (artefact.size, artefact.size)
    first, second = (Path(target(tmp_path, machine)) for machine in "ab")
    assert first.read_bytes() == DATA
    assert first.stat().st_ino == second.stat().st_ino
    assert first.stat().st_nlink == 3
    assert objects(tmp_path) == [artefact.sha256]
    assert list((tmp_path / "locks").iterdir()) == []


def test_an_upload_that_was_cut_goes_on_where_it_stopped(store, files, artefact, tmp_path):
    files.cut_at = 700_000
    with pytest.raises(HostError):
        store.place(artefact, target(tmp_path), nothing)
    told = []
    store.place(artefact, target(tmp_path), lambda done, total: told.append(done))
    assert files.sent == artefact.size
    assert min(told) > 700_000
    assert Path(target(tmp_path)).read_bytes() == DATA


def test_what_arrived_before_the_cut_is_checked(store, files, artefact, tmp_path):
    files.cut_at = 700_000
    with pytest.raises(HostError):
        store.place(artefact, target(tmp_path), nothing)
    (part,) = (tmp_path / "machines/.store/sha256").iterdir()
    with part.open("r+b") as file:
        file.write(b"!")
    store.place(artefact, target(tmp_path), nothing)
    assert files.sent == 700_000 + artefact.size
    assert Path(target(tmp_path)).read_bytes() == DATA


def test_a_part_that_is_too_long_is_no_beginning(store, artefact, tmp_path):
    folder = tmp_path / "machines/.store/sha256"
    folder.mkdir(parents=True)
    (folder / f"{artefact.sha256}.{'0' * 12}.part").write_bytes(DATA + b"more")
    store.place(artefact, target(tmp_path), nothing)
    assert Path(target(tmp_path)).read_bytes() == DATA


def test_another_uploaders_part_is_not_written_to(store, files, artefact, tmp_path):
    folder = tmp_path / "machines/.store/sha256"
    folder.mkdir(parents=True)
    other = folder / f"{artefact.sha256}.{'f' * 12}.part"
    other.write_bytes(b"theirs")
    store.place(artefact, target(tmp_path), nothing)
    assert other.read_bytes() == b"theirs"


def test_what_arrives_damaged_is_no_object(store, files, artefact, tmp_path):
    files.damage = True
    with pytest.raises(HostError, match=artefact.sha256):
        store.place(artefact, target(tmp_path), nothing)
    assert objects(tmp_path) == []
    files.damage = False
    store.place(artefact, target(tmp_path), nothing)


def test_a_short_object_is_replaced_and_its_user_keeps_what_it_had(store, artefact, tmp_path):
    store.place(artefact, target(tmp_path, "a"), nothing)
    os.truncate(target(tmp_path, "a"), 5)
    assert store.place(artefact, target(tmp_path, "b"), nothing) is True
    assert (Path(target(tmp_path, "a")).stat().st_size, Path(target(tmp_path, "b")).read_bytes()) == (5, DATA)


def test_an_object_that_this_account_may_not_link_is_sent_again(store, files, artefact, tmp_path):
    """Linux lets no ordinary user link a file of another's (fs.protected_hardlinks); libvirt changes owners at times."""
    store.place(artefact, target(tmp_path, "a"), nothing)
    link, refused = files.link, []

    def protected(path, name):
        if path.endswith(artefact.sha256) and len(refused) < 2:
            refused.append(path)
            return False
        return link(path, name)

    files.link = protected
    assert store.place(artefact, target(tmp_path, "b"), nothing) is True
    assert Path(target(tmp_path, "b")).read_bytes() == DATA


def test_two_that_start_at_once_send_once(store, files, artefact, tmp_path):
    started = threading.Event()
    append = files.append

    def slow(*arguments, **named):
        started.set()
        time.sleep(0.2)
        append(*arguments, **named)

    files.append = slow
    other = threading.Thread(target=store.place, args=(artefact, target(tmp_path, "a"), nothing))
    other.start()
    started.wait(10)
    assert new_store(files, tmp_path).place(artefact, target(tmp_path, "b"), nothing) is False
    other.join()
    assert files.sent == artefact.size
    assert list((tmp_path / "locks").iterdir()) == []


def collected(store, **options):
    return {(item.name[:4], item.why) for item in store.collect(**options)}


def test_what_no_machine_uses_is_collected(store, artefact, tmp_path):
    other = made(tmp_path, b"other")
    store.place(artefact, target(tmp_path, "a"), nothing)
    store.place(other, target(tmp_path, "a", "two"), nothing)
    assert collected(store) == set()
    Path(target(tmp_path, "a", "two")).unlink()
    expected = {(other.sha256[:4], "no machine uses it")}
    assert collected(store, dry_run=True) == expected
    assert len(objects(tmp_path)) == 2
    assert collected(store) == expected
    assert objects(tmp_path) == [artefact.sha256]


def test_damage_is_collected_when_it_is_looked_for_and_the_next_start_sends_anew(store, files, artefact, tmp_path):
    store.place(artefact, target(tmp_path, "a"), nothing)
    with Path(target(tmp_path, "a")).open("r+b") as file:
        file.write(b"!")
    assert collected(store) == set()
    assert collected(store, verify=True) == {(artefact.sha256[:4], "damaged")}
    assert store.place(artefact, target(tmp_path, "b"), nothing) is True
    assert Path(target(tmp_path, "b")).read_bytes() == DATA


def test_uploads_are_given_up_after_a_day_and_strange_files_are_left_alone(store, tmp_path):
    folder = tmp_path / "machines/.store/sha256"
    folder.mkdir(parents=True)
    names = [f"{'a' * 64}.{'0' * 12}.part", f"{'b' * 64}.{'0' * 12}.part", "README"]
    for name in names:
        (folder / name).write_bytes(b"x")
    long_ago = time.time() - 100_000
    os.utime(folder / names[0], (long_ago, long_ago))
    os.utime(folder / "README", (long_ago, long_ago))
    assert collected(store) == {("aaaa", "an upload that was given up")}
    assert objects(tmp_path) == sorted(names[1:])


def test_a_store_that_is_not_there_is_empty(store):
    assert collected(store, verify=True) == set()
