# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import hashlib
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import ConfigError, CvmError, FormatError, HostError, VerificationError
from cvmtool.flows.results import Outcome, bring_home, check_room, fetch_outputs, read_outcome
from cvmtool.formats.age import sealed_size
from cvmtool.formats.control import Op
from cvmtool.formats.job import MAX_FILES, Output, OutputKind
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
    assert [(item.name, item.size, item.sha256, item.sealed) for item in outcome.outputs] == [
        (item["name"], item["size"], item["sha256"], None) for item in ANSWER["outputs"]
    ]
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
        skip = offset
        for piece in self.pieces[name]:
            if isinstance(piece, Exception):
                raise piece
            if skip < len(piece):
                yield piece[skip:]
            skip = max(0, skip - len(piece))


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
    ],
)
def test_what_is_not_as_announced_has_no_name_and_leaves_no_trace(tmp_path, pieces, error):
    (tmp_path / MODEL).write_bytes(b"old")
    with pytest.raises(error):
        fetch(tmp_path, {MODEL: pieces})
    assert files(tmp_path) == {MODEL: b"old"}


@pytest.mark.parametrize("sealed", [False, True])
def test_a_cut_connection_leaves_a_part_that_the_next_one_goes_on_with(tmp_path, sealed):
    outcome, content = (SEALED_OUTCOME, AGE_FILES) if sealed else (read(), CONTENT)
    data = content[MODEL]
    with pytest.raises(HostError):
        fetch_outputs(Channel(**{MODEL: [data[:5000], HostError("cut")]}), outcome, tmp_path, Progress())
    (part,) = files(tmp_path).values()
    assert part == data[:5000]
    channel = Channel(**{name: [found] for name, found in content.items()})
    fetched = fetch_outputs(channel, outcome, tmp_path, Progress())
    assert channel.asked == [(Op.FETCH, MODEL, 5000), (Op.FETCH, METRICS, 0)]
    ending = ".age" if sealed else ""
    assert files(tmp_path) == {name + ending: found for name, found in content.items()}
    assert [item.path.name.endswith(".age") for item in fetched] == [sealed, sealed]


def test_a_part_that_this_machine_damaged_is_fetched_once_more(tmp_path):
    with pytest.raises(HostError):
        fetch(tmp_path, {MODEL: [CONTENT[MODEL][:5000], HostError("cut")]})
    next(tmp_path.glob(".*.part")).write_bytes(bytes(5000))
    channel = Channel()
    fetch_outputs(channel, read(), tmp_path, Progress())
    assert files(tmp_path) == CONTENT
    assert [offset for _, name, offset in channel.asked if name == MODEL] == [5000, 0]


def test_a_part_of_another_content_is_not_gone_on_with(tmp_path):
    (tmp_path / f".{MODEL}.{'0' * 16}.part").write_bytes(b"of another boot")
    channel = Channel()
    fetch_outputs(channel, read(), tmp_path, Progress())
    assert channel.asked[0] == (Op.FETCH, MODEL, 0)


def test_what_is_there_already_is_not_fetched_again(tmp_path):
    fetch(tmp_path)
    (tmp_path / METRICS).write_bytes(b"[]")
    channel, reporter = Channel(), Progress()
    fetch_outputs(channel, read(), tmp_path, reporter)
    assert channel.asked == [(Op.FETCH, METRICS, 0)]
    assert reporter.seen[-1] == (7002, 7002)


FOLDER = replace(
    MANIFEST,
    outputs=(
        Output(name="model", kind=OutputKind.DIRECTORY, max_bytes=10),
        Output(name="out", kind=OutputKind.FILE, max_bytes=10),
    ),
)


def rows(**sizes):
    return [{**row(MODEL, bytes(size)), "name": name.replace("__", "/")} for name, size in sizes.items()]


def test_files_below_a_declared_directory_are_outputs():
    outcome = read_outcome({**ANSWER, "outputs": rows(model__a=4, model__b__c=6, out=10)}, FOLDER)
    assert [item.name for item in outcome.outputs] == ["model/a", "model/b/c", "out"]


@pytest.mark.parametrize(
    ("outputs", "refused", "named"),
    [
        (rows(model__a=5, model__b=6, out=1), (), "directory model has 11 bytes"),
        (rows(model__a=11, out=1), (), "size"),
        (rows(out=1), (), "directory 'model'"),
        (rows(model__a=1, out=1), ("model",), "directory 'model'"),
        (rows(model=1, out=1), (), "declare"),
        (rows(models__a=1, model__a=1, out=1), (), "declare"),
        (rows(model__a=1, model__a__b=1, out=1), (), "is a file"),
        (rows(model__a=1, out=1) + rows(model__a=1), (), "2 times"),
        ([{**row(MODEL, b""), "name": "model/../../x"}, *rows(out=1)], (), "declare"),
        ([{**row(MODEL, b""), "name": "model/-x"}, *rows(out=1)], (), "declare"),
    ],
)
def test_what_a_directory_does_not_allow_is_refused(outputs, refused, named):
    answer = {**ANSWER, "outputs": outputs, "refused": [{"name": name, "reason": "x"} for name in refused]}
    with pytest.raises(FormatError, match=named):
        read_outcome(answer, FOLDER)


@pytest.mark.parametrize(("outputs", "refused"), [(rows(out=1), "model"), (rows(out=1), "model/a")])
def test_a_directory_may_stay_whole_or_in_part(outputs, refused):
    answer = {**ANSWER, "outputs": outputs, "refused": [{"name": refused, "reason": "a pickle"}]}
    assert read_outcome(answer, FOLDER).refused == ((refused, "a pickle"),)


def test_no_more_files_and_bytes_come_home_than_a_job_may_have():
    large = replace(FOLDER, outputs=(replace(FOLDER.outputs[0], max_bytes=1 << 40), FOLDER.outputs[1]))
    over = [{**item, "size": (large.limits.outputs_mib << 20) + 1} for item in rows(model__a=1)]
    with pytest.raises(FormatError, match="results has"):
        read_outcome({**ANSWER, "outputs": [*over, *rows(out=0)]}, large)
    many = rows(**{f"model__{index}": 0 for index in range(MAX_FILES)})
    with pytest.raises(FormatError, match=f"at most {MAX_FILES}"):
        read_outcome({**ANSWER, "outputs": [*many, *rows(out=0)]}, large)


SEALED_MANIFEST = replace(MANIFEST, recipients=("ab" * 32, "cd" * 32))
AGE_FILES = {name: bytes(sealed_size(len(data), 2)) for name, data in CONTENT.items()}


def sealed_row(name, **change):
    sealed = {"size": len(AGE_FILES[name]), "sha256": hashlib.sha256(AGE_FILES[name]).hexdigest()}
    return {**row(name), "sealed": {**sealed, **change}}


SEALED_OUTCOME = read_outcome({**ANSWER, "outputs": [sealed_row(MODEL), sealed_row(METRICS)]}, SEALED_MANIFEST)


@pytest.mark.parametrize(
    ("outputs", "manifest", "named"),
    [
        ([row(MODEL), sealed_row(METRICS)], SEALED_MANIFEST, "sealed"),
        ([sealed_row(MODEL, size=7000), sealed_row(METRICS)], SEALED_MANIFEST, "are required"),
        ([sealed_row(MODEL, sha256="ab"), sealed_row(METRICS)], SEALED_MANIFEST, "sha256"),
        ([sealed_row(MODEL), sealed_row(METRICS)], MANIFEST, "no recipients"),
    ],
)
def test_outputs_are_sealed_if_the_job_says_so_and_only_then(outputs, manifest, named):
    with pytest.raises(FormatError, match=named):
        read_outcome({**ANSWER, "outputs": outputs}, manifest)


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
    assert (tmp_path / MODEL).read_bytes() == CONTENT[MODEL]
    assert not (tmp_path / METRICS).exists()


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
