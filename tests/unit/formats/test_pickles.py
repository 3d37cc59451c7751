# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import collections
import contextlib
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from cvmtool.errors import FormatError
from cvmtool.formats.pickles import find_pickle

CALLS = collections.OrderedDict(a=1)  # a pickle of it names a class and calls it


def zipped(name, data=b"x", method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("first.txt", b"first")
        archive.writestr(name, data)
    return file.getvalue()


def tarred(name):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def unmarked(tar):
    """The tar as it was written before POSIX."""
    head = bytearray(tar[:257] + bytes(8) + tar[265:512])
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + tar[512:]


def saved(value):
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


def described(types, version=1):
    """An array of NumPy's whose header says what its elements are in somebody's own words."""
    header = f"{{'descr': {types}, 'fortran_order': False, 'shape': (1,), }}\n".encode()
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + size + header + bytes(8)


OBJECTS = saved(np.array([{}], dtype=object))
OBJECTS_IN_OTHER_WORDS = (
    "'O'",
    "'=O8'",
    '"|O"',
    r"'\x4f'",
    "'object'",
    "'object_'",
    "'|' 'O'",
    "u'O'",
    "'f4,O'",
    "'f4,(2,)O'",
    "'3O'",
    "('O', (2,))",
    "[('a', 'O')]",
    "[('a', [('b', 'f4'), ('c', 'O')])]",
)
"""All of these are, or once were, Python and NumPy's."""
FILLING = "('f', '<f4'), " * 5_000
FIELDS = saved(np.zeros(1, [(f"number{n}", "<f4") for n in range(200)] + [("thing", object)]))
CALLING = {
    "GLOBAL": b"cos\nsystem\n.",
    "STACK_GLOBAL": b"\x93.",
    "INST": b"ios\nsystem\n.",
    "OBJ": b"o.",
    "NEWOBJ": b"\x81.",
    "NEWOBJ_EX": b"\x92.",
    "REDUCE": b"R.",
    "BUILD": b"b.",
    "EXT1": b"\x82\1.",
    "EXT2": b"\x83\1\0.",
    "EXT4": b"\x84\1\0\0\0.",
}
PICKLES = {
    **{f"protocol {n}": pickle.dumps(CALLS, protocol=n) for n in range(6)},
    "numbers alone, protocol 2": pickle.dumps([1, 2], protocol=2),
    **{f"the opcode {name} alone": code for name, code in CALLING.items()},
    "mark behind another opcode": b"N0" + pickle.dumps(CALLS, protocol=4),
    "with something behind it": pickle.dumps(CALLS, protocol=0) + bytes(100),
    "text that is a program": b"cos\nsystem\n(S'true'\ntR.",
    "longer than anyone reads": b"N" * 100_001,
    "torch's zip": zipped("archive/data.pkl"),
    "torch's old tar": tarred("pickle"),
    "numpy's objects": OBJECTS,
    "objects among numpy's fields": FIELDS,
    "objects in numpy's archive": zipped("a.npy", OBJECTS, zipfile.ZIP_DEFLATED),
    "objects in it under any name": zipped("a.txt", OBJECTS),
    "a pickle in a zip": zipped("a.pickle"),
    "storages in torch's old tar": tarred("storages"),
    "tensors in torch's old tar": tarred("tensors"),
    "torch's tar without a mark": unmarked(tarred("pickle")),
    "an empty string among its opcodes": b"cos\nsystem\n(B\0\0\0\0tR.",
    "a string of 16 MiB": b"cos\nsystem\nB\0\0\0\1" + bytes(1 << 24) + b".",
    "a line of 16 MiB": b"cos\nsystem\nS'" + b"s" * ((1 << 24) - 3) + b"'\n.",
    "numpy's header with objects behind 64 KiB": described(f"[{FILLING}('o', '|O')]", 2),
    "numpy's header of over 64 KiB": described("'<f4'" + " " * (65_537 - 58), 2),
    "numpy's header that ends too soon": OBJECTS[:20],
    **{f"numpy's {types}": described(types) for types in OBJECTS_IN_OTHER_WORDS},
}


@pytest.mark.parametrize("content", PICKLES)
def test_pickles_are_found_by_content(content):
    assert find_pickle("weights", io.BytesIO(PICKLES[content])) == "its content is a pickle"


@pytest.mark.parametrize("name", ["x.pt", "x.PTH", "a.ckpt", "sub/x.pkl", "x.pickle", "x.joblib", "x.dill"])
def test_pickles_are_found_by_name(name):
    assert find_pickle(name, io.BytesIO()) == f"it ends in .{name.rpartition('.')[2].lower()}"


KINDS = [
    ("Open", "<f4"),
    ("b", "?", (2, 2)),
    ("c", [("d", "M8[ns]"), ("e", ">i2")]),
    (("title", "f"), "S5"),
    ("g", "<U3"),
]


def encrypted(archive):
    """The archive with a flag at each member that says that it is."""
    changed = bytearray(archive)
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = -1
        while (at := archive.find(mark, at + 1)) >= 0:
            changed[at + flags] |= 1
    return bytes(changed)


OTHERS = {
    "empty": b"",
    "zip": zipped("a.txt"),
    "tar": tarred("a"),
    "not quite a zip": b"PK nothing",
    "numpy's numbers": saved(np.arange(3)),
    "numbers in numpy's archive": zipped("a.npy", saved(np.arange(3))),
    "numbers of many kinds": saved(np.zeros(2, KINDS)),
    "numbers in a header of version 2": described("'<f4'", 2),
    "numbers in a header of 64 KiB": described("'<f4'" + " " * (65_536 - 58), 2),
    "as long as anyone reads": b"N" * 100_000,
    "tar of a name in no UTF-8": tarred("\udcff"),
    "ends as a zip would": b"data" + b"PK\5\6" + b"\xff" * 16 + bytes(2),
    "encrypted": encrypted(zipped("a.npy", OBJECTS)),
    "safetensors": save({"w": np.zeros(3, np.float32)}),
    "text": b"Read this first.\n" * 1000,
    "numbers alone, protocol 0": pickle.dumps([1, 2], protocol=0),  # calls nothing, and is mere text
    "image": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "binary": bytes(range(256)) * 100,
}


@pytest.mark.parametrize("content", OTHERS)
def test_other_files_are_no_pickles(content):
    assert find_pickle("out.bin", io.BytesIO(OTHERS[content])) is None


def test_a_file_is_read_from_its_beginning():
    file = io.BytesIO(OBJECTS)
    file.seek(5)
    assert find_pickle("x", file) == "its content is a pickle"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"PK\3\4" + OTHERS["ends as a zip would"], "archive"),
        (b"cos\nsystem\nB\1\0\0\1" + bytes((1 << 24) + 1) + b".", "a piece of over"),
        (b"cos\nsystem\nS'" + b"s" * ((1 << 24) - 2) + b"'\n.", "a piece of over"),
    ],
    ids=["a zip without members where it says", "a longer string", "a longer line"],
)
def test_what_cannot_be_read_is_refused(content, why):
    with pytest.raises(FormatError, match=why):
        find_pickle("x", io.BytesIO(content))


class Endless(io.RawIOBase):
    """A file of 4 GiB that begins with some bytes and goes on with zeros; it notes the most that was asked of it."""

    SIZE = 1 << 32

    def __init__(self, head):
        self.head, self.at, self.most = head, 0, 0

    def readable(self):
        return True

    def seek(self, offset, whence=0):
        self.at = offset + (0, self.at, self.SIZE)[whence]
        return self.at

    def tell(self):
        return self.at

    def read(self, size=-1):
        size = min(self.SIZE - self.at if size < 0 else size, self.SIZE - self.at)
        self.most = max(self.most, size)
        data = self.head[self.at : self.at + size]
        self.at += size
        return data + bytes(size - len(data))

    def readline(self, size=-1):
        return self.read(size)


@pytest.mark.parametrize("head", [b"X\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\x00\x00\x00\x00", b"cos\n", b"S'a"])
def test_no_file_makes_us_read_it_whole(head):
    file = Endless(head)
    with pytest.raises(FormatError, match="a piece of over"):
        find_pickle("x", file)
    assert file.most <= (16 << 20) + 1


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"(", bytes(257) + b"ustar"])
)
def test_any_bytes_are_a_pickle_or_not(data, head):
    with contextlib.suppress(FormatError):
        find_pickle("x", io.BytesIO(head + data))


@given(st.data())
def test_a_damaged_archive_is_a_pickle_or_none_or_refused(data):
    content = bytearray(
        PICKLES[data.draw(st.sampled_from(["torch's zip", "objects in numpy's archive", "torch's old tar"]))]
    )
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        find_pickle("x", io.BytesIO(bytes(content)))
