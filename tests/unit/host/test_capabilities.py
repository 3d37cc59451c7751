# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import HostError
from cvmtool.host.capabilities import parse_capabilities, snp_launch
from cvmtool.host.domain import SnpLaunch

XML = """\
<domainCapabilities>
  <path>/usr/bin/qemu-system-x86_64</path>
  <domain>kvm</domain>
  <machine>pc-q35-10.0</machine>
  <arch>x86_64</arch>
  <cpu>
    <mode name='host-passthrough' supported='yes'/>
    <mode name='custom' supported='yes'>
      <model usable='yes' vendor='AMD' canonical='EPYC-Genoa-v1'>EPYC-Genoa</model>
      <model usable='yes' vendor='AMD'>EPYC-Milan</model>
      <model usable='yes' vendor='unknown'>qemu64</model>
      <model usable='no' vendor='AMD'>EPYC-Turin</model>
    </mode>
  </cpu>
  <features>
    <sev supported='yes'>
      <cbitpos>51</cbitpos>
      <reducedPhysBits>1</reducedPhysBits>
      <maxGuests>410</maxGuests>
      <maxESGuests>99</maxESGuests>
    </sev>
    <launchSecurity supported='yes'>
      <enum name='sectype'>
        <value>sev</value>
        <value>sev-snp</value>
      </enum>
    </launchSecurity>
  </features>
</domainCapabilities>
"""


def test_a_host_with_snp():
    host = parse_capabilities(XML)
    assert host.emulator == "/usr/bin/qemu-system-x86_64"
    assert host.cpus == {"EPYC-Genoa", "EPYC-Milan", "qemu64"}
    assert host.launch_security == {"sev", "sev-snp"}
    assert host.max_es_guests == 99
    assert snp_launch(host, cpu="EPYC-Genoa") == SnpLaunch(machine="pc-q35-10.0", cbitpos=51, reduced_phys_bits=1)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<value>sev-snp</value>", "", "launch security sev; sev-snp is required"),
        ("<launchSecurity supported='yes'>", "<launchSecurity supported='no'>", "launch security none"),
        ("<sev supported='yes'>", "<sev supported='no'>", "cbitpos is required"),
        ("<reducedPhysBits>1</reducedPhysBits>", "", "cbitpos is required"),
        ("pc-q35-10.0", "q35", "a versioned q35"),
        (
            "usable='yes' vendor='AMD' canonical",
            "usable='no' vendor='AMD' canonical",
            "cannot run the CPU model EPYC-Genoa",
        ),
    ],
)
def test_what_is_missing_is_named(old, new, said):
    assert old in XML
    host = parse_capabilities(XML.replace(old, new))
    with pytest.raises(HostError, match=said):
        snp_launch(host, cpu="EPYC-Genoa")


def test_the_models_that_it_can_run_are_offered():
    with pytest.raises(HostError) as refusal:
        snp_launch(parse_capabilities(XML), cpu="EPYC-Turin")
    assert "EPYC-Genoa, EPYC-Milan" in refusal.value.hint
    assert "qemu64" not in refusal.value.hint


@pytest.mark.parametrize(
    ("old", "new"),
    [("<path>/usr/bin/qemu-system-x86_64</path>", ""), ("</domainCapabilities>", ""), (">51<", ">fifty<")],
)
def test_what_cannot_be_read_is_the_hosts_failure(old, new):
    with pytest.raises(HostError):
        parse_capabilities(XML.replace(old, new))


def test_endless_capabilities_are_not_parsed():
    with pytest.raises(HostError, match="at most"):
        parse_capabilities(XML + " " * (4 << 20))


@given(st.text(max_size=80))
def test_any_text_is_capabilities_or_the_hosts_failure(text):
    for tried in (text, XML.replace("51", text), XML.replace("EPYC-Genoa", text)):
        with contextlib.suppress(HostError):
            parse_capabilities(tried)
