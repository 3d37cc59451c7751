# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A source in clear becomes a pack of what a pipeline leaves; its signed header tells what was done."""

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cvmtool.data.pseudonyms import Pseudonyms
from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows.packfile import Source as PackSource
from cvmtool.flows.packfile import check_pack, open_pack, pack_to_file, read_pack, sidecar_of
from cvmtool.flows.packs import tree_digest
from cvmtool.flows.scrub import look_through, read_pipeline, scrub_to_file
from cvmtool.formats.packheader import Action, ContentKind, Metadata, Sensitivity, encode_header, parse_pack_header
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.packsign import refuse_unscrubbed

KEYS, OTHER = OwnerKeys(b"seed" * 8), OwnerKeys(b"SEED" * 8)
PERSONAL = Metadata(sensitivity=Sensitivity.PERSONAL)
PIPELINE = """\
schema = "cvmtool/scrub/v1"
key = "study"

[[files]]
match = "*.csv"
format = "csv"
others = "keep"

[[files.rules]]
action = "hash"
fields = ["id"]
as = "person"

[[files.rules]]
action = "redact"
patterns = ["email"]

[[files]]
match = "*.bin"
format = "keep"
"""


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "sub-2").mkdir(parents=True)
    (folder / "sub").mkdir()
    (folder / "sub/a.csv").write_text("id,note\n7,mail ANNA@example.org\n")
    (folder / "sub-2/large.csv").write_text("id,note\n" + "7,mail ANNA@example.org\n" * 60_000)
    (folder / "x.bin").write_bytes(bytes(range(256)))
    return folder


@pytest.fixture
def pipeline(tmp_path):
    (tmp_path / "scrub.toml").write_text(PIPELINE)
    return read_pipeline(tmp_path / "scrub.toml")


def make(source, pipeline, out, **changes):
    return scrub_to_file(source, pipeline, out, **{"name": "data", "metadata": PERSONAL, "keys": KEYS, **changes})


def test_what_comes_out(source, pipeline, tmp_path):
    header, report = make(source, pipeline, tmp_path / "p")
    assert check_pack(tmp_path / "p").header == header
    open_pack(tmp_path / "p", tmp_path / "opened", keys=KEYS)
    assert tree_digest(tmp_path / "opened").hex() == header.content.digest.removeprefix("sha256:")
    opened = tmp_path / "opened"
    assert (opened / "x.bin").read_bytes() == bytes(range(256))
    hashed = Pseudonyms(KEYS.scrub_key("study")).hash("person", "7", 64)
    assert (opened / "sub/a.csv").read_text() == f"id,note\n{hashed},mail [email]\n"
    assert report.digest == header.content.digest


def test_the_header_tells_what_was_done(source, pipeline, tmp_path):
    header, report = make(source, pipeline, tmp_path / "p")
    assert parse_pack_header(encode_header(header)) == header
    scrubbed, packed = header.lineage
    assert (scrubbed.action, packed.action) == (Action.SCRUBBED, Action.PACKED)
    assert (scrubbed.pipeline, scrubbed.counts) == (pipeline.digest, report.counts)
    assert {count.rule: count.changed for count in scrubbed.counts} == {
        "*.csv: hash id": 60_001,
        "*.csv: redact email": 60_001,
    }
    assert header.scrubbed


def test_a_job_takes_it(source, pipeline, tmp_path):
    header, _ = make(source, pipeline, tmp_path / "p")
    assert refuse_unscrubbed({"data": header}, ()) == ()


def test_the_same_content_twice_and_for_nobody_else(source, pipeline, tmp_path):
    first, _ = make(source, pipeline, tmp_path / "p")
    again, _ = make(source, pipeline, tmp_path / "q")
    other, _ = make(source, pipeline, tmp_path / "r", keys=OTHER)
    assert first.content == again.content
    assert first.pack.root_hash != again.pack.root_hash
    assert first.content != other.content
    assert look_through(source, pipeline, keys=KEYS).digest == first.content.digest


def test_another_key_of_the_pipeline_is_another_hash(source, pipeline, tmp_path):
    (tmp_path / "other.toml").write_text(PIPELINE.replace('"study"', '"other"'))
    other = look_through(source, read_pipeline(tmp_path / "other.toml"), keys=KEYS)
    assert other.digest != look_through(source, pipeline, keys=KEYS).digest


def test_a_refusal_leaves_nothing(source, pipeline, tmp_path):
    (source / "z.csv").write_text("id,note\n7\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(FormatError, match=r"z\.csv: line 2"):
        make(source, pipeline, tmp_path / "p")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_pack_is_no_source(source, pipeline, tmp_path):
    pack_to_file(
        PackSource(reference=str(source), kind=ContentKind.TREE), tmp_path / "p", name="x", metadata=PERSONAL, keys=KEYS
    )
    with pytest.raises(ConfigError, match="in clear"):
        make(tmp_path / "p", pipeline, tmp_path / "q")
    with pytest.raises(ConfigError, match="exists"):
        make(source, pipeline, tmp_path / "p")
    assert not read_pack(tmp_path / "p").header.scrubbed


def test_no_clear_text_on_a_disk(source, pipeline, tmp_path):
    """While a pack is made, every file that this process has open below the target is read: none holds the source's words."""
    out = tmp_path / "out"
    out.mkdir()
    seen, done = [], threading.Event()

    def watch():
        while not done.is_set():
            for descriptor in Path("/proc/self/fd").iterdir():
                with suppress(OSError):
                    if str(descriptor.readlink()).startswith(f"{out}/"):
                        seen.append(descriptor.read_bytes())
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    make(source, pipeline, out / "p")
    done.set()
    watcher.join()
    assert any(len(data) > 1 << 20 for data in seen)
    for data in [*seen, (out / "p").read_bytes(), sidecar_of(out / "p").read_bytes()]:
        assert b"example.org" not in data
        assert b"[email]" not in data


def test_pipelines_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_pipeline(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("schema = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        read_pipeline(tmp_path / "bad.toml")
