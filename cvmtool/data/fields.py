# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of one entry of a pipeline, field by field: what a value becomes, and how often that was another value.

Zone: data (the owner's machine). Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cvmtool.data.generalise import to_bin, to_period
from cvmtool.data.patterns import Finder, Redactor
from cvmtool.data.pseudonyms import Pseudonyms
from cvmtool.errors import ConfigError, FormatError
from cvmtool.formats.scrubbing import (
    Bins,
    Dates,
    Drop,
    FileFormat,
    FileRules,
    Hash,
    Keep,
    Others,
    Prefix,
    Recogniser,
    Redact,
    Rule,
    Tokenise,
    Unreadable,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What rules are carried out with; the same for all files of a run."""

    pseudonyms: Pseudonyms
    patterns: Mapping[str, Finder]
    recogniser: Callable[[Recogniser], Sequence[Finder]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What happens to one field."""

    label: str = ""
    """Under which a change is counted; empty if nothing is changed."""
    dropped: bool = False
    change: Callable[[str], str] | None = None
    redactor: Redactor | None = None


class FieldRules:
    """An entry of a pipeline at work. It counts what it changed; what fields it met, it remembers for `unmet`."""

    def __init__(self, entry: FileRules, tools: Tools) -> None:
        """Make the treatments.

        Raises:
            ConfigError: a rule names a pattern that there is not, or needs what is not installed.
        """
        self.entry = entry
        self.counts: Counter[str] = Counter()
        self._redactors: dict[tuple[Redact, ...], Redactor | None] = {}
        self._tools = tools
        self._by_field = {
            field: self._treatment(rule, field)
            for rule in entry.rules
            if not isinstance(rule, Redact)
            for field in rule.fields
        }
        for rule in entry.rules:
            if isinstance(rule, Redact):
                for field in rule.fields:
                    self._by_field.setdefault(field, Treatment(redactor=self._redactor(field)))
        self._met: set[str] = set()
        self._others = Treatment(redactor=self._redactor(None))
        if entry.others is Others.DROP:
            self._others = Treatment(label=self._label("drop", "all others"), dropped=True)
        self.whole = self._redactor(None)
        """Redacts what belongs to no field of its own: lines of text, keys."""
        self.labels = self._labels()

    def of(self, field: str) -> Treatment:
        """Return what happens to a field.

        Raises:
            FormatError: no rule names it, and the pipeline refuses such fields.
        """
        found = self._by_field.get(field)
        if found is not None:
            self._met.add(field)
            return found
        if self.entry.others is Others.REFUSE:
            raise FormatError(f'field {field[:80]!r} is named by no rule; required: one, or others = "keep" or "drop"')
        return self._others

    @property
    def named(self) -> frozenset[str]:
        """Fields that rules name."""
        return frozenset(self._by_field)

    @property
    def unmet(self) -> frozenset[str]:
        """Fields that rules name and no file had."""
        return self.named - self._met

    def value(self, treatment: Treatment, value: str) -> str:
        """Return what a value becomes. An empty one stays empty: that there is none is no secret of the value's.

        Raises:
            FormatError: it cannot be changed as the rule says; the message does not repeat it.
        """
        if not value:
            return value
        if treatment.change is not None:
            try:
                changed = treatment.change(value)
            except ValueError as error:
                raise FormatError(f"a value is {error}; required by the rule {treatment.label!r}") from None
            self.counts[treatment.label] += changed != value
            return changed
        return self.text(treatment.redactor, value)

    def text(self, redactor: Redactor | None, text: str) -> str:
        """Return text without what a redactor finds in it."""
        if redactor is None:
            return text
        found: Counter[str] = Counter()
        redacted = redactor(text, found)
        for name, count in found.items():
            self.counts[self._label("redact", name)] += count
        return redacted

    def drop(self, treatment: Treatment) -> None:
        """Count a value that is taken out."""
        self.counts[treatment.label] += 1

    def _label(self, action: str, what: str) -> str:
        return f"{self.entry.match}: {action} {what}"

    def _labels(self) -> tuple[str, ...]:
        labels = [treatment.label for treatment in self._by_field.values() if treatment.label]
        labels += [self._others.label] if self._others.label else []
        for rule in self.entry.rules:
            if isinstance(rule, Redact):
                labels += [self._label("redact", finder.name) for finder in self._finders(rule)]
        if self.entry.format is FileFormat.DROP:
            labels.append(self.dropped_file)
        return tuple(dict.fromkeys(labels))

    @property
    def dropped_file(self) -> str:
        """Under which a file is counted that is left out."""
        return self._label("drop", "file")

    def _treatment(self, rule: Rule, field: str) -> Treatment:
        pseudonyms = self._tools.pseudonyms
        match rule:
            case Drop():
                return Treatment(label=self._label("drop", field), dropped=True)
            case Hash(identity=identity, digits=digits):
                return Treatment(
                    label=self._label("hash", field), change=lambda value: pseudonyms.hash(identity, value, digits)
                )
            case Tokenise(identity=identity):
                return Treatment(
                    label=self._label("tokenise", field), change=lambda value: pseudonyms.token(identity, value)
                )
            case Bins() | Dates():
                return Treatment(label=self._label("generalise", field), change=_generalised(rule))
            case Prefix(characters=characters):
                return Treatment(label=self._label("generalise", field), change=lambda value: value[:characters])
            case Keep() | Redact():
                return Treatment(redactor=self._redactor(field))

    def _redactor(self, field: str | None) -> Redactor | None:
        """Return what redacts a field: every rule that names it, or that names none. None: those that name none."""
        rules = tuple(
            rule
            for rule in self.entry.rules
            if isinstance(rule, Redact) and (not rule.fields or (field is not None and field in rule.fields))
        )
        if rules not in self._redactors:
            finders = [finder for rule in rules for finder in self._finders(rule)]
            patterns = {finder.name: finder for finder in finders if finder.name in self._tools.patterns}
            first = [finder for finder in finders if finder.name not in patterns]
            self._redactors[rules] = Redactor(tuple(patterns.values()), first) if finders else None
        return self._redactors[rules]

    def _finders(self, rule: Redact) -> list[Finder]:
        for name in rule.patterns:
            if name not in self._tools.patterns:
                known = ", ".join(sorted(self._tools.patterns))
                raise ConfigError(f"there is no pattern {name!r}; required: one of {known}, or your own under patterns")
        found = [self._tools.patterns[name] for name in rule.patterns]
        return found + (list(self._tools.recogniser(rule.recogniser)) if rule.recogniser else [])


def _generalised(rule: Bins | Dates) -> Callable[[str], str]:
    def change(value: str) -> str:
        try:
            return to_bin(rule, value) if isinstance(rule, Bins) else to_period(rule, value)
        except ValueError:
            if rule.unreadable is Unreadable.EMPTY:
                return ""
            # strptime's own words repeat the value.
            raise ValueError("no number" if isinstance(rule, Bins) else "no date as it is written here") from None

    return change
