# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import hashlib
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError, CvmError, FormatError, HostError, VerificationError
from cvmtool.flows.results import Outcome, bring_home, check_room, fetch_outputs, read_outcome
from cvmtool.formats.control import Op
from cvmtool.formats.wire import canonical_json
from tests import samples
from tests.unit.formats.test_wire import JSON

MANIFEST = samples.manifest()
MODEL, METRICS = (output.name for output in MANIFEST.outputs)
CONTENT = {MODEL: b"weights" * 1000, METRICS: b"{}"}


def row(name, content=None):
    data = CONTENT[name] if content is None else content
    return {"name": name, "kind": "file", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


ANSWER = {
    "ok": True,
    "exit_code": 0,
    "cause": "exited",
    "outputs": [row(MODEL), row(METRICS)],
    "refused": [],
    "log": {"size": 3, "sha256": "ab" * 32},
    "receipt": {"payload": "x"},
}


def read(**changes):
    return read_outcome({**ANSWER, **changes}, MANIFEST)


def test_an_answer_is_read():
    outcome = read()
    assert outcome.exit_code == 0
    assert outcome.outputs == tuple((item["name"], item["size"], item["sha256"]) for item in ANSWER["outputs"])
    assert (outcome.log_size, outcome.log_sha256, outcome.cause) == (3, "ab" * 32, "exited")
    assert outcome.receipt == canonical_json(ANSWER["receipt"])


def test_what_was_refused_is_told_also_if_nobody_declared_it():
    refused = [{"name": METRICS, "reason": "missing"}, {"name": "core", "reason": "not declared"}]
    outcome = read(outputs=[row(MODEL)], refused=refused)
    assert outcome.refused == ((METRICS, "missing"), ("core", "not declared"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"outputs": [row(MODEL), row(METRICS), {**row(MODEL), "name": "extra"}]}, "extra"),
        ({"outputs": [row(MODEL), row(METRICS), {**row(MODEL), "name": "../x"}]}, "declare"),
        ({"outputs": [row(MODEL), row(METRICS), row(METRICS)]}, "2 times"),
        ({"outputs": [row(MODEL)]}, "0 times"),
        ({"refused": [{"name": MODEL, "reason": "x"}]}, "2 times"),
        ({"outputs": [row(MODEL), {**row(METRICS), "size": 4097}]}, "size"),
        ({"outputs": [row(MODEL), {**row(METRICS), "size": -1}]}, "size"),
        ({"outputs": [row(MODEL), {**row(METRICS), "size": True}]}, "size"),
        ({"outputs": [row(MODEL), {**row(METRICS), "sha256": "ab"}]}, "sha256"),
        ({"outputs": [row(MODEL), METRICS]}, "outputs"),
        ({"outputs": None}, "outputs"),
        ({"refused": ["x"]}, "refused"),
        ({"refused": [{"name": "x"}]}, "reason"),
        ({"exit_code": None}, "exit_code"),
        ({"exit_code": 256}, "exit_code"),
        ({"exit_code": -9}, "exit_code"),
        ({"log": None}, "log"),
        ({"log": {"size": "3", "sha256": "ab" * 32}}, "size"),
        ({"log": {"size": 3}}, "sha256"),
        ({"receipt": "x"}, "receipt"),
        ({"receipt": {"a": 1.5}}, "canonical"),
        ({"cause": None}, "cause"),
    ],
)
def test_an_answer_out_of_shape_is_refused_and_named(changes, named):
    with pytest.raises(FormatError, match=named):
        read(**changes)


@given(st.sampled_from(sorted(ANSWER)), JSON)
def test_any_answer_is_an_outcome_or_a_format_error(key, value):
    with contextlib.suppress(FormatError):
        assert isinstance(read(**{key: value}), Outcome)


class Channel:
    """Gives the prepared pieces of each output; an exception among them is raised."""

    def __init__(self, **pieces):
        self.pieces = {name: [data] for name, data in CONTENT.items()} | pieces
        self.asked = []

    def stream(self, op, *, name, offset):
        self.asked.append((op, name, offset))
        for piece in self.pieces[name]:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class Progress:
    def __init__(self):
        self.seen = []

    def progress(self, done, total):
        self.seen.append((done, total))


def fetch(folder, pieces=None, reporter=None):
    return fetch_outputs(Channel(**(pieces or {})), read(), folder, reporter or Progress())


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_outputs_come_home_whole(tmp_path):
    fetched = fetch(tmp_path / "new/results")
    assert files(tmp_path / "new/results") == CONTENT
    assert [(item.name, item.path, item.size) for item in fetched] == [
        (name, tmp_path / "new/results" / name, len(data)) for name, data in CONTENT.items()
    ]


def test_each_output_is_asked_for_from_its_beginning(tmp_path):
    channel = Channel()
    fetch_outputs(channel, read(), tmp_path, Progress())
    assert channel.asked == [(Op.FETCH, MODEL, 0), (Op.FETCH, METRICS, 0)]


def test_progress_goes_over_all_outputs(tmp_path):
    reporter = Progress()
    data = CONTENT[MODEL]
    fetch(tmp_path, {MODEL: [data[:10], data[10:]]}, reporter)
    assert reporter.seen == [(10, 7002), (7000, 7002), (7002, 7002)]


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([b"weights" * 999], VerificationError),
        ([b"weights" * 1000, b"!"], VerificationError),
        ([b"weights" * 1000 + b"!"], VerificationError),
        ([b"Weights" + b"weights" * 999], VerificationError),
        ([], VerificationError),
        ([b"weights", HostError("the connection broke")], HostError),
    ],
)
def test_what_is_not_as_announced_has_no_name_and_leaves_no_trace(tmp_path, pieces, error):
    (tmp_path / MODEL).write_bytes(b"old")
    with pytest.raises(error):
        fetch(tmp_path, {MODEL: pieces})
    assert files(tmp_path) == {MODEL: b"old"}


def test_a_stream_without_end_is_left_at_the_announced_size(tmp_path):
    def endless():
        while True:
            yield b"x" * 5000

    with pytest.raises(VerificationError, match="longer"):
        fetch(tmp_path, {MODEL: endless()})
    assert files(tmp_path) == {}


def test_what_was_whole_before_a_failure_stays(tmp_path):
    with pytest.raises(HostError):
        fetch(tmp_path, {METRICS: [HostError("gone")]})
    assert files(tmp_path) == {MODEL: CONTENT[MODEL]}


def test_a_folder_that_cannot_be_written_is_a_config_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "logs").write_bytes(b"in the way of logs/metrics.json")
    for folder in (tmp_path / "file", tmp_path / "file/below", tmp_path):
        with pytest.raises(ConfigError) as refusal:
            fetch(folder)
        assert isinstance(refusal.value, CvmError)


def test_outputs_that_their_folder_cannot_take_are_rescued(tmp_path):
    notices = []
    reporter = SimpleNamespace(notice=notices.append, progress=lambda _done, _total: None)
    (tmp_path / "full").write_text("not a directory")
    folder, outputs = bring_home(Channel(), read(), tmp_path / "full", rescue=tmp_path / "rescue", reporter=reporter)
    assert folder == tmp_path / "rescue"
    assert {item.path.read_bytes() for item in outputs} == set(CONTENT.values())
    assert str(tmp_path / "rescue") in notices[0]


def test_a_job_that_delivers_nothing_still_has_a_folder_for_its_receipt(tmp_path):
    refused = [{"name": name, "reason": "missing"} for name in CONTENT]
    outcome = read(outputs=[], refused=refused)
    assert fetch_outputs(Channel(), outcome, tmp_path / "results", Progress()) == ()
    assert (tmp_path / "results").is_dir()


class Notices(list):
    notice = list.append


def test_room_for_results_is_looked_for_before_a_run(tmp_path):
    told = Notices()
    check_room(tmp_path / "results" / "x", MANIFEST, told)
    assert told == []
    assert list(tmp_path.iterdir()) == []


def test_a_small_disk_is_noticed(tmp_path, monkeypatch):
    free = min(sum(item.max_bytes for item in MANIFEST.outputs), MANIFEST.limits.outputs_mib << 20) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))
    told = Notices()
    check_room(tmp_path, MANIFEST, told)
    assert len(told) == 1


def test_results_below_a_file_are_refused_before_a_run(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as refused:
        check_room(tmp_path / "file" / "results", MANIFEST, Notices())
    assert refused.value.hint == "--results DIR"
