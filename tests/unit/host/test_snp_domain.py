# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cvmtool.config import resources
from cvmtool.errors import ConfigError, FormatError, HostError
from cvmtool.formats.idblock import IdBlock, LaunchIdentity
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.host.domain import USER_NETWORK, SnpLaunch, render_domain
from cvmtool.host.live import parse_live_domain, require_same
from cvmtool.owner.launchsign import sign_launch
from tests.unit.host.test_domain import SPEC as DRY_RUN

BLOCK = IdBlock(digest=bytes(range(48)), policy=GuestPolicy(0x30000))
# Constant keys: the golden file would change with others, and nothing here is a secret.
ID_KEY, AUTHOR_KEY = (ec.derive_private_key(number, ec.SECP384R1()) for number in (7, 11))
IDENTITY = LaunchIdentity(block=BLOCK, auth=sign_launch(BLOCK, ID_KEY, AUTHOR_KEY))
LAUNCH = SnpLaunch(machine="pc-q35-10.0", cbitpos=51, reduced_phys_bits=1)
SPEC = replace(DRY_RUN, cmdline="console=ttyS0 cvmtool.root=ab", launch=LAUNCH)
TEMPLATES = resources("templates")


def render(**changes):
    return render_domain(replace(SPEC, **changes), TEMPLATES)


def test_the_domain_is_the_golden_one(golden):
    golden("domain-snp.xml", render())


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_libvirts_own_schema_accepts_it(tmp_path, signed):
    schema = Path("/usr/share/libvirt/schemas/domain.rng")
    if not schema.exists():
        pytest.skip("libvirt's schemas are not installed")
    file = tmp_path / "domain.xml"
    file.write_text(render(identity=IDENTITY if signed else None, cards=USER_NETWORK if signed else ()))
    result = subprocess.run(["virt-xml-validate", str(file), "domain"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_was_rendered_is_read_back_and_is_the_same():
    spec = replace(SPEC, identity=IDENTITY)
    live = parse_live_domain(render_domain(spec, TEMPLATES))
    assert live.simulated is False
    assert live.simulation is None
    assert live.id_block == BLOCK.encode()
    assert live.id_auth == IDENTITY.auth.encode()
    assert live.snp.author_key is True
    require_same(live, spec)


def test_it_differs_from_a_dry_run_in_the_launch_and_what_that_needs():
    ours, dry = (
        {element.tag for element in ET.fromstring(xml).iter()} for xml in (render(), render_domain(DRY_RUN, TEMPLATES))
    )
    qemu = "{http://libvirt.org/schemas/domain/qemu/1.0}"
    assert dry - ours == {f"{qemu}commandline", f"{qemu}arg"}
    launch = {"launchSecurity", "cbitpos", "reducedPhysBits", "policy", "hostData"}
    assert ours - dry == launch | {"memoryBacking", "access", "ioapic", "smm", "vmport", "timer"}


def test_every_device_that_does_dma_goes_through_the_bounce_buffers():
    root = ET.fromstring(render(cards=USER_NETWORK))
    serial = "devices/controller[@type='virtio-serial']/driver"
    for path in ("devices/disk/driver", serial, "devices/rng/driver", "devices/interface/driver"):
        found = root.findall(path)
        assert found, path
        assert all(driver.get("iommu") == "on" for driver in found), path


def test_nothing_of_the_simulation_is_in_it():
    assert "loader,addr" not in render()
    assert "psp" not in render()
    assert "SIMULATED" not in render()


@pytest.mark.parametrize("policy", [0x0, 0x10000, 0x130000 | 1 << 40])
def test_a_policy_that_firmware_refuses_is_refused_here(policy):
    with pytest.raises(FormatError, match="policy is"):
        render(policy=f"{policy:#x}")


@pytest.mark.parametrize("bit", [18, 19])
def test_debugging_and_migration_are_never_asked_for(bit):
    with pytest.raises(ConfigError, match="debug"):
        render(policy=f"{0x30000 | 1 << bit:#x}")


@pytest.mark.parametrize("machine", ["q35", "pc", "pc-q35", "pc-q35-10.0 ", "pc-i440fx-10.0", ""])
def test_a_machine_type_without_a_version_is_refused(machine):
    with pytest.raises(ConfigError, match="machine type"):
        render(launch=replace(LAUNCH, machine=machine))


def test_an_id_block_for_another_policy_is_refused_before_the_firmware_does():
    other = replace(BLOCK, policy=GuestPolicy(0x20000))
    with pytest.raises(ConfigError, match="0x20000"):
        render(identity=LaunchIdentity(block=other, auth=sign_launch(other, ID_KEY)))


def test_without_an_author_no_author_is_announced():
    alone = LaunchIdentity(block=BLOCK, auth=sign_launch(BLOCK, ID_KEY))
    assert parse_live_domain(render(identity=alone)).snp.author_key is False


def test_a_dry_run_keeps_its_identity_with_its_metadata():
    spec = replace(DRY_RUN, identity=IDENTITY)
    live = parse_live_domain(render_domain(spec, TEMPLATES))
    assert (live.id_block, live.id_auth) == (BLOCK.encode(), IDENTITY.auth.encode())
    require_same(live, spec)
    with pytest.raises(HostError, match="id_block is"):
        require_same(live, DRY_RUN)


@pytest.mark.parametrize("host_data", ["", "0a" * 31, "0A" * 32])
def test_host_data_of_another_shape_is_refused(host_data):
    with pytest.raises(FormatError):
        render(host_data=host_data)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kernelHashes='yes'", ""),
        ("<policy>0x30000<", "<policy>0x20000<"),
        ("<cbitpos>51<", "<cbitpos>47<"),
        ("<reducedPhysBits>1<", "<reducedPhysBits>5<"),
        ("vcek='yes'", "vcek='no'"),
        ("authorKey='no'", "authorKey='yes'"),
        ("<hostData>C", "<hostData>D"),
        ("<memballoon", "<interface type='network'><source network='default'/></interface><memballoon"),
        ("machine='pc-q35-10.0'", "machine='pc-q35-9.2'"),
        ("vcpu placement='static'>2", "vcpu placement='static'>4"),
    ],
)
def test_what_libvirt_changed_or_dropped_is_named(old, new):
    xml = render()
    assert old in xml
    with pytest.raises(HostError, match="required"):
        require_same(parse_live_domain(xml.replace(old, new)), SPEC)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("type='sev-snp'", "type='sev'"),
        ("<hostData>", "<hostData>!"),
        ("<policy>0x30000<", "<policy>thirty<"),
        ("<cbitpos>51</cbitpos>", ""),
        ("launchSecurity", "launchSafety"),
    ],
)
def test_launch_security_out_of_shape_is_the_hosts_failure(old, new):
    with pytest.raises(HostError):
        parse_live_domain(render().replace(old, new))


def test_a_dry_runs_hash_table_is_not_asked_of_a_real_launch():
    with pytest.raises(HostError, match="no dry run"):
        _ = parse_live_domain(render()).hash_table
