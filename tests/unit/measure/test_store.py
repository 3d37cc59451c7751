# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from cvmtool.errors import ConfigError, FormatError
from cvmtool.measure import store as module
from cvmtool.measure.hashes import kernel_hashes
from cvmtool.measure.launch import firmware_seed
from cvmtool.measure.store import MeasureStore
from tests.unit.measure.test_ovmf import firmware


def test_it_gives_what_is_worked_out_without_it():
    store, image = MeasureStore(), firmware()
    for _ in range(2):
        assert store.seed(image) == firmware_seed(image)
        assert store.kernel_hashes(b"k", b"i", "quiet") == kernel_hashes(b"k", b"i", "quiet")
    assert store.kernel_hashes(b"k", b"j", "loud") == kernel_hashes(b"k", b"j", "loud")


def test_the_work_is_done_once_for_equal_contents(monkeypatch):
    asked = []

    def counted(image):
        asked.append(image)
        return firmware_seed(image)

    monkeypatch.setattr(module, "firmware_seed", counted)
    store = MeasureStore()
    first = store.seed(firmware())
    assert store.seed(bytes(bytearray(firmware()))) is first
    assert store.seed(firmware(pages=3)) != first
    assert len(asked) == 2


def test_what_was_used_least_recently_makes_room(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "firmware_seed", lambda image: asked.append(len(image)) or firmware_seed(image))
    images = [firmware(pages=pages) for pages in (2, 3, 4)]
    store = MeasureStore(limit=sum(map(len, images)) - 1)
    store.seed(images[0])
    store.seed(images[1])
    store.seed(images[0])
    store.seed(images[2])
    asked.clear()
    store.seed(images[0])
    assert asked == []
    store.seed(images[1])
    assert asked == [3 * 4096]


def test_what_just_fits_is_kept(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "firmware_seed", lambda image: asked.append(len(image)) or firmware_seed(image))
    store = MeasureStore(limit=len(firmware()))
    for _ in range(2):
        store.seed(firmware())
    assert len(asked) == 1


def test_what_is_too_large_is_worked_out_and_not_kept():
    store = MeasureStore(limit=10)
    assert store.seed(firmware()) == firmware_seed(firmware())
    assert store.seed(firmware()) == firmware_seed(firmware())


def test_errors_are_those_of_the_work_and_not_remembered():
    store = MeasureStore()
    for _ in range(2):
        with pytest.raises(FormatError):
            store.seed(b"no firmware")
    with pytest.raises(ConfigError):
        store.kernel_hashes(b"", b"", "\0")
