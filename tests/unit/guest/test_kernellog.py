# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os
import re

import pytest

from cvmtool.guest import kernellog
from cvmtool.guest.kernellog import KERNEL_LOG, read_log


def test_every_record_that_is_there_is_read(tmp_path, monkeypatch):
    """The device gives one record a read, says so when one was overwritten, and refuses to wait for the next."""
    (tmp_path / "kmsg").touch()
    given = iter([b"one", BrokenPipeError(), b"two", BlockingIOError()])

    def read(_file, size):
        assert size >= 8_192
        item = next(given)
        if isinstance(item, Exception):
            raise item
        return item

    monkeypatch.setattr(kernellog.os, "read", read)
    assert read_log(tmp_path / "kmsg") == [b"one", b"two"]


def test_the_log_of_this_machine():
    if not os.access(KERNEL_LOG, os.R_OK):
        with pytest.raises(PermissionError):
            read_log(KERNEL_LOG)
        return
    records = read_log(KERNEL_LOG)
    assert all(re.match(rb"[0-9]+,[0-9]+,[0-9]+,", record) for record in records)
    assert records


def test_a_log_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path / "kmsg")
