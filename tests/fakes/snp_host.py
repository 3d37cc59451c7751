# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""An embedded libvirt that believes its QEMU can do SEV-SNP: it defines such machines and says how it would run them.

Run as a program, since a process has one embedded driver: `python -m tests.fakes.snp_host ROOT SPEC` reads a pickled
DomainSpec and prints JSON: what such a host says of itself, and the arguments of QEMU. It starts nothing.
"""

import json
import os
import pickle
import shlex
import sys
from pathlib import Path

from cvmtool.config import resources
from cvmtool.host.domain import render_domain
from cvmtool.host.hypervisor import Hypervisor
from cvmtool.host.live import require_same

FLAGS = "<flag name='sev-guest'/><flag name='sev-snp-guest'/>"
BEHIND = "<flag name='sev-guest-kernel-hashes'/>"
SEV = (
    "<sev><cbitpos>51</cbitpos><reducedPhysBits>1</reducedPhysBits>"
    "<pdh>AAAA</pdh><certChain>AAAA</certChain><cpu0Id>AAAA</cpu0Id></sev></qemuCaps>"
)


def learn(root: Path) -> None:
    """Let libvirt ask QEMU what it can do, and keep the answer below `root`."""
    Hypervisor(f"qemu:///embed?root={root}", log=root.parent / "libvirt.log").capabilities(virt_type="kvm")


def pretend(root: Path) -> None:
    """Add SEV-SNP to the kept answer."""
    for path in (root / "cache/qemu/capabilities").glob("*.xml"):
        text = path.read_text()
        if FLAGS not in text:
            path.write_text(text.replace(BEHIND, FLAGS + BEHIND, 1).replace("</qemuCaps>", SEV))


def main() -> None:
    root, spec = Path(sys.argv[1]), pickle.loads(Path(sys.argv[2]).read_bytes())
    if not (root.parent / "cache").exists():
        learn(root)
        os.execv(sys.executable, [sys.executable, "-m", "tests.fakes.snp_host", *sys.argv[1:]])
    pretend(root)
    host = Hypervisor(f"qemu:///embed?root={root}", log=root.parent / "libvirt.log")
    xml = render_domain(spec, resources("templates"))
    found = host.capabilities(virt_type="kvm")
    host.define(xml)
    require_same(host.defined(spec.name), spec)
    host.destroy(spec.name)
    told = {
        "launch_security": sorted(found.launch_security),
        "machine": found.machine,
        "cbitpos": found.cbitpos,
        "argv": shlex.split(host.argv(xml)),
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
