# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os
import secrets
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cvmtool.data import spool
from cvmtool.data.spool import Spool


def test_what_memory_does_not_hold_is_on_the_disk_encrypted(tmp_path):
    kept = Spool(tmp_path)
    secret = b"what nobody may read " * 1000
    for _ in range(spool.IN_MEMORY // len(secret) + 2):
        kept.write(secret)
    assert list(tmp_path.iterdir()) == []
    on_disk = Path(f"/proc/self/fd/{kept._file.fileno()}")
    assert str(on_disk.readlink()).startswith(f"{tmp_path}/")
    written = on_disk.read_bytes()
    assert len(written) > spool.IN_MEMORY
    assert b"nobody" not in written
    assert len(set(written)) == 256
    data = b"".join(kept.read())
    assert data == secret * (len(data) // len(secret))
    assert len(data) == kept.size
    assert not on_disk.exists()


def test_two_spools_of_one_content_differ_on_the_disk(tmp_path):
    seen = set()
    for _ in range(2):
        kept = Spool(tmp_path)
        kept.write(bytes(spool.IN_MEMORY + 1))
        seen.add(os.pread(kept._file.fileno(), 64, 0))
        kept.close()
    assert len(seen) == 2


def test_what_was_never_read_is_let_go(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = Spool(tmp_path)
    kept.write(secrets.token_bytes(spool.IN_MEMORY + 1))
    kept.close()
    kept.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_comes_back_as_it_was_at_any_border(pieces):
    original = spool.IN_MEMORY
    spool.IN_MEMORY = 32
    try:
        kept = Spool(Path("/tmp"))
        for piece in pieces:
            kept.write(piece)
        assert b"".join(kept.read()) == b"".join(pieces)
    finally:
        spool.IN_MEMORY = original
