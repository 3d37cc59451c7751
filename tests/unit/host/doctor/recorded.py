# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Hosts out of tests/fixtures/hosts: what a host answered, as files.

A directory holds `host.toml`, `root/` (files by path; `PATH@OFFSET` is hex), `run/` (standard output by program), `modules`
and `domcapabilities.xml`. A host with a `base` is that host but for what its own directory says: one mutation, as a rule.
"""

import errno
import tomllib
from pathlib import Path

from cvmtool.flows.doctor import LEAST_DISK_BYTES, LEAST_MEMORY_MIB, tcb_shortfalls
from cvmtool.host.capabilities import parse_capabilities
from cvmtool.host.doctor.checks import Diagnosis, diagnose
from cvmtool.host.doctor.facts import Firmware, Libvirt, OwnerSide, Seen, Trials
from cvmtool.host.doctor.probe import probe
from cvmtool.host.doctor.source import Claim, Command, FileKind, FileStat, claim
from cvmtool.host.doctor.texts import parse_platform_status

HOSTS = Path(__file__).parents[3] / "fixtures/hosts"
NAMES = sorted(path.name for path in HOSTS.iterdir())
OWNER_CLOCK = 1_780_000_000.25
FIRMWARE = {"hashes": "", "generic": "no measured page for kernel hashes"}


class RecordedHost:
    """A `HostView` of a directory."""

    def __init__(self, name: str) -> None:
        own = tomllib.loads((HOSTS / name / "host.toml").read_text("utf-8"))
        base = tomllib.loads((HOSTS / own["base"] / "host.toml").read_text("utf-8")) if "base" in own else {}
        self.about = {
            **base,
            **own,
            **{table: {**base.get(table, {}), **own.get(table, {})} for table in ("owner", "stat")},
        }
        self._folders = [HOSTS / name, *([HOSTS / own["base"]] if "base" in own else [])]

    def read(self, path: str, *, limit: int, offset: int = 0) -> bytes:
        self._allowed(path)
        if offset:
            return bytes.fromhex(self._file(f"root{path}@{offset:x}").read_text("utf-8"))[:limit]
        return self._file(f"root{path}").read_bytes()[:limit]

    def list(self, path: str) -> list[str]:
        self._allowed(path)
        if path == "/sys/module":
            return self._file("modules").read_text("utf-8").split()
        folders = [folder / f"root{path}" for folder in self._folders]
        names = {entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()}
        if not names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return sorted(name for name in names if f"{path}/{name}" not in self.about.get("gone", ()))

    def stat(self, path: str) -> FileStat:
        self._allowed(path)
        if path in self.about["stat"]:
            known = self.about["stat"][path]
            return FileStat(kind=FileKind(known["kind"]), mode=known["mode"], uid=known["uid"], gid=known["gid"])
        self._file(f"root{path}")
        return FileStat(kind=FileKind.FILE, mode=0o644, uid=0, gid=0)

    def run(self, command: Command) -> bytes:
        program = command.argv[0].rpartition("/")[2]
        self._allowed(program)
        return self._file(f"run/{program}").read_bytes()

    def capabilities(self) -> str:
        return self._file("domcapabilities.xml").read_text("utf-8")

    def _allowed(self, path: str) -> None:
        if path in self.about.get("forbidden", ()):
            raise PermissionError(errno.EACCES, "Permission denied")
        if path in self.about.get("gone", ()):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    def _file(self, name: str) -> Path:
        for folder in self._folders:
            if (folder / name).is_file():
                return folder / name
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")


def seen(host: RecordedHost) -> Seen:
    about, owner = host.about, host.about["owner"]
    facts = probe(host, store="/var/lib/cvmtool/machines", clock=lambda: OWNER_CLOCK)
    status = claim("/dev/sev", lambda: parse_platform_status(bytes.fromhex(about["platform"])))
    trials = Trials(kvm=_tried("/dev/kvm", about["kvm"]), tcg=_tried("qemu", about["tcg"]), platform=status)
    security = parse_capabilities(host.capabilities()).launch_security
    number = owner["libvirt"]
    version = (number // 1_000_000, number // 1_000 % 1_000, number % 1_000)
    libvirt = Claim(source="libvirt", value=Libvirt(version=version, launch_security=security))
    cpu = facts.cpu.value
    return Seen(
        host=facts,
        trials=trials,
        owner=OwnerSide(
            uid=owner["uid"],
            groups=frozenset(owner["groups"]),
            remote=owner["remote"],
            libvirt=libvirt if number else Claim(source="libvirt", problem="does not answer"),
            firmware=(Firmware(path="OVMF", problem=FIRMWARE[owner["firmware"]]),),
            shortfalls=tcb_shortfalls(status.value, cpu.cpuid if cpu else None),
            key_service=Claim(source="kds", problem="not reachable from here"),
            memory_mib=LEAST_MEMORY_MIB,
            disk_bytes=LEAST_DISK_BYTES,
        ),
    )


def _tried(source: str, answer: str) -> Claim[str]:
    return Claim(source=source, value=answer) if answer else Claim(source=source, problem="KVM internal error")


def examine(name: str, *, dry_run: bool = False) -> Diagnosis:
    return diagnose(seen(RecordedHost(name)), dry_run=dry_run)
