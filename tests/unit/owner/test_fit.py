# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A job that fits, one number changed, and what is said of it. Bounds from both sides."""

from dataclasses import replace

import pytest

from cvmtool.errors import ConfigError, HostError
from cvmtool.owner.fit import (
    QEMU_BYTES,
    TRANSLATOR_BYTES,
    Disk,
    Line,
    Pace,
    Room,
    Verdict,
    Weights,
    amount,
    judge_fit,
    require_fit,
    told_line,
    working_set,
)
from cvmtool.owner.jobfile import JobFile, parse_job_file
from cvmtool.owner.jobneeds import Optimizer, Training
from tests.samples import DIGEST

MIB, GIB = 1 << 20, 1 << 30
HEAD = f"name: j\ncontainer: {{image: 'oci:c', digest: '{DIGEST}'}}\noutputs: {{o: {{kind: file, max: 1MiB}}}}\n"
ROOM = Room(
    simulated=False,
    emulated=False,
    weights=Weights(),
    memory=8 * GIB,
    processors=16,
    asids=3,
    features=frozenset({"avx2"}),
    disks=(Disk(name="packs", device="1", needs=GIB, free=8 * GIB),),
    paces=(),
)


def job(text: str = "") -> JobFile:
    return parse_job_file(HEAD + text)


def line(code: str, text: str = "", **changes) -> Line:
    found = {item.code: item for item in judge_fit(job(text), replace(ROOM, **changes))}
    return found[code]


def test_a_job_that_fits_is_let_through():
    lines = judge_fit(job(), ROOM)
    assert {item.verdict for item in lines} == {Verdict.OK}
    assert [item.code for item in lines] == [
        *("memory.container", "outputs", "memory.host", "processors", "asids", "disk.packs"),
    ]
    require_fit(lines)


@pytest.mark.parametrize(
    ("available", "verdict"),
    [
        (GIB + QEMU_BYTES - 1, Verdict.SHORT),
        (GIB + QEMU_BYTES, Verdict.CLOSE),
        (int((GIB + QEMU_BYTES) / 0.85) - 1, Verdict.CLOSE),
        (int((GIB + QEMU_BYTES) / 0.85) + 1, Verdict.OK),
        (None, Verdict.UNKNOWN),
    ],
)
def test_the_hosts_memory(available, verdict):
    assert line("memory.host", memory=available).verdict is verdict


def test_emulation_needs_more():
    assert line("memory.host", emulated=True).needs == line("memory.host").needs + TRANSLATOR_BYTES
    assert line("memory.host", emulated=True).because == "resources.memory, and 400 MiB for QEMU"


def test_what_training_holds():
    weights = Weights(size=200 * MIB, parameters=100 * MIB)
    whole = Training(trained=1.0, optimizer=Optimizer.ADAM, activations=7)
    assert working_set(whole, weights) == 200 * MIB + 1200 * MIB + 7
    assert working_set(whole, Weights()) == 7
    assert working_set(replace(whole, trained=0.01), weights) == 200 * MIB + 12 * MIB + 7
    assert working_set(replace(whole, optimizer=Optimizer.SGD), weights) == 200 * MIB + 400 * MIB + 7


@pytest.mark.parametrize(("size", "verdict"), [(800, Verdict.CLOSE), (801, Verdict.SHORT), (500, Verdict.OK)])
def test_a_training_that_exceeds_the_containers_limit_is_refused(size, verdict):
    text = "resources: {memory: 1024MiB}\nlimits: {memory: 800MiB}\ntraining: {optimizer: none, trained: 0%}\n"
    found = line("memory.container", text, weights=Weights(size=size * MIB, parameters=1))
    assert found.verdict is verdict
    assert found.has == 800 * MIB


def test_weights_whose_use_is_not_declared_are_warned_of_alone():
    assert line("memory.container", weights=Weights(size=64 * GIB, parameters=1)).verdict is Verdict.CLOSE


def test_outputs_that_cannot_all_be_as_large_as_they_may_are_warned_of():
    text = "limits: {outputs: 1MiB, memory: 700MiB}\n"
    assert line("outputs", text).verdict is Verdict.OK
    larger = HEAD.replace("max: 1MiB", "max: 2MiB") + text
    found = {item.code: item for item in judge_fit(parse_job_file(larger), ROOM)}
    assert found["outputs"].verdict is Verdict.CLOSE


def test_what_a_container_holds_is_its_weights_its_outputs_and_its_scratch():
    limits = "limits: {memory: 800MiB, outputs: 200MiB, scratch: 300MiB}\n"
    found = line("memory.container", limits)
    assert (found.needs, found.has) == (301 * MIB, 800 * MIB)
    assert found.because == "301 MiB of outputs and scratch, which are memory"
    held = line("memory.container", limits, weights=Weights(size=7 * MIB, parameters=1))
    assert held.needs == 308 * MIB
    assert held.because == "7 MiB of weights, 301 MiB of outputs and scratch, which are memory"
    trained = line(
        "memory.container", limits + "training: {optimizer: sgd}\n", weights=Weights(size=MIB, parameters=MIB)
    )
    assert trained.because.startswith("5 MiB of weights, gradients, optimiser and activations, 301 MiB of ")
    many = parse_job_file(HEAD.replace("max: 1MiB", "max: 1GiB") + limits)
    assert judge_fit(many, ROOM)[0].needs == 500 * MIB


def test_fewer_processors_are_slow_and_no_refusal():
    text = "resources: {vcpus: 17}"
    assert line("processors", text).verdict is Verdict.CLOSE
    assert line("processors", text.replace("17", "16")).verdict is Verdict.OK
    assert line("processors", text, processors=None).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(("free", "verdict"), [(0, Verdict.SHORT), (1, Verdict.OK), (None, Verdict.UNKNOWN)])
def test_a_confidential_guest_needs_an_asid(free, verdict):
    assert line("asids", asids=free).verdict is verdict


def test_a_dry_run_needs_no_asid():
    assert "asids" not in {item.code for item in judge_fit(job(), replace(ROOM, simulated=True, asids=0))}


def test_cpu_features():
    text = "resources: {requires: [avx2, avx512f], cpu: EPYC-v4}"
    found = line("cpu", text)
    assert (found.verdict, found.needs, found.has, found.unit, found.host) == (Verdict.SHORT, 2, 1, "features", True)
    assert found.because == "EPYC-v4, lacks avx512f"
    assert found.remedy == "choose another resources.cpu"
    there = line("cpu", text, features=frozenset({"avx2", "avx512f"}))
    assert (there.verdict, there.because, there.remedy) == (Verdict.OK, "EPYC-v4: avx2, avx512f", "")
    unknown = line("cpu", text, features=None)
    assert (unknown.verdict, unknown.because) == (Verdict.UNKNOWN, "EPYC-v4")
    emulated = line("cpu", text, emulated=True)
    assert (emulated.because, emulated.remedy) == (
        "EPYC-v4, emulated, lacks avx512f",
        "emulation has no AVX-512: use a host with KVM",
    )


def test_what_is_told_of_each_need():
    text = "resources: {requires: [avx2]}"
    disks = (
        Disk(name="packs", device="1", needs=GIB, free=None),
        Disk(name="results", device="1", needs=MIB, free=None),
    )
    paces = (Pace(name="seal", size=GIB, rate=512 * MIB), Pace(name="upload", size=GIB, rate=None))
    unknown = {"memory": None, "processors": None, "asids": None, "features": None, "disks": disks, "paces": paces}
    found = judge_fit(job(text), replace(ROOM, **unknown))
    assert [told_line(item) for item in found][1:] == [
        "outputs needs 1 MiB, has 64 MiB (what the outputs may be at most, all together)",
        "memory.host needs 1124 MiB, has unknown (resources.memory, and 100 MiB for QEMU)",
        "processors needs 1 processor, has unknown (resources.vcpus)",
        f"cpu needs 1 feature, has unknown ({job().resources.cpu})",
        "asids needs 1 machine, has unknown (each confidential guest takes an ASID)",
        "disk.packs needs 1025 MiB, has unknown (packs 1024 MiB, results 1 MiB)",
        "time.seal needs 2 s, has unknown (1024 MiB at 512 MiB/s, measured now)",
        "time.upload needs 0 s, has unknown (1024 MiB)",
    ]
    assert {item.code for item in found if item.host} == {"memory.host", "processors", "cpu", "asids"}
    assert not any(item.remedy for item in found)


def test_what_helps_is_told_where_it_is_tight():
    """By what is short, or close to it: each with what its owner can do."""
    text = "resources: {vcpus: 9, memory: 1GiB}\nlimits: {outputs: 1MiB, memory: 16MiB, scratch: 15MiB}\n"
    full = parse_job_file(HEAD.replace("max: 1MiB", "max: 2MiB") + text)
    disks = (
        Disk(name="packs", device="1", needs=2, free=1),
        Disk(name="machines", device="2", needs=2, free=1, host=True),
    )
    found = judge_fit(full, replace(ROOM, memory=1, processors=1, asids=0, disks=disks))
    assert [(item.code, item.remedy) for item in found] == [
        ("memory.container", "raise resources.memory, or limits.memory"),
        ("outputs", "raise limits.outputs"),
        ("memory.host", "lower resources.memory, stop what else runs there, or use a larger host: --host"),
        ("processors", "lower resources.vcpus, or use a larger host: --host"),
        ("asids", "stop another confidential guest there, or raise the BIOS's minimum SEV non-ES ASID"),
        ("disk.packs", "make room there, or set state_dir or --results"),
        ("disk.host", "make room there, or set machines_dir"),
    ]


@pytest.mark.parametrize(("free", "verdict"), [(200, Verdict.CLOSE), (201, Verdict.OK), (169, Verdict.SHORT)])
def test_a_need_is_close_from_85_percent_on(free, verdict):
    disks = (Disk(name="packs", device="1", needs=170, free=free),)
    assert line("disk.packs", disks=disks).verdict is verdict


def test_places_on_one_file_system_share_its_room():
    disks = (
        Disk(name="packs", device="1", needs=5 * GIB, free=8 * GIB),
        Disk(name="results", device="2", needs=5 * GIB, free=8 * GIB),
        Disk(name="machines", device="1", needs=4 * GIB, free=8 * GIB, host=True),
    )
    lines = [item for item in judge_fit(job(), replace(ROOM, disks=disks)) if item.code.startswith("disk")]
    assert [(item.code, item.verdict, item.needs) for item in lines] == [
        ("disk.packs", Verdict.SHORT, 9 * GIB),
        ("disk.results", Verdict.OK, 5 * GIB),
    ]
    assert not lines[0].host


def test_times_are_told_and_never_refused():
    lines = judge_fit(job(), replace(ROOM, paces=(Pace(name="seal", size=GIB, rate=512 * MIB),)))
    assert (lines[-1].code, lines[-1].needs, lines[-1].verdict) == ("time.seal", 2, Verdict.OK)
    unknown = judge_fit(job(), replace(ROOM, paces=(Pace(name="upload", size=GIB, rate=None),)))
    assert unknown[-1].verdict is Verdict.UNKNOWN


def test_what_another_host_may_have_is_the_hosts_failure():
    with pytest.raises(HostError) as refusal:
        require_fit(judge_fit(job(), replace(ROOM, memory=1)))
    assert refusal.value.message == (
        "the job does not fit: memory.host needs 1124 MiB, has 1 MiB (resources.memory, and 100 MiB for QEMU)"
    )
    assert "--host" in refusal.value.hint


def test_what_no_host_has_is_the_job_files():
    disks = (Disk(name="packs", device="1", needs=5 * GIB, free=GIB),)
    with pytest.raises(ConfigError, match=r"for QEMU\); disk\.packs needs"):
        require_fit(judge_fit(job(), replace(ROOM, memory=1, disks=disks)))


def test_what_is_not_known_refuses_nothing():
    nothing = replace(ROOM, memory=None, processors=None, asids=None, features=None, disks=())
    require_fit(judge_fit(job("resources: {requires: [avx2]}"), nothing))


@pytest.mark.parametrize(
    ("count", "unit", "text"),
    [
        (1, "bytes", "1 MiB"),
        (10 * GIB - 1, "bytes", "10240 MiB"),
        (10 * GIB, "bytes", "10.0 GiB"),
        (119, "seconds", "119 s"),
        (120, "seconds", "2 min"),
        (2, "machines", "2 machines"),
        (1, "machines", "1 machine"),
    ],
)
def test_amounts_for_people(count, unit, text):
    assert amount(count, unit) == text
