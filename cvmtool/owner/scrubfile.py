# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A scrubbing pipeline as TOML, read strictly.

Zone: owner (trusted). Pure: no I/O. Spec: docs/howto/scrub-data.md.

A field that two rules change, a key that nobody knows and a pipeline that changes nothing are errors: what was meant to be
scrubbed and was not is found out by nobody later.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation

from cvmtool.errors import ConfigError
from cvmtool.formats.packheader import MAX_RULES
from cvmtool.formats.scrubbing import (
    SCRUB_SCHEMA,
    Bins,
    Dates,
    Drop,
    Encoding,
    FileFormat,
    FileRules,
    Hash,
    Keep,
    Others,
    Period,
    Pipeline,
    Prefix,
    Recogniser,
    Redact,
    Rule,
    Tokenise,
    Unreadable,
)
from cvmtool.owner.toml import Table, load_table

MAX_FILES = 64
MAX_LENGTH = 256  # characters of a name or expression
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_ENTITY = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_MODEL = re.compile(r"[a-z][a-z0-9_]{0,63}")
_LANGUAGE = re.compile(r"[a-z]{2}")
_LEAST_DIGITS, _MOST_DIGITS = 16, 64  # fewer than 64 bits would let two of some millions of values meet


def parse_pipeline(text: str) -> Pipeline:
    """Read a pipeline.

    Raises:
        ConfigError: not TOML, another schema, a key missing, unknown or of the wrong kind; a field that two rules
            change; a pattern that is not stated; a pipeline that changes nothing.
    """
    table = load_table(text, "pipeline")
    if (schema := table.text("schema")) != SCRUB_SCHEMA:
        raise table.wrong("schema", schema, SCRUB_SCHEMA)
    key = _line(table, "key")
    expressions = _expressions(table)
    files = tuple(_files(item) for item in table.tables("files"))
    table.finish()
    pipeline = Pipeline(
        digest=f"sha256:{hashlib.sha256(text.encode('utf-8')).hexdigest()}",
        key=key,
        expressions=expressions,
        files=files,
    )
    _refuse_useless(pipeline)
    return pipeline


def _refuse_useless(pipeline: Pipeline) -> None:
    matches = [item.match for item in pipeline.files]
    if len(matches) > MAX_FILES or len(set(matches)) != len(matches):
        raise ConfigError(
            f"pipeline has {len(matches)} entries of files; required: at most {MAX_FILES}, each match once"
        )
    if not any(_changes(item) for item in pipeline.files):
        raise ConfigError(
            "pipeline changes nothing; required: a rule that does", hint="pack it without: cvmtool data pack"
        )
    used = {
        name for item in pipeline.files for rule in item.rules if isinstance(rule, Redact) for name in rule.patterns
    }
    if unused := sorted(pipeline.expressions.keys() - used):
        raise ConfigError(f"pattern {unused[0]!r} is in no rule; required: one that redacts it")
    most = sum(_most_labels(rule) for item in pipeline.files for rule in item.rules)
    if most + len(pipeline.files) > MAX_RULES:
        raise ConfigError(f"pipeline has {most} rules; required: at most {MAX_RULES - len(pipeline.files)}")


def _most_labels(rule: Rule) -> int:
    if isinstance(rule, Redact):
        return len(rule.patterns) + (len(rule.recogniser.entities) if rule.recogniser else 0)
    return len(rule.fields)


def _changes(item: FileRules) -> bool:
    dropping = item.format is FileFormat.DROP or item.others is Others.DROP
    return dropping or any(not isinstance(rule, Keep) for rule in item.rules)


def _expressions(table: Table) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in table.tables("patterns") if table.has("patterns") else ():
        name, expression = _matching(item, "name", _NAME, "lower-case letters, digits and dashes"), item.text("regex")
        item.finish()
        if name in found:
            raise item.wrong("name", name, "each name once")
        if not 1 <= len(expression) <= MAX_LENGTH:
            raise item.wrong("regex", expression, f"1 to {MAX_LENGTH} characters")
        found[name] = expression
    return found


def _files(table: Table) -> FileRules:
    match, kind = _line(table, "match"), table.choice("format", FileFormat)
    encoding = table.choice("encoding", Encoding) if table.has("encoding") else Encoding.UTF_8
    others = Others.KEEP
    if kind.has_fields:
        others = table.choice("others", Others)
    is_table = kind in (FileFormat.CSV, FileFormat.TSV)
    columns = table.texts("columns") if is_table and table.has("columns") else ()
    read = kind not in (FileFormat.KEEP, FileFormat.DROP)
    rules = tuple(_rule(item) for item in table.tables("rules")) if read and table.has("rules") else ()
    table.finish()
    _refuse_conflicts(table, kind, rules, columns)
    return FileRules(match=match, format=kind, encoding=encoding, others=others, columns=columns, rules=rules)


def _refuse_conflicts(table: Table, kind: FileFormat, rules: tuple[Rule, ...], columns: tuple[str, ...]) -> None:
    changed = [field for rule in rules if not isinstance(rule, Redact) for field in rule.fields]
    named = [field for rule in rules for field in rule.fields]
    for field in changed:
        if changed.count(field) > 1:
            raise table.wrong("rules", field, "one rule for a field, and others that redact what it keeps")
    kept = {field for rule in rules if isinstance(rule, Keep) for field in rule.fields}
    for rule in rules:
        if isinstance(rule, Redact) and (lost := set(rule.fields) & set(changed) - kept):
            raise table.wrong("rules", min(lost), "nothing to redact in a field that another rule replaces")
    if kind is FileFormat.TEXT and (named or not rules):
        raise table.wrong("rules", named[0] if named else "none", "for text: rules that redact, without fields")
    if kind in (FileFormat.CSV, FileFormat.TSV) and not (named or columns):
        raise table.wrong(
            "rules", "none", "a rule that names a column: without one, a row could be taken for the names"
        )
    if columns and (missing := sorted(set(named) - set(columns))):
        raise table.wrong("rules", missing[0], "a field of columns")


def _rule(table: Table) -> Rule:
    action = table.text("action")
    if action not in _ACTIONS:
        raise table.wrong("action", action, f"one of {', '.join(_ACTIONS)}")
    rule = _ACTIONS[action](table)
    table.finish()
    return rule


def _fields(table: Table) -> tuple[str, ...]:
    fields = table.texts("fields")
    for field in fields:
        if len(field) > MAX_LENGTH or not field.isprintable():
            raise table.wrong("fields", field, f"printable names of at most {MAX_LENGTH} characters")
    return fields


def _hash(table: Table) -> Hash:
    digits = table.integer("digits", _LEAST_DIGITS, _MOST_DIGITS) if table.has("digits") else _MOST_DIGITS
    return Hash(fields=_fields(table), identity=_identity(table), digits=digits)


def _tokenise(table: Table) -> Tokenise:
    return Tokenise(fields=_fields(table), identity=_identity(table))


def _generalise(table: Table) -> Rule:
    fields, to = _fields(table), table.text("to")
    if to == "prefix":
        return Prefix(fields=fields, characters=table.integer("characters", 1, MAX_LENGTH))
    unreadable = table.choice("unreadable", Unreadable) if table.has("unreadable") else Unreadable.REFUSE
    if to == "bins":
        width, top = _number(table, "width"), _number(table, "top") if table.has("top") else None
        if width <= 0 or (top is not None and top % width):
            raise table.wrong("width", width, "a number above 0, and top a multiple of it")
        return Bins(fields=fields, width=width, top=top, unreadable=unreadable)
    if to not in tuple(Period):
        raise table.wrong("to", to, f"one of bins, prefix, {', '.join(Period)}")
    written = _line(table, "written") if table.has("written") else None
    return Dates(fields=fields, to=Period(to), written=written, unreadable=unreadable)


def _redact(table: Table) -> Redact:
    fields = _fields(table) if table.has("fields") else ()
    recogniser = _recogniser(table.table("presidio")) if table.has("presidio") else None
    patterns = table.texts("patterns") if recogniser is None or table.has("patterns") else ()
    for pattern in patterns:
        if not _NAME.fullmatch(pattern):
            raise table.wrong("patterns", pattern, "names of patterns")
    return Redact(fields=fields, patterns=patterns, recogniser=recogniser)


def _recogniser(table: Table) -> Recogniser:
    entities = table.texts("entities")
    for entity in entities:
        if not _ENTITY.fullmatch(entity):
            raise table.wrong("entities", entity, "names of entities, such as PERSON")
    found = Recogniser(
        language=_matching(table, "language", _LANGUAGE, "two letters, such as en"),
        model=_matching(table, "model", _MODEL, "the name of a spaCy model that is installed"),
        entities=entities,
    )
    table.finish()
    return found


_ACTIONS: Mapping[str, Callable[[Table], Rule]] = {
    "keep": lambda table: Keep(fields=_fields(table)),
    "drop": lambda table: Drop(fields=_fields(table)),
    "hash": _hash,
    "tokenise": _tokenise,
    "generalise": _generalise,
    "redact": _redact,
}


def _identity(table: Table) -> str:
    return _matching(table, "as", _NAME, "lower-case letters, digits and dashes: whom or what the values tell apart")


def _matching(table: Table, key: str, pattern: re.Pattern[str], required: str) -> str:
    found = table.text(key)
    if not pattern.fullmatch(found):
        raise table.wrong(key, found, required)
    return found


def _line(table: Table, key: str) -> str:
    found = table.text(key)
    if not 1 <= len(found) <= MAX_LENGTH or not found.isprintable():
        raise table.wrong(key, found, f"printable text of 1 to {MAX_LENGTH} characters")
    return found


def _number(table: Table, key: str) -> Decimal:
    """Return a number that is written as text or integer: a TOML float is binary, and 0.1 is none of its values."""
    text = table.text(key)
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or abs(number.adjusted()) > 15:
        raise table.wrong(key, text, 'a number in quotes, such as "10" or "0.5"')
    return number
