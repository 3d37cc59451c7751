# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Files through a pipeline: what comes out, what is refused, and that no error repeats a value."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmtool.data.presidio import finders
from cvmtool.data.scrub import Scrubbing
from cvmtool.errors import ConfigError, CvmError, FormatError
from cvmtool.owner.scrubfile import parse_pipeline
from tests.unit.data.test_patterns import holds_card, holds_email, holds_ipv4

SCANNERS = (holds_email, holds_card, holds_ipv4)
HEAD = 'schema = "cvmtool/scrub/v1"\nkey = "k"\n'
CSV = """
[[files]]
match = "*.csv"
format = "csv"
others = "keep"
[[files.rules]]
action = "drop"
fields = ["name"]
[[files.rules]]
action = "redact"
patterns = ["email", "card", "ipv4"]
"""
TEXT = '[[files]]\nmatch = "*.txt"\nformat = "text"\n[[files.rules]]\naction = "redact"\npatterns = ["email", "card"]\n'


def scrubbing(source, text, key=b"k" * 32, **options):
    return Scrubbing(source, parse_pipeline(HEAD + text), key, recogniser=finders, **options)


def scrub(source, text, **options):
    """Return what comes out, by path, and the report."""
    made = scrubbing(source, text, **options)
    stream = io.BytesIO(b"".join(made.tar(source if source.is_dir() else source.parent)))
    with tarfile.open(fileobj=stream) as archive:
        found = {member.name: member for member in archive}
        files = {name: archive.extractfile(member).read() for name, member in found.items() if member.isfile()}
    return files, made.report, found


def one(tmp_path, name, data, text):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return scrub(tmp_path / name, text)[0][name].decode()


def table(rules, others="refuse", more=""):
    lines = [f'[[files]]\nmatch = "*.csv"\nformat = "csv"\nothers = "{others}"\n{more}']
    return "\n".join([*lines, *(f"[[files.rules]]\n{rule}" for rule in rules)])


def lines_of(rules, others="refuse", kind="jsonl"):
    head = f'[[files]]\nmatch = "*.{kind}"\nformat = "{kind}"\nothers = "{others}"\n'
    return "\n".join([head, *(f"[[files.rules]]\n{rule}" for rule in rules)])


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_each_action_on_a_table(tmp_path):
    rules = [
        'action = "hash"\nfields = ["id"]\nas = "p"\ndigits = 16',
        'action = "tokenise"\nfields = ["name"]\nas = "p"',
        'action = "generalise"\nfields = ["born"]\nto = "month"',
        'action = "generalise"\nfields = ["died"]\nto = "year"\nwritten = "%d.%m.%Y"\nunreadable = "empty"',
        'action = "generalise"\nfields = ["age"]\nto = "bins"\nwidth = "10"\ntop = "90"',
        'action = "generalise"\nfields = ["zip"]\nto = "prefix"\ncharacters = 3',
        'action = "keep"\nfields = ["label"]',
        'action = "redact"\nfields = ["note"]\npatterns = ["email"]',
    ]
    source = (
        "id,name,born,died,age,zip,label,note\n"
        "1,Anna,1981-03-02,24.12.2020,44,80331,a@b.de,a@b.de\n"
        '2,"Miller, Bob",1999-12-31T23:00,?,90,10115,1,"x, ""y"""\n'
        "1,Anna,1981-03-02,,-0.5,,0,\n"
    )
    first, second, third = csv.DictReader(io.StringIO(one(tmp_path, "t.csv", source, table(rules))))
    assert first["id"] == third["id"] != second["id"]
    assert len(first["id"]) == 16
    assert first["name"] == third["name"] != second["name"]
    assert [row["born"] for row in (first, second)] == ["1981-03", "1999-12"]
    assert [row["died"] for row in (first, second, third)] == ["2020", "", ""]
    assert [row["age"] for row in (first, second, third)] == ["40..50", "90..", "-10..0"]
    assert [row["zip"] for row in (first, second, third)] == ["803", "101", ""]
    assert [row["label"] for row in (first, second)] == ["a@b.de", "1"]
    assert [row["note"] for row in (first, second)] == ["[email]", 'x, "y"']


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfname,note\nx,a@b.de\n", "note\n[email]\n"),
        (b"note,name\r\na@b.de,x\r\n\r\n", "note\n[email]\n"),
        (b'name,note\nx,"a@b.de\nsecond line"\n', 'note\n"[email]\nsecond line"\n'),
        (b'name,note\nx,"he said ""a@b.de"""\n', 'note\n"he said ""[email]"""\n'),
        (b"name,note\nx,a@b.de", "note\n[email]\n"),
        ("name,note\nx,\u201ea@b.de\u201c\n".encode(), "note\n\u201e[email]\u201c\n"),
    ],
)
def test_how_tables_are_written(tmp_path, data, expected):
    assert one(tmp_path, "t.csv", data, CSV) == expected


@pytest.mark.parametrize(
    ("encoding", "codec"), [("latin-1", "latin-1"), ("windows-1252", "cp1252"), ("utf-16", "utf-16")]
)
def test_other_encodings_become_utf8(tmp_path, encoding, codec):
    text = CSV.replace('format = "csv"', f'format = "csv"\nencoding = "{encoding}"')
    assert one(tmp_path, "t.csv", "name,note\nx,Müller a@b.de\n".encode(codec), text) == "note\nMüller [email]\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"name,note\nx,M\xfcller\n", ["utf-8"]),
        ("name,note\nx,y\n".encode("utf-16"), ["utf-8"]),
        (b"name,note\nx,a\0b\n", ["value 0"]),
        (b"name,note\nx\n", ["line 2", "1 cells", "2"]),
        (b"name,note\nx,y,SECRET\n", ["line 2", "3 cells"]),
        (b'name,note\nx,"SECRET"y\n', ["line 2"]),
        (b'name,note\nx,"SECRET\n', ["end of data"]),
        (b"name,name\nx,SECRET\n", ["one name"]),
        (b"nam,note\nx,SECRET\n", ["name"]),
        (b"\xef\xbb\xbf\xef\xbb\xbfname,note\nx,SECRET\n", ["name"]),
        (b"name,a@b.de\nx,SECRET\n", ["name of a column", "email"]),
        (b"name,note\nx," + b"SECRET" * 40_000 + b"\n", ["field limit"]),
        (b"name,note\nx," + b"y" * (1 << 20) + b"\n", ["characters"]),
    ],
)
def test_tables_that_are_refused(tmp_path, data, words):
    with pytest.raises(FormatError) as refusal:
        one(tmp_path, "t.csv", data, CSV)
    said = f"{refusal.value.message} {refusal.value.detail}"
    assert said.startswith("t.csv: ")
    assert all(word in said for word in words), said
    assert "SECRET" not in said


def test_others(tmp_path):
    rules = ['action = "keep"\nfields = ["a"]', 'action = "drop"\nfields = ["c"]']
    data = "a,b,c\n1,2,3\n"
    with pytest.raises(FormatError, match="'b' is named by no rule"):
        one(tmp_path, "t.csv", data, table(rules))
    assert one(tmp_path, "t.csv", data, table(rules, "keep")) == "a,b\n1,2\n"
    assert one(tmp_path, "t.csv", data, table(rules, "drop")) == "a\n1\n"


def test_a_table_without_names(tmp_path):
    text = table(['action = "drop"\nfields = ["name"]'], "keep", 'columns = ["id", "name"]')
    assert one(tmp_path, "t.csv", "1,Anna\n2,Bob\n", text) == "1\n2\n"


def test_tabs(tmp_path):
    text = CSV.replace("csv", "tsv")
    assert one(tmp_path, "t.tsv", "name\tnote\nx,y\ta@b.de, z\n", text) == "note\n[email], z\n"


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ('to = "bins"\nwidth = "10"', "SECRET"),
        ('to = "bins"\nwidth = "10"', "NaN"),
        ('to = "bins"\nwidth = "10"', "1e999999999"),
        ('to = "year"', "SECRET"),
        ('to = "year"', "2024-13-01"),
        ('to = "month"\nwritten = "%d.%m.%Y"', "SECRET"),
    ],
)
def test_a_value_that_cannot_be_generalised(tmp_path, rule, value):
    text = table([f'action = "generalise"\nfields = ["a"]\n{rule}'])
    with pytest.raises(FormatError) as refusal:
        one(tmp_path, "t.csv", f"a\n{value}\n", text)
    assert "line 2" in refusal.value.message
    assert value not in refusal.value.message
    assert one(tmp_path, "t.csv", f"a\n{value}\n", text + '\nunreadable = "empty"') == 'a\n""\n'


CELL = st.one_of(
    st.sampled_from(
        [
            "a@b.de",
            "4111 1111 1111 1111",
            "10.0.0.1",
            '"',
            ",",
            "\n",
            "\r\n",
            "\ufeff",
            "",
            " ",
            "\u2028",
            "'",
            "\\",
            "=1+1",
        ]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
)


@settings(max_examples=150)
@given(st.lists(st.lists(st.lists(CELL, max_size=4).map("".join), min_size=3, max_size=3), min_size=1, max_size=5))
def test_no_cell_that_was_to_go_is_left(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("t")
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(["name", "a", "b"])
    writer.writerows([["Anna Miller", *row[1:]] for row in rows])
    found = list(csv.reader(io.StringIO(one(folder, "t.csv", written.getvalue(), CSV), newline=""), strict=True))
    assert found[0] == ["a", "b"]
    assert len(found) == len(rows) + 1
    for before, after in zip(rows, found[1:], strict=True):
        for old, new in zip(before[1:], after, strict=True):
            assert not any(holds(new) for holds in SCANNERS)
            if "@" not in old and not any(char.isdigit() for char in old):
                assert new == old


@settings(max_examples=150)
@given(st.binary(max_size=120))
def test_any_bytes_are_scrubbed_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("t")
    for name, text in (
        ("t.csv", CSV),
        ("t.txt", TEXT),
        ("t.jsonl", lines_of(['action = "redact"\npatterns = ["email"]'], "keep")),
        ("t.json", lines_of(['action = "redact"\npatterns = ["email"]'], "keep", "json")),
    ):
        try:
            one(folder, name, b"name,a\n" + data if name == "t.csv" else data, text)
        except CvmError:
            continue


# ---- JSON -----------------------------------------------------------------------------------------------------------


def test_each_action_on_json(tmp_path):
    rules = [
        'action = "tokenise"\nfields = ["id", "visits.*.doctor"]\nas = "p"',
        'action = "generalise"\nfields = ["visits.*.date"]\nto = "year"',
        'action = "drop"\nfields = ["address"]',
        'action = "keep"\nfields = ["meta", "ok"]',
        'action = "redact"\nfields = ["note"]\npatterns = ["email"]',
        'action = "redact"\npatterns = ["card"]',
    ]
    document = {
        "id": 7,
        "address": {"street": "x", "more": [1]},
        "visits": [{"doctor": "7", "date": "2024-01-02"}, {"date": None}],
        "meta": {"source": "s", "list": [1, 2.5, True, None, {"4111111111111111": "c"}]},
        "ok": False,
        "note": "a@b.de 4111111111111111",
    }
    made = json.loads(one(tmp_path, "t.jsonl", json.dumps(document) + "\n\n", lines_of(rules)))
    token = made["id"]
    assert token.startswith("p-")
    assert made == {
        "id": token,
        "visits": [{"doctor": token, "date": "2024"}, {"date": None}],
        "meta": {"source": "s", "list": [1, 2.5, True, None, {"[card]": "c"}]},
        "ok": False,
        "note": "[email] [card]",
    }


def test_a_number_that_a_pattern_finds(tmp_path):
    text = lines_of(['action = "redact"\npatterns = ["card"]'], "keep", "json")
    assert json.loads(one(tmp_path, "t.json", "[4111111111111111, 1.50, 12345678901234567890123]", text)) == [
        "[card]",
        1.5,
        12345678901234567890123,
    ]


@pytest.mark.parametrize(
    "document",
    [
        '{"a": "SECRET"',
        '{"a": 1, "a": "SECRET"}',
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        "[" * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        '{"a": {"b": "SECRET"}}',
        '{"b": "SECRET"}',
        "{} SECRET",
    ],
)
def test_json_that_is_refused(tmp_path, document):
    text = lines_of(['action = "hash"\nfields = ["a"]\nas = "p"'])
    with pytest.raises(FormatError) as refusal:
        one(tmp_path, "t.jsonl", document, text)
    assert "line 1" in refusal.value.message
    assert "SECRET" not in f"{refusal.value.message} {refusal.value.detail}"


def test_two_keys_that_are_one_when_redacted(tmp_path):
    text = lines_of(['action = "redact"\npatterns = ["email"]'], "keep")
    with pytest.raises(FormatError, match="two keys"):
        one(tmp_path, "t.jsonl", '{"a@b.de": 1, "c@d.de": 2}', text)


def test_a_document_that_is_too_large(tmp_path):
    text = lines_of(['action = "redact"\npatterns = ["email"]'], "keep", "json")
    with pytest.raises(FormatError, match="JSON lines"):
        one(tmp_path, "t.json", b'"' + b"x" * (16 << 20) + b'"', text)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), CELL),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["k", "a@b.de", "l"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def texts(value):
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in texts(part)]
    return [text for item in value for text in texts(item)] if isinstance(value, list) else [str(value)]


@settings(max_examples=150)
@given(st.lists(JSON, max_size=4))
def test_no_json_text_that_was_to_go_is_left(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("t")
    text = lines_of(['action = "redact"\npatterns = ["email", "card", "ipv4"]'], "keep")
    written = one(folder, "t.jsonl", "".join(json.dumps(item) + "\n" for item in documents), text)
    found = [json.loads(line) for line in written.split("\n") if line]  # other ends of lines may stand in a text
    for leaf in texts(found):
        assert not any(holds(leaf) for holds in SCANNERS)


# ---- text, and files as a whole -------------------------------------------------------------------------------------


def test_lines_keep_their_ends(tmp_path):
    assert one(tmp_path, "t.txt", "a@b.de\r\nx\ry\n\nlast c@d.de", TEXT) == "[email]\r\nx\ry\n\nlast [email]"


def test_a_line_without_end_is_refused(tmp_path):
    with pytest.raises(FormatError, match="line 2"):
        one(tmp_path, "t.txt", b"x\n" + b"y" * ((1 << 20) + 1), TEXT)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "gone").mkdir()
    (folder / "deep/er/t.txt").write_text("mail a@b.de\n")
    (folder / "deep/run.sh").write_text("#!/bin/sh\n")
    (folder / "deep/run.sh").chmod(0o700)
    (folder / "gone/pic.png").write_bytes(b"\x89PNG")
    return folder


REST = '[[files]]\nmatch = "*.png"\nformat = "drop"\n[[files]]\nmatch = "*.sh"\nformat = "keep"\n'


def test_a_tree(source):
    files, report, found = scrub(source, TEXT + REST)
    assert files == {"deep/er/t.txt": b"mail [email]\n", "deep/run.sh": b"#!/bin/sh\n"}
    assert sorted(found) == ["deep", "deep/er", "deep/er/t.txt", "deep/run.sh"]
    assert [found[name].mode for name in sorted(found)] == [0o755, 0o755, 0o644, 0o755]
    assert {member.mtime for member in found.values()} == {0}
    assert {count.rule: count.changed for count in report.counts} == {
        "*.txt: redact email": 1,
        "*.txt: redact card": 0,
        "*.png: drop file": 1,
    }
    assert [(file.path, file.records) for file in report.files] == [
        ("deep/er/t.txt", 1),
        ("deep/run.sh", 0),
        ("gone/pic.png", 0),
    ]
    assert "a@b.de" not in json.dumps([file.to_json() for file in report.files])


def test_the_first_entry_that_matches_counts(source):
    first = '[[files]]\nmatch = "deep/er/*"\nformat = "drop"\n'
    with pytest.raises(ConfigError, match=r"no file matches '\*\.txt'"):
        scrub(source, first + TEXT + REST)


def test_looking_is_scrubbing_without_a_result(source):
    made = scrubbing(source, TEXT + REST)
    assert made.look() == scrub(source, TEXT + REST)[1]


def test_the_same_twice(source):
    assert scrub(source, TEXT + REST)[1] == scrub(source, TEXT + REST)[1]


def test_a_file_without_an_entry_is_refused(source):
    with pytest.raises(ConfigError, match=r"pic\.png"):
        scrub(source, TEXT + '[[files]]\nmatch = "*.sh"\nformat = "keep"\n')


def test_a_rule_for_what_is_not_there_is_refused(source):
    with pytest.raises(ConfigError, match=r"\*\.csv"):
        scrub(source, TEXT + REST + CSV)
    (source / "t.jsonl").write_text('{"b": 1}\n')
    with pytest.raises(ConfigError, match="field 'a'"):
        scrub(source, TEXT + REST + lines_of(['action = "drop"\nfields = ["a"]'], "keep"))


def test_names_that_tell_something_are_refused(source):
    (source / "a@b.de.txt").write_text("x")
    with pytest.raises(FormatError, match="email"):
        scrub(source, TEXT + REST)


@pytest.mark.parametrize("kind", ["link", "folder link", "fifo", "bytes"])
def test_what_is_no_file_is_refused(source, kind):
    match kind:
        case "link":
            (source / "l.txt").symlink_to("deep/er/t.txt")
        case "folder link":
            (source / "l").symlink_to("deep")
        case "fifo":
            os.mkfifo(source / "f.txt")
        case "bytes":
            (source / os.fsdecode(b"\xff.txt")).write_text("x")
    with pytest.raises(ConfigError):
        scrub(source, TEXT + REST)


def test_nothing_left(source):
    with pytest.raises(ConfigError, match="nothing"):
        scrub(source, '[[files]]\nmatch = "*"\nformat = "drop"\n')


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        scrubbing(tmp_path / "missing", TEXT)


def test_patterns_that_are_not_there(source):
    with pytest.raises(ConfigError, match="there is no pattern 'mail'"):
        scrubbing(source, TEXT.replace('"email"', '"mail"'))
    with pytest.raises(ConfigError, match="built in"):
        scrubbing(source, "[[patterns]]\nname = 'email'\nregex = 'x'\n" + TEXT)


def test_progress_ends_at_the_whole(source):
    told = []
    (source / "large.txt").write_text(f"{'x' * 100}\n" * (1 << 16))
    made = scrubbing(source, TEXT + REST, progress=lambda done, size: told.append((done, size)))
    made.look()
    assert told == sorted(told)
    assert len(told) > 3
    assert {size for _, size in told} == {made.size}
    assert told[-1][0] <= made.size


GROWTH = """
import sys
from pathlib import Path
from tests.unit.data.test_scrub import DROP, scrubbing
for piece in scrubbing(Path(sys.argv[1]), DROP).tar(Path(sys.argv[2])):
    pass
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
DROP = table(['action = "drop"\nfields = ["name"]'], "keep")


def test_memory_does_not_grow_with_the_source(tmp_path):
    """Peak memory over a table of 8 MiB and over one of 40 MiB, each in a process of its own."""
    peaks, sizes = [], (8 << 20, 40 << 20)
    for size in sizes:
        path = tmp_path / f"{size}.csv"
        row = f"Anna Miller,{'some words about nothing in particular ' * 10},12345\n"
        path.write_text("name,note,number\n" + row * (size // len(row)))
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, str(path), str(tmp_path)], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout) << 10)
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 8
