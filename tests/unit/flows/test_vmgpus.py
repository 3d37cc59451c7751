# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Machines with GPUs from start to end, command by command, on a host that gives them what it likes (tests.fakes.gpuhost)."""

import json
import threading
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.cli.render import JsonReporter
from cvmtool.config import load_settings
from cvmtool.errors import AppraisalError, ConfigError, FormatError
from cvmtool.flows import platform, vms
from cvmtool.flows.collateral import KeyService, Store
from cvmtool.flows.gpu import GpuWish, NvidiaCollateral
from cvmtool.flows.platform import SevSnp
from cvmtool.flows.prepare import load_keys
from cvmtool.flows.vmrecords import find_vm, load_vm
from cvmtool.flows.vms import Wanted, open_vm, start_vm
from cvmtool.flows.vmsession import session
from cvmtool.flows.vmstate import Milestone
from cvmtool.flows.vmwatch import watch
from cvmtool.formats.job import Resources
from cvmtool.formats.release import Secrets
from cvmtool.host.channel import GuestError
from cvmtool.image.bundle import load_bundle
from cvmtool.owner.amdroots import SimulatedRoot
from cvmtool.owner.checks import NotGenuineError
from cvmtool.owner.gpu import StaleGpuError
from cvmtool.owner.gpupolicy import encode_gpu_policy
from cvmtool.owner.jobfile import Restart
from cvmtool.owner.ocsp import status_path
from cvmtool.owner.policy import baseline
from cvmtool.owner.policyfile import encode_policy
from cvmtool.owner.seal import seal
from tests import fakes
from tests.fakes.gpuhost import GpuHost
from tests.fakes.nvidia import NOW, FakeNvidia
from tests.samples import JOB_YAML
from tests.unit.flows.runs import prepared_job
from tests.unit.flows.test_gpu import GPU, NVIDIA, Services
from tests.unit.guest.test_gpu import driver, library  # noqa: F401 - fixtures
from tests.unit.image.images import make_image
from tests.unit.owner.test_gpupolicy import POLICY

ADDRESSES = ["0000:41:00.0", "0000:c1:00.0"]
OTHER = NVIDIA.gpu("0002")
BOTH = replace(POLICY, devices=frozenset({"41431d480fe5e87274", "0002"}))
ACCEPTED = encode_policy(
    baseline(
        roots=SimulatedRoot(fakes.fake_amd().root_fingerprint),
        measurements=frozenset({b"\1" * 48}),
        host_data=frozenset({b"\1" * 32}),
    )
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load_bundle(make_image(tmp_path_factory.mktemp("image") / "base"))


@pytest.fixture
def services():
    found = Services()
    path = status_path(OTHER.brom.certificate, NVIDIA.identity.certificate)
    found.answers[path] = NVIDIA.status(OTHER.brom, NVIDIA.identity)
    with found.serving() as url:
        found.url = url
        yield found


@pytest.fixture
def host(tmp_path, monkeypatch, driver, services, bundle):  # noqa: F811
    """The host of every command; its GPUs are the two of the policy."""
    settings = load_settings()
    found = GpuHost(settings, tmp_path, driver)
    found.gpus = (GPU, OTHER)
    found.policies = []

    def sev_snp(settings, *, key_service, gpu_policy=None):
        assert key_service
        found.policies.append(gpu_policy)
        service = KeyService(services.url, attempts=1)
        collateral = NvidiaCollateral(
            store=Store(tmp_path / "kept"), manifests=service, statuses=service, roots=NVIDIA.roots
        )
        return SevSnp(
            store=Store(tmp_path / "kds"),
            service=None,
            gpu_policy=gpu_policy,
            gpu_collateral=None if gpu_policy is None else collateral,
        )

    monkeypatch.setattr(vms, "sev_snp", sev_snp)
    monkeypatch.setattr(platform, "datetime", SimpleNamespace(now=lambda _zone: NOW))
    monkeypatch.setattr("cvmtool.flows.images.bring_up_to_date", lambda *_, **__: bundle)
    for module in ("vms", "machine", "vmlist"):
        monkeypatch.setattr(f"cvmtool.flows.{module}.open_host", found.open)
    monkeypatch.setitem(start_vm.__kwdefaults__, "reach", found.open)
    return found


@pytest.fixture
def files(tmp_path):
    (tmp_path / "gpus.toml").write_text(encode_gpu_policy(BOTH))
    (tmp_path / "policy.toml").write_text(ACCEPTED)
    return tmp_path


def vm(*arguments):
    return CliRunner().invoke(app, ["vm", *arguments])


def document(result):
    """Return a command's last line of JSON."""
    assert result.exception is None, result.exception
    return json.loads(result.stdout.splitlines()[-1])


def start(files, *more, gpus=ADDRESSES, volumes=("--volume", "data:256MiB")):
    named = [word for address in gpus for word in ("--gpu", address)]
    options = ["--gpu-policy", str(files / "gpus.toml"), "--policy", str(files / "policy.toml"), *volumes]
    return vm("start", "base", "--name", "one", *named, *options, "--host", "qemu:///system", "--json", *more)


def given(xml):
    """Return the buses of the GPUs that a domain is given."""
    return [device.find("source/address").get("bus") for device in ET.fromstring(xml).findall("devices/hostdev")]


def record():
    return load_vm(load_settings().vms_dir, "one").record


def released():
    return [note.released for attempt in record().attempts for note in attempt.sessions]


# ---- as it should go ------------------------------------------------------------------------------------------------


def test_a_machine_gets_its_gpus_and_its_keys_once_both_were_verified(host, files):
    started = document(start(files))
    assert started["gpus"] == {"addresses": ADDRESSES, "verified": None}
    assert given(host.xml) == ["0x41", "0xc1"]
    assert host.guest.manifest.resources.gpus == 2  # what HOST_DATA commits to
    assert host.guest.facts.host_data == host.guest.manifest.host_data

    attested = document(vm("attest", "one", "--json"))
    assert (attested["state"], attested["ready"]) == ("attested", False)
    verified = attested["gpus"]["verified"]
    assert verified["devices"] == ["41431d480fe5e87274", "0002"]
    assert {"gpu-count", "gpu-nonce", "gpu-measurements"} <= {check["code"] for check in verified["checks"]}
    assert all(check["passed"] for check in verified["checks"])
    assert (host.guest.keys_of, host.works) == ({}, False)

    unlocked = document(vm("unlock", "one", "--json"))
    assert (unlocked["state"], unlocked["gpus"]["verified"]["devices"]) == ("unlocked", verified["devices"])
    uuid = unlocked["volumes"][0]["uuid"]
    assert host.guest.keys_of == {"data": load_keys(load_settings()).volume_passphrase(uuid)}
    assert host.works
    assert released() == [False, True]
    assert set(host.policies) == {BOTH}  # of every command, from the record


def test_a_machine_without_volumes_is_told_to_work_once_its_gpus_were_verified(host, files):
    start(files, volumes=())
    assert document(vm("attest", "one", "--json"))["state"] == "attested"
    assert not host.works
    assert document(vm("unlock", "one", "--json"))["state"] == "unlocked"
    assert host.works


def test_what_was_verified_is_said_to_people_and_kept(host, files):
    start(files)
    shown = vm("attest", "one")
    assert (
        "2 GPUs of its host (0000:41:00.0, 0000:c1:00.0); verified just now: 41431d480fe5e87274, 0002" in shown.stdout
    )
    assert "gpu measurements" in shown.stderr
    assert "they were not asked just now" in vm("status", "--no-ask", "one").stdout
    assert document(vm("status", "one", "--json"))["gpus"]["verified"]["devices"]
    folder = load_vm(load_settings().vms_dir, "one").path
    assert json.loads((folder / "verdict.json").read_text())["gpus"]["devices"] == ["41431d480fe5e87274", "0002"]
    assert len(json.loads((folder / "gpu-evidence.json").read_text())["gpus"]) == 2


def test_events_say_what_was_verified_of_each(host, files):
    start(files)
    events = [json.loads(line) for line in vm("unlock", "one", "--json").stdout.splitlines()]
    (verdict,) = [event for event in events if event.get("event") == "gpu-verdict"]
    assert verdict["devices"] == ["41431d480fe5e87274", "0002"]
    assert [event["text"] for event in events if event.get("stage") == "attest" and event.get("state") == "begun"] == [
        "judging its evidence",
        "judging the evidence of its GPUs",
    ]


def test_a_machine_that_is_started_again_has_the_same_gpus_and_proves_them_again(host, files):
    start(files)
    vm("unlock", "one")
    assert document(vm("stop", "one", "--json"))["state"] == "defined"
    host.xml = ""
    assert document(vm("start", "one", "--json"))["gpus"]["addresses"] == ADDRESSES
    assert given(host.xml) == ["0x41", "0xc1"]
    assert not host.works
    assert document(vm("unlock", "one", "--json"))["gpus"]["verified"]
    assert (sorted(host.guest.keys_of), host.works, len(host.boots)) == (["data"], True, 2)


def test_a_machine_whose_gpu_failed_ends_in_order(host, files):
    start(files)
    vm("unlock", "one")
    host.gpus = ()
    assert isinstance(vm("attest", "one").exception, AppraisalError)
    assert document(vm("stop", "one", "--json"))["state"] == "defined"
    assert record().milestone is Milestone.DEFINED


# ---- a host that attacks --------------------------------------------------------------------------------------------


def refused(host, files, error, *, codes=()):
    """Every command that would say something good of the machine refuses, and the guest gets nothing."""
    for command in ("attest", "unlock", "ssh", "status"):
        found = vm(command, "one").exception
        assert isinstance(found, error), (command, found)
        assert {finding.code for finding in getattr(found, "findings", ())} == set(codes)
    assert (host.guest.keys_of, host.works) == ({}, False)
    assert record().milestone is Milestone.STARTED
    assert not any(released())
    shown = document(vm("status", "--no-ask", "one", "--json"))
    assert (shown["state"], shown["ready"], shown["gpus"]["verified"]) == ("starting", False, None)
    assert shown["error"]


@pytest.mark.parametrize("volumes", [("--volume", "data:256MiB"), ()], ids=["volumes", "none"])
def test_a_host_that_gives_fewer_gpus_gets_no_volume_key(host, files, volumes):
    host.gpus = (GPU,)
    start(files, volumes=volumes)
    refused(host, files, AppraisalError, codes=["gpu-count"])


def test_a_host_that_gives_more_gpus_gets_no_volume_key(host, files):
    start(files, gpus=ADDRESSES[:1])
    refused(host, files, AppraisalError, codes=["gpu-count"])


def test_a_host_that_gives_one_gpu_twice_gets_no_volume_key(host, files):
    host.gpus = (GPU, GPU)
    start(files)
    refused(host, files, AppraisalError, codes=["gpu-identity"])


def test_evidence_of_another_session_gets_no_volume_key(host, files):
    """Genuine GPUs, which vouched for another guest or an earlier session."""
    host.replay = b"E" * 64
    start(files)
    refused(host, files, StaleGpuError)


def test_gpus_that_are_not_nvidias_get_no_volume_key(host, files):
    forger = FakeNvidia()
    host.gpus = (forger.gpu(), forger.gpu("0002"))
    start(files)
    refused(host, files, NotGenuineError)


def test_a_gpu_that_nobody_trusts_gets_no_volume_key(host, files):
    host.gpus = (GPU, NVIDIA.gpu("0003"))
    start(files)
    found = vm("unlock", "one").exception
    assert "gpu-device" in {finding.code for finding in found.findings}
    assert (host.guest.keys_of, host.works) == ({}, False)


def test_a_guest_whose_driver_answers_nothing_gets_no_volume_key(host, files, driver):  # noqa: F811
    start(files)
    host.gpus = ()
    (driver / "state").write_bytes(bytes(3))  # confidential computing is off
    for command in ("attest", "unlock", "ssh"):
        assert isinstance(vm(command, "one").exception, GuestError)
    assert (host.guest.keys_of, host.works, record().milestone) == ({}, False, Milestone.STARTED)


def test_gpus_that_are_taken_away_after_the_first_verdict_get_no_volume_key(host, files):
    start(files)
    assert document(vm("attest", "one", "--json"))["gpus"]["verified"]
    host.gpus = (GPU,)
    assert isinstance(vm("unlock", "one").exception, AppraisalError)
    assert (host.guest.keys_of, host.works) == ({}, False)


def test_a_guest_that_its_host_started_anew_is_not_said_to_be_unlocked(host, files):
    start(files)
    vm("unlock", "one")
    host.start("one")
    host.gpus = (GPU,)
    assert isinstance(vm("attest", "one").exception, AppraisalError)
    assert record().milestone is Milestone.STARTED
    assert (host.guest.keys_of, host.works) == ({}, False)


def test_what_one_session_verified_seals_nothing_in_another(host, files):
    start(files)
    settings, found = load_settings(), []
    for _ in range(2):
        opened = open_vm(load_vm(settings.vms_dir, "one"), settings, JsonReporter())
        with session(opened, stage=JsonReporter().stage) as seen:
            found.append(seen)
    manifest = load_vm(settings.vms_dir, "one").manifest()
    sealed = partial(seal, found[1].attached.guest, Secrets(volumes={}), manifest=manifest)
    assert sealed(gpus=found[1].gpus)
    with pytest.raises(ValueError, match="another session's"):
        sealed(gpus=found[0].gpus)
    with pytest.raises(TypeError):
        sealed()


class Listening(JsonReporter):
    def __init__(self):
        self.standing_by = threading.Event()

    def notice(self, text):
        if text.endswith("standing by"):
            self.standing_by.set()


def test_a_machine_that_comes_back_with_fewer_gpus_is_given_up(host, files):
    start(files, "--restart", "on-failure")
    settings, reporter, ended = load_settings(), Listening(), []

    def stand_by():
        try:
            watch(load_vm(settings.vms_dir, "one"), settings, reporter, stage=reporter.stage)
        except AppraisalError as error:
            ended.append(error)

    watching = threading.Thread(target=stand_by)
    watching.start()
    assert reporter.standing_by.wait(60)
    assert (sorted(host.guest.keys_of), host.works) == (["data"], True)
    host.gpus = (GPU,)
    host.die()
    watching.join(60)
    assert [[finding.code for finding in error.findings] for error in ended] == [["gpu-count"]]
    assert (len(host.boots), host.guest.keys_of, host.works) == (2, {}, False)


# ---- what is refused before anything is started ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--gpu", "0000:41:00.0"], "1 GPUs are named and no GPU policy is given"),
        (["--gpu-policy", "gpus.toml"], "a GPU policy is given and no GPU is named"),
        (["--gpu", "41:00.0", "--gpu-policy", "gpus.toml"], "GPU address"),
        (["--gpu", "0000:41:00.0", "--gpu", "0000:41:00.0", "--gpu-policy", "gpus.toml"], "twice"),
        (["--gpu", "0000:41:00.0", "--gpu-policy", "policy.toml"], "gpu policy"),
        (["--gpu", "0000:41:00.0", "--gpu-policy", "nowhere.toml"], "cannot be read"),
        (["--gpu", "0000:41:00.0", "--gpu-policy", "gpus.toml", "--dry-run"], "a dry run has none"),
    ],
)
@pytest.mark.parametrize("command", [["start", "base"], ["render", "job.yaml"]], ids=["start", "render"])
def test_options_that_do_not_fit_are_refused_first(host, files, monkeypatch, words, complaint, command):
    monkeypatch.chdir(files)
    monkeypatch.setattr("cvmtool.flows.images.bring_up_to_date", lambda *_, **__: pytest.fail("an image was built"))
    found = vm(*command, *words).exception
    assert isinstance(found, ConfigError)
    assert complaint in found.message
    assert find_vm(load_settings().vms_dir, "base") is None
    assert host.xml == ""


@pytest.fixture
def job(files, monkeypatch):
    """The file of a job that wants two GPUs, whose inputs nobody seals."""
    prepared = prepared_job(files, load_settings())
    wanted = replace(prepared.manifest, resources=replace(prepared.manifest.resources, gpus=2))
    monkeypatch.setattr("cvmtool.flows.prepare.prepare", lambda *_, **__: replace(prepared, manifest=wanted))
    path = files / "job.yaml"
    path.write_text(JOB_YAML.replace("cpu: EPYC-Genoa", "cpu: EPYC-Genoa, gpus: 2"))
    return str(path)


def test_the_domain_of_a_job_with_gpus_is_shown(host, files, job):
    named = [word for address in ADDRESSES for word in ("--gpu", address)]
    policy = ("--gpu-policy", str(files / "gpus.toml"))
    shown = document(vm("render", job, *named, *policy, "--host", "qemu:///system", "--json"))
    assert given(shown["xml"]) == ["0x41", "0xc1"]
    for words, complaint in (
        ((*named[:2], *policy), "1 GPUs of the host are named; the job wants 2"),
        ((), "0 GPUs of the host are named; the job wants 2"),
        (("--dry-run",), "a dry run has none"),
    ):
        assert complaint in vm("render", job, *words).exception.message


def test_a_dry_run_takes_no_gpus_from_the_library_either(host, bundle):
    wanted = Wanted(
        name="one",
        bundle=bundle,
        resources=Resources(vcpus=1, memory_mib=512, cpu="EPYC-Genoa"),
        shell=False,
        restart=Restart.NEVER,
        simulated=True,
        gpus=GpuWish.named(ADDRESSES, encode_gpu_policy(BOTH)),
    )
    with pytest.raises(ConfigError, match="a dry run has none"):
        start_vm(wanted, load_settings(), JsonReporter(), reach=host.open)
    assert find_vm(load_settings().vms_dir, "one") is None


def test_a_machine_keeps_the_gpus_that_it_has(host, files):
    start(files)
    again = vm("start", "one", "--gpu", ADDRESSES[0], "--gpu-policy", str(files / "gpus.toml"))
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    assert record().gpus == ADDRESSES


def _forget_gpus(folder):
    folder.record.gpus = []
    folder.save()


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda folder: (folder.path / "gpu-policy.toml").unlink(), ConfigError),
        (lambda folder: (folder.path / "gpu-policy.toml").write_text(""), ConfigError),
        (_forget_gpus, ConfigError),
        (lambda folder: folder.write("vm.json", b"{}"), FormatError),
    ],
    ids=["no policy", "another policy", "no addresses", "no record"],
)
def test_a_record_that_is_not_whole_opens_nothing(host, files, damage, error):
    start(files)
    damage(load_vm(load_settings().vms_dir, "one"))
    assert isinstance(vm("unlock", "one").exception, error)
    assert (host.guest.keys_of, host.works) == ({}, False)
