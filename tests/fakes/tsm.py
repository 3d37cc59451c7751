# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""/sys/kernel/config/tsm/report, as the kernel keeps it: Documentation/ABI/testing/configfs-tsm-report, and its core's rules.

It has the few methods of `pathlib.Path` that the guest uses, since no file system lets a program answer a read with an errno.
The rules: each write of an attribute adds one to `generation`; a report is made when `outblob` is first read after a write, and
kept until the next; without `inblob` there is none (EINVAL); `privlevel` below the floor is refused (EINVAL); a write
while a report is being read is refused (EBUSY); a read that a write overtook is refused (EWOULDBLOCK).
"""

import errno
import os
from collections.abc import Callable

from tests.unit.guest.samples import report

MAX_INBLOB = 64
ABSENT = None


def fails(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class FakeTsm:
    """The directory. `before(entry, attribute, verb)` is called ahead of each access: another process, or a failure."""

    def __init__(self, *, auxblob=b"", provider="sev_guest", floor=0, make=None, before=None):
        self.auxblob, self.provider, self.floor = auxblob, provider, floor
        self.make: Callable[[bytes], bytes] = make or (lambda inblob: report(inblob, b"h" * 32))
        self.before = before or (lambda entry, attribute, verb: None)
        self.entries: dict[str, FakeEntry] = {}
        self.made = 0
        self.reports = 0

    def is_dir(self):
        return True

    def __truediv__(self, name):
        return FakeEntry(self, name)


class FakeEntry:
    """A report instance."""

    def __init__(self, tsm, name):
        self.tsm, self.name = tsm, name
        self.generation = 0
        self.inblob = b""
        self.made_at = None  # the generation of what `outblob` holds
        self.outblob = b""

    def mkdir(self):
        if self.name in self.tsm.entries:
            raise fails(errno.EEXIST)
        self.tsm.before(self, "", "mkdir")
        self.tsm.entries[self.name] = self
        self.tsm.made += 1

    def rmdir(self):
        del self.tsm.entries[self.name]

    def __truediv__(self, attribute):
        return FakeAttribute(self.tsm.entries[self.name], attribute)

    def write(self, attribute, data):
        """Write as any process may."""
        if attribute == "privlevel":
            if not self.tsm.floor <= int(data) <= 3:
                raise fails(errno.EINVAL)
        elif attribute == "inblob":
            if not 0 < len(data) <= MAX_INBLOB:
                raise fails(errno.EINVAL)
            self.inblob = data
        else:
            raise fails(errno.EACCES)
        self.generation += 1

    def read(self, attribute):
        if attribute == "generation":
            return f"{self.generation}\n".encode()
        if attribute == "provider":
            return f"{self.tsm.provider}\n".encode()
        if attribute == "privlevel_floor":
            return f"{self.tsm.floor}\n".encode()
        if attribute not in {"outblob", "auxblob"}:
            raise fails(errno.EACCES)
        if attribute == "auxblob" and self.tsm.auxblob is ABSENT:
            raise fails(errno.ENOENT)
        if not self.inblob:
            raise fails(errno.EINVAL)
        if self.made_at != self.generation:
            self.tsm.reports += 1
            self.outblob = self.tsm.make(self.inblob)
            self.made_at = self.generation
        return self.outblob if attribute == "outblob" else self.tsm.auxblob


class FakeAttribute:
    """A file of an instance."""

    def __init__(self, entry, name):
        self.entry, self.name = entry, name

    def write_text(self, text, encoding):
        self.write_bytes(text.encode(encoding))

    def write_bytes(self, data):
        self.entry.tsm.before(self.entry, self.name, "write")
        self.entry.write(self.name, data)

    def read_text(self, encoding):
        return self.read_bytes().decode(encoding)

    def read_bytes(self):
        self.entry.tsm.before(self.entry, self.name, "read")
        return self.entry.read(self.name)
