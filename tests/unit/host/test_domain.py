# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.config import resources
from cvmtool.errors import ConfigError, HostError
from cvmtool.formats.channel import AGENT_PORT, CLIENT_PORTS, PSP_PORT
from cvmtool.host.domain import USER_NETWORK, Disk, DomainSpec, Placement, Simulation, domain_uuid, render_domain
from cvmtool.host.live import is_ours, parse_live_domain, require_same

HOSTILE = """'<&">]]>{{ 7*7 }}{% raw %}&amp;</metadata>"""
SPEC = DomainSpec(
    name="digits-1120-221500-ab12",
    job="digits",
    image="base",
    emulator="/usr/bin/qemu-system-x86_64",
    host_data="0a" * 32,
    policy="0x30000",
    memory_mib=1024,
    vcpus=2,
    cpu="EPYC-Genoa",
    firmware="/m/firmware.fd",
    kernel="/m/vmlinuz",
    initrd="/m/initrd",
    cmdline="console=ttyS0 cvmtool.root=ab cvmtool.dryrun=1",
    launch=Simulation(hash_table="/m/hashes.bin", hash_table_gpa=0x810C00),
    disks=(Disk(path="/m/rootfs.img", serial="cvmtool-root"), Disk(path="/m/pack-data.img", serial="0a" * 10)),
    console="/m/console.log",
)
TEMPLATES = resources("templates")


def render(**changes):
    return render_domain(replace(SPEC, **changes), TEMPLATES)


def test_the_domain_is_the_golden_one(golden):
    golden("domain-dryrun.xml", render())


@pytest.mark.parametrize("cards", [(), USER_NETWORK])
def test_libvirts_own_schema_accepts_it(tmp_path, cards):
    schema = Path("/usr/share/libvirt/schemas/domain.rng")
    if not schema.exists():
        pytest.skip("libvirt's schemas are not installed")
    file = tmp_path / "domain.xml"
    file.write_text(render(cards=cards))
    result = subprocess.run(["virt-xml-validate", str(file), "domain"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_was_rendered_is_read_back():
    live = parse_live_domain(render())
    for name in set(live.__dataclass_fields__) - {"simulated", "simulation", "snp", "id_block", "id_auth"}:
        assert getattr(live, name) == getattr(SPEC, name), name
    assert live.simulated is True
    assert live.simulation == SPEC.launch
    assert live.snp is None
    assert live.hash_table == SPEC.launch.hash_table
    require_same(live, SPEC)


TEXTS = ["job", "image", "host_data", "policy", "cpu", "firmware", "kernel", "initrd", "cmdline", "console"]


@pytest.mark.parametrize("field", TEXTS)
def test_hostile_text_stays_text(field):
    xml = render(**{field: HOSTILE})
    assert getattr(parse_live_domain(xml), field) == HOSTILE
    shape = [element.tag for element in ET.fromstring(render()).iter()]
    assert [element.tag for element in ET.fromstring(xml).iter()] == shape


def test_hostile_paths_of_disks_and_table_stay_text():
    disks = (Disk(path=HOSTILE, serial=HOSTILE),)
    live = parse_live_domain(render(disks=disks, launch=replace(SPEC.launch, hash_table=HOSTILE)))
    assert live.disks == disks
    assert live.hash_table == HOSTILE


def test_a_comma_would_end_qemus_option():
    with pytest.raises(ConfigError) as refusal:
        render(launch=replace(SPEC.launch, hash_table="/m,addr=0/hashes.bin"))
    assert "comma" in refusal.value.message


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", ".a", "a.", "a b", "a\n", "a" * 65, "-a"])
def test_what_cannot_be_a_name_is_refused(name):
    with pytest.raises(ConfigError):
        render(name=name)


def test_a_template_with_an_unknown_variable_is_not_rendered(tmp_path):
    (tmp_path / "domain-dryrun.xml.j2").write_text("<domain>{{ nmae }}</domain>")
    with pytest.raises(jinja2.UndefinedError):
        render_domain(SPEC, tmp_path)


def test_a_name_always_has_the_same_uuid():
    assert domain_uuid("a") == domain_uuid("a") != domain_uuid("b")
    assert f"<uuid>{domain_uuid(SPEC.name)}</uuid>" in render()


def test_no_network_no_shared_folder_and_no_display_is_in_the_domain():
    devices = {element.tag for element in ET.fromstring(render()).find("devices")}
    assert devices.isdisjoint({"interface", "filesystem", "graphics", "hostdev", "shmem", "input", "redirdev"})
    disks = ET.fromstring(render()).findall("devices/disk")
    assert all(disk.find("readonly") is not None for disk in disks)


def test_a_card_is_there_if_it_is_meant_and_nothing_else_changes():
    root = ET.fromstring(render(cards=USER_NETWORK))
    (card,) = root.findall("devices/interface")
    assert card.attrib == {"type": "user"}
    assert {child.tag: child.attrib for child in card} == {"model": {"type": "virtio"}, "rom": {"enabled": "no"}}
    root.find("devices").remove(card)
    bare = ET.fromstring(render())
    assert [(item.tag, item.attrib, (item.text or "").strip()) for item in root.iter()] == [
        (item.tag, item.attrib, (item.text or "").strip()) for item in bare.iter()
    ]


@pytest.mark.parametrize(("meant", "made"), [((), USER_NETWORK), (USER_NETWORK, ()), (USER_NETWORK, USER_NETWORK * 2)])
def test_a_domain_with_other_cards_than_were_meant_is_refused(meant, made):
    with pytest.raises(HostError, match="cards is"):
        require_same(parse_live_domain(render(cards=made)), replace(SPEC, cards=meant))
    require_same(parse_live_domain(render(cards=meant)), replace(SPEC, cards=meant))


def test_ours_is_told_by_its_metadata():
    assert is_ours(render())
    assert not is_ours(render().replace("urn:cvmtool:1", "urn:other"))


def test_a_dry_run_that_says_it_is_none_is_out_of_shape():
    with pytest.raises(HostError, match="launchSecurity"):
        parse_live_domain(render().replace("simulated>true", "simulated>false"))


def test_a_writable_disk_is_the_one_that_is_not_read_only():
    disks = (Disk(path="/m/a", serial="a"), Disk(path="/m/b", serial="b", writable=True))
    assert parse_live_domain(render(disks=disks)).disks == disks


def test_a_machine_is_placed_where_it_is_asked_to():
    root = ET.fromstring(render(placement=Placement(cpus=(6, 7), numa_node=1, hugepages_kib=2048)))
    assert [(pin.get("vcpu"), pin.get("cpuset")) for pin in root.findall("cputune/vcpupin")] == [("0", "6"), ("1", "7")]
    assert root.find("numatune/memory").attrib == {"mode": "strict", "nodeset": "1"}
    assert root.find("memoryBacking/hugepages/page").attrib == {"size": "2048", "unit": "KiB"}


def test_a_placement_for_another_number_of_cpus_is_refused():
    with pytest.raises(ConfigError, match="3 host CPUs for 2 virtual ones"):
        render(placement=Placement(cpus=(1, 2, 3)))


@pytest.mark.parametrize("field", ["vcpus", "cpu", "firmware", "kernel", "initrd", "cmdline", "host_data", "policy"])
def test_what_libvirt_changed_is_named(field):
    other = 3 if field == "vcpus" else "0b" * 32
    live = parse_live_domain(render(**{field: other}))
    with pytest.raises(HostError, match=f"{field} is {other!r}"):
        require_same(live, SPEC)


def test_a_hash_table_at_another_address_is_named():
    live = parse_live_domain(render(launch=replace(SPEC.launch, hash_table_gpa=0x1000)))
    with pytest.raises(HostError, match="launch is"):
        require_same(live, SPEC)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("</domain>", ""),
        ("urn:cvmtool:1", "urn:other"),
        ("<cvm:host-data>", "<cvm:guest-data>"),
        ("<vcpu placement='static'>2", "<vcpu placement='static'>two"),
        ("<vcpu", "<cpus"),
        ("<kernel>", "<kernal>"),
        ("loader,addr=0x810c00", "loader,addr=810c00"),
        ("loader,addr", "loader,cpu-num=0,addr"),
        ("force-raw=on", "force-raw=off"),
        ("<qemu:commandline>", "<qemu:commandline><qemu:arg value='loader,addr=0x1,file=/x,force-raw=on'/>"),
        ("<source path='/m/console.log' append='off'/>", ""),
        ("<source file='/m/rootfs.img'/>", ""),
        ("<serial>cvmtool-root</serial>", ""),
        ("<model fallback='forbid'>EPYC-Genoa</model>", ""),
    ],
)
def test_a_live_domain_out_of_shape_is_the_hosts_failure(old, new):
    xml = render()
    changed = xml.replace(old, new)
    if old.startswith("<cvm:") or old in {"<vcpu", "<kernel>"}:
        tag = old.strip("<>")
        changed = changed.replace(f"</{tag}>", f"</{new.strip('<>')}>")
    assert changed != xml
    with pytest.raises(HostError):
        parse_live_domain(changed)


@given(st.text(max_size=60))
def test_any_text_is_a_domain_or_the_hosts_failure(text):
    for tried in (text, render().replace("EPYC-Genoa", text), render().replace("'static'>2", "'static'>" + text)):
        with contextlib.suppress(HostError):
            parse_live_domain(tried)


def test_read_only_disks_that_others_use_stay_their_owners():
    plain, kept = render(), render(keep_owner=True)
    assert "seclabel" not in plain
    assert kept.count("<seclabel model='dac' relabel='no'/>") == len(parse_live_domain(plain).disks)
    assert parse_live_domain(kept) == parse_live_domain(plain)


def test_ports_beside_the_owner_s_are_there_where_a_job_may_be_reached(tmp_path):
    names = [port.get("name") for port in ET.fromstring(render(reachable=True)).findall("devices/channel/target")]
    assert names == [AGENT_PORT, *CLIENT_PORTS, PSP_PORT]
    assert "client" not in render()
    schema = Path("/usr/share/libvirt/schemas/domain.rng")
    if schema.exists():
        file = tmp_path / "domain.xml"
        file.write_text(render(reachable=True))
        subprocess.run(["virt-xml-validate", str(file), "domain"], capture_output=True, check=True)
