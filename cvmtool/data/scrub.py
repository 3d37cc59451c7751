# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Scrub a source on its way into a pack: a tar stream of what a pipeline leaves, and a report of what it changed.

Zone: data (the owner's machine). Nothing of what comes out touches a disk in clear; memory is bounded at any size.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from cvmtool.data.fields import FieldRules, Tools
from cvmtool.data.jsontext import read_document, scrub_document, scrub_json_lines
from cvmtool.data.lines import lines
from cvmtool.data.patterns import NAMED, Finder, own_pattern
from cvmtool.data.pseudonyms import Pseudonyms
from cvmtool.data.spool import Spool
from cvmtool.data.tabular import scrub_table
from cvmtool.errors import ConfigError, FormatError
from cvmtool.formats.packheader import RuleCount, tree_content
from cvmtool.formats.scrubbing import FileFormat, FileReport, Pipeline, Recogniser, Report

_PIECE = 1 << 20  # bytes
Pieces = Iterator[tuple[bytes, int]]
"""What comes out of a file, piece by piece, and the number of records in each."""


class Scrubbing:
    """A pipeline on one source. `tar` or `look` goes through it once; then `report` is there."""

    def __init__(
        self,
        source: Path,
        pipeline: Pipeline,
        key: bytes,
        *,
        recogniser: Callable[[Recogniser], Sequence[Finder]],
        progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        """Prepare the rules.

        Args:
            source: a directory or a file.
            pipeline: what happens to it.
            key: 32 bytes, for hashes and tokens.
            recogniser: makes finders of Presidio's (`cvmtool.data.presidio.finders`).
            progress: told about bytes of the source, and how many there are.

        Raises:
            ConfigError: the source does not exist, a pattern is none, or something that a rule needs is not installed.
        """
        own = {name: own_pattern(name, expression) for name, expression in pipeline.expressions.items()}
        if clash := sorted(own.keys() & NAMED.keys()):
            raise ConfigError(f"pattern {clash[0]!r} is built in; required: another name for your own")
        patterns: Mapping[str, Finder] = {**NAMED, **own}
        tools = Tools(pseudonyms=Pseudonyms(key), patterns=patterns, recogniser=recogniser)
        self._rules = [FieldRules(entry, tools) for entry in pipeline.files]
        self._source = source
        self._entries = _walk(source)
        self._bytes = sum(path.lstat().st_size for _, path in self._entries)
        self._done = 0
        self._progress = progress
        self._files: list[FileReport] = []
        self._contents: list[tuple[bytes, bytes, bytes]] = []
        self._made: set[str] = set()

    @property
    def size(self) -> int:
        """Bytes of the source."""
        return self._bytes

    @property
    def report(self) -> Report:
        """What was changed, once all of it was gone through."""
        counts = Counter[str]()
        for rules in self._rules:
            counts.update(dict.fromkeys(rules.labels, 0))
            counts.update(rules.counts)
        return Report(
            digest=f"sha256:{tree_content(self._contents).hex()}",
            files=tuple(self._files),
            counts=tuple(RuleCount(rule=rule, changed=changed) for rule, changed in counts.items()),
        )

    def look(self) -> Report:
        """Go through the source without keeping anything of it.

        Raises:
            FormatError, ConfigError: as `tar`.
        """
        for _ in self._scrubbed(lambda _name, _mode, pieces: _emptied(pieces)):
            pass
        return self.report

    def tar(self, folder: Path) -> Iterator[bytes]:
        """Yield a tar stream of what comes out; `folder`: for an encrypted file without a name, while one is gone through.

        Raises:
            FormatError: a file does not follow its format, or a rule refuses something in it.
            ConfigError: a file has no entry in the pipeline, is a link or a device, or cannot be read; or the pipeline
                names what no file has.
        """

        def packed(name: str, mode: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
            with closing(Spool(folder)) as spool:
                for piece in pieces:
                    spool.write(piece)
                yield _head(name, tarfile.REGTYPE, mode, spool.size)
                size = spool.size
                yield from spool.read()
                yield bytes(-size % tarfile.BLOCKSIZE)

        yield from self._scrubbed(packed)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _scrubbed(self, keep: Callable[[str, int, Iterator[bytes]], Iterator[bytes]]) -> Iterator[bytes]:
        for name, path in self._entries:
            rules = self._rules_for(name)
            self._refuse_path(name, rules)
            if rules.entry.format is FileFormat.DROP:
                rules.counts[rules.dropped_file] += 1
                self._note(name, rules, 0, Counter({rules.dropped_file: 1}))
                self._done += path.lstat().st_size
                continue
            executable = rules.entry.format is FileFormat.KEEP and bool(path.lstat().st_mode & 0o111)
            yield from self._folders(name)
            digest, before = hashlib.sha256(), Counter(rules.counts)
            counted = _Counted(self._pieces(name, path, rules), digest.update)
            yield from keep(name, 0o755 if executable else 0o644, iter(counted))
            self._contents.append((b"x" if executable else b"f", os.fsencode(name), digest.digest()))
            self._note(name, rules, counted.records, Counter(rules.counts) - before)
        self._refuse_unmet()

    def _rules_for(self, name: str) -> FieldRules:
        for rules in self._rules:
            if fnmatchcase(name, rules.entry.match):
                return rules
        raise ConfigError(
            f"file {name!r} has no entry in the pipeline; required: one, whose format may be keep or drop",
            hint="add [[files]] with a match for it",
        )

    def _refuse_path(self, name: str, rules: FieldRules) -> None:
        if rules.entry.format is not FileFormat.DROP and rules.whole and (found := rules.whole.found(name)):
            raise FormatError(
                f"the path {name!r} holds what pattern {found!r} finds; required: names that tell nothing",
                hint="rename the file in the source",
            )

    def _pieces(self, name: str, path: Path, rules: FieldRules) -> Pieces:
        try:
            with path.open("rb") as file:
                for piece in _scrub_file(file, rules):
                    if not file.closed:
                        self._progress(min(self._done + file.tell(), self._bytes), self._bytes)
                    yield piece
            self._done += path.lstat().st_size
        except OSError as error:
            raise ConfigError(f"{path} cannot be read", detail=str(error)) from error
        except FormatError as error:
            raise FormatError(f"{name}: {error.message}", detail=error.detail, hint=error.hint) from None

    def _folders(self, name: str) -> Iterator[bytes]:
        """Make the directories that lead to a file, once: one of which nothing is left does not come out."""
        for parent in reversed(Path(name).parents[:-1]):
            folder = str(parent)
            if folder not in self._made:
                self._made.add(folder)
                self._contents.append((b"d", os.fsencode(folder), b""))
                yield _head(folder, tarfile.DIRTYPE, 0o755, 0)

    def _note(self, name: str, rules: FieldRules, records: int, counts: Counter[str]) -> None:
        entry = rules.entry
        changed = tuple(RuleCount(rule=rule, changed=count) for rule, count in counts.items() if count)
        self._files.append(
            FileReport(path=name, match=entry.match, format=entry.format, records=records, counts=changed)
        )

    def _refuse_unmet(self) -> None:
        met = {file.match for file in self._files}
        for rules in self._rules:
            if rules.entry.match not in met:
                raise ConfigError(f"no file matches {rules.entry.match!r}; required: that each entry has one")
            if rules.unmet:
                raise ConfigError(
                    f"no file of {rules.entry.match!r} has the field {min(rules.unmet)!r}; required: that a rule's field exists"
                )
        if not self._contents:
            raise ConfigError(f"nothing of {self._source} is left; an input needs at least one file")


class _Counted:
    """Pieces on their way: hashed, and their records counted."""

    def __init__(self, pieces: Pieces, update: Callable[[bytes], None]) -> None:
        self._pieces = pieces
        self._update = update
        self.records = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece, records in self._pieces:
            self._update(piece)
            self.records += records
            yield piece


def _scrub_file(file: BinaryIO, rules: FieldRules) -> Pieces:
    entry = rules.entry
    match entry.format:
        case FileFormat.CSV:
            return scrub_table(lines(file, entry.encoding), rules, delimiter=",")
        case FileFormat.TSV:
            return scrub_table(lines(file, entry.encoding), rules, delimiter="\t")
        case FileFormat.JSONL:
            return _gathered(scrub_json_lines(lines(file, entry.encoding), rules))
        case FileFormat.JSON:
            return iter([(scrub_document(read_document(file, entry.encoding), rules) + b"\n", 1)])
        case FileFormat.TEXT:
            return _gathered(_scrub_lines(lines(file, entry.encoding), rules))
        case FileFormat.KEEP | FileFormat.DROP:
            return ((piece, 0) for piece in iter(lambda: file.read(_PIECE), b""))


def _scrub_lines(source: Iterator[str], rules: FieldRules) -> Pieces:
    for number, line in enumerate(source, 1):
        text = line.rstrip("\r\n")
        try:
            scrubbed = rules.text(rules.whole, text)
        except FormatError as error:
            raise FormatError(f"line {number}: {error.message}", hint=error.hint) from None
        yield (scrubbed + line[len(text) :]).encode("utf-8"), 1


def _gathered(pieces: Pieces) -> Pieces:
    """Join small pieces into fewer."""
    together, records = bytearray(), 0
    for piece, count in pieces:
        together += piece
        records += count
        if len(together) >= _PIECE:
            yield bytes(together), records
            together, records = bytearray(), 0
    yield bytes(together), records


def _head(name: str, kind: bytes, mode: int, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = kind, mode, size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def _emptied(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for _ in pieces:
        pass
    return iter(())


def _walk(source: Path) -> list[tuple[str, Path]]:
    """Return the files of a source by their paths in it, in order of their bytes.

    Raises:
        ConfigError: the source is none, cannot be read, or has something that is neither file nor directory.
    """
    try:
        if not stat.S_ISDIR(source.lstat().st_mode):
            return [(source.name, _regular(source))]
        found = []
        for folder, folders, names in os.walk(source, onerror=_raise):
            found += [Path(folder, name) for name in names]
            found += [Path(folder, name) for name in folders if Path(folder, name).is_symlink()]
        return sorted(
            ((path.relative_to(source).as_posix(), _regular(path)) for path in found),
            key=lambda entry: os.fsencode(entry[0]),
        )
    except OSError as error:
        raise ConfigError(f"{source} cannot be read", detail=str(error)) from error


def _regular(path: Path) -> Path:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ConfigError(f"{path} is a link or no file; required in a source that is scrubbed: files and directories")
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"the name of {str(path)!r} is not utf-8; required: a name that is") from None
    return path


def _raise(error: OSError) -> None:
    raise error
