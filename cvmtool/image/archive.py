# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The Debian archive: where it is, what it has, and the files a lock names.

Zone: image. Starts apt and pip; writes below the folder it is given.

Apt does what apt is good at (signatures, dependencies, proxies), in a root of its own: the machine's package state is
neither read nor touched, and no rights are needed. Which mirror to use is the machine's own choice, read from its apt
configuration. A signature by Debian's archive keys makes a mirror harmless; a SHA-256 in the lock makes it irrelevant.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from cvmtool.errors import BuildError
from cvmtool.image.lock import Lock, Package, PackageKind
from cvmtool.image.recipe import Request, RoleRequest, WheelRequest
from cvmtool.image.run import run

ARCHITECTURE = "amd64"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_HELPER = "/usr/lib/apt/apt-helper"
_INSTALL = re.compile(r"^Inst (\S+) (?:\[[^]]*\] )?\((\S+) .*\[(\w+)\]\)", re.MULTILINE)
_WHEEL = re.compile(r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.+!]+)-(?P<tags>[^-]+-[^-]+-[^-]+)\.whl")
# The newest glibc interface a wheel may ask for; trixie has 2.41.
_PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


class UnavailableError(BuildError):
    """The archive does not serve what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """Base addresses of a Debian archive: what stands before `dists/` and `pool/`."""

    main: str
    security: str

    def base(self, suite: str) -> str:
        """Return the base address that serves a suite."""
        return self.security if suite.endswith("-security") else self.main


def find_archive() -> Archive:
    """Return the archive that this machine's apt is configured for.

    Raises:
        BuildError: there is no apt, or it knows no Debian archive.
    """
    hint = "give --mirror and --security-mirror, or add a Debian source to apt"
    rows = run(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"]).decode()
    main = []
    security = []
    for row in sorted(set(rows.splitlines())):
        base, release, component, origin = row.rsplit("|", 3)
        # The origin is known once lists were fetched; before that it is a literal `$(ORIGIN)`.
        if component != "main" or origin not in ("Debian", "Debian Backports", "$(ORIGIN)", ""):
            continue
        if release.endswith("-security"):
            security.append(base)
        elif origin == "Debian" or "debian" in base.lower():
            main.append(base)
    if not main:
        raise BuildError("apt on this machine knows no Debian archive; one is required", hint=hint)
    base = main[0].rstrip("/")
    return Archive(main=base, security=(security[0] if security else f"{base}-security").rstrip("/"))


def resolve(request: Request, archive: Archive, *, notice: Callable[[str], None]) -> Lock:
    """Ask the archive which packages answer a request now.

    Raises:
        BuildError: the archive is unreachable, badly signed, or lacks a package.
    """
    if not KEYRING.exists():
        raise BuildError(f"{KEYRING} is missing; it signs the archive", hint="sh tools/setup.sh")
    fallbacks = request.fallback_suites or ("",)
    for index, fallback in enumerate(fallbacks):
        with tempfile.TemporaryDirectory(prefix="cvmtool-apt-") as folder:
            try:
                packages = _resolve_debs(request, archive, Path(folder), fallback)
            except UnavailableError as error:
                if index + 1 == len(fallbacks):
                    raise
                notice(f"{error.message}; trying {fallbacks[index + 1]}")
                continue
            if request.wheels is not None:
                packages += _resolve_wheels(request.wheels, Path(folder))
            return Lock(request=request.digest(), packages=tuple(sorted(packages, key=Package.line)))
    raise RuntimeError("one fallback was tried")


class _AptRoot:
    """Apt with its own state below a folder."""

    def __init__(self, folder: Path) -> None:
        for name in ("lists/partial", "cache/archives/partial", "sources", "preferences", "trusted"):
            (folder / name).mkdir(parents=True)
        (folder / "status").write_bytes(b"")
        settings = {
            "Dir::State": folder,
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": folder / "sources",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": folder / "preferences",
            "Dir::Etc::trusted": "/dev/null",
            "Dir::Etc::trustedparts": folder / "trusted",
            "APT::Architecture": ARCHITECTURE,
            "APT::Architectures": ARCHITECTURE,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "true",
        }
        self.folder = folder
        self._options = [item for key, value in settings.items() for item in ("-o", f"{key}={value}")]

    def __call__(self, program: str, *args: str) -> str:
        return run([program, *self._options, *args]).decode()


def _resolve_debs(request: Request, archive: Archive, folder: Path, fallback: str) -> list[Package]:
    apt = _AptRoot(folder)
    suites = [*request.suites, *([fallback] if fallback else [])]
    for base in sorted({archive.base(suite) for suite in suites}):
        served = " ".join(suite for suite in suites if archive.base(suite) == base)
        source = _source(base, served, request.components)
        (folder / "sources" / f"{len(served)}-{served.split()[0]}.sources").write_text(source, encoding="ascii")
    if fallback:
        # Below every installed or ordinary candidate: taken only where nothing else is.
        pin = f"Package: *\nPin: release n={fallback}\nPin-Priority: 50\n"
        (folder / "preferences" / "fallback.pref").write_text(pin, encoding="ascii")
    try:
        apt("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update")
    except BuildError as error:
        raise UnavailableError("the Debian archive cannot be read", detail=error.detail, hint=error.hint) from error
    index = _index(apt, suites)
    found: dict[tuple[str, str, str], Package] = {}
    for name, role in request.roles.items():
        for key in _closure(apt, role):
            if key not in index:
                raise UnavailableError(f"package {' '.join(key)} is in no package index of the archive")
            known = found.get(key, index[key])
            found[key] = replace(known, roles=known.roles | {name})
    return list(found.values())


def _source(base: str, suites: str, components: Iterable[str]) -> str:
    return (
        f"Types: deb\nURIs: {base}\nSuites: {suites}\nComponents: {' '.join(components)}\n"
        f"Targets: Packages\nSigned-By: {KEYRING}\n"
    )


def _closure(apt: _AptRoot, role: RoleRequest) -> list[tuple[str, str, str]]:
    try:
        plan = apt("apt-get", "-qq", "--simulate", "install", *role.include)
    except BuildError as error:
        wanted = ", ".join(role.include)
        raise UnavailableError(f"the archive cannot install {wanted} together", detail=error.detail) from error
    keys = []
    for name, version, arch in _INSTALL.findall(plan):
        bare = name.split(":")[0]
        if bare in role.drop or (role.only and not any(fnmatchcase(bare, glob) for glob in role.only)):
            continue
        keys.append((bare, version, arch))
    return keys


def _index(apt: _AptRoot, suites: Iterable[str]) -> dict[tuple[str, str, str], Package]:
    files: dict[str, list[str]] = {}
    for row in apt(
        "apt-get", "indextargets", "--format", "$(RELEASE)|$(FILENAME)", "Created-By: Packages"
    ).splitlines():
        release, _, filename = row.partition("|")
        files.setdefault(release, []).append(filename)
    index: dict[tuple[str, str, str], Package] = {}
    for suite in suites:
        for filename in files.get(suite, []):
            for stanza in apt(APT_HELPER, "cat-file", filename).split("\n\n"):
                package = _package(stanza, suite)
                if package is not None:
                    index.setdefault((package.name, package.version, package.arch), package)
    return index


def _package(stanza: str, suite: str) -> Package | None:
    fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and not line.startswith(" "))
    if "Package" not in fields:
        return None
    return Package(
        kind=PackageKind.DEB,
        name=fields["Package"],
        version=fields["Version"],
        arch=fields["Architecture"],
        suite=suite,
        roles=frozenset(),
        size=int(fields["Size"]),
        sha256=fields["SHA256"],
        path=fields["Filename"],
    )


def download_debs(packages: Iterable[Package], archive: Archive, folder: Path) -> None:
    """Download packages to `folder`, each named by its SHA-256, which apt checks.

    Raises:
        UnavailableError: the archive does not serve one of them, or other bytes.
    """
    argv: list[str | Path] = [APT_HELPER, "-o", "APT::Sandbox::User=", "download-file"]
    for package in packages:
        argv += [f"{archive.base(package.suite)}/{package.path}", folder / package.sha256, f"SHA256:{package.sha256}"]
    try:
        run(argv)
    except BuildError as error:
        raise UnavailableError("the archive does not serve every locked package", detail=error.detail) from error


def download_wheels(wheels: Iterable[Package], folder: Path) -> None:
    """Download locked wheels to `folder`, each named by its SHA-256, which pip checks.

    Raises:
        UnavailableError: the package index does not serve one of them, or other bytes.
    """
    wanted = list(wheels)
    lines = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}" for wheel in wanted]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="ascii")
    try:
        _pip_download(folder, _python_of(wanted), ["--require-hashes", "-r", str(folder / "requirements.txt")])
    except BuildError as error:
        raise UnavailableError("the package index does not serve every locked wheel", detail=error.detail) from error
    for wheel in wanted:
        (folder / wheel.path).rename(folder / wheel.sha256)


def _python_of(wheels: Iterable[Package]) -> str:
    for wheel in wheels:
        tag = re.match(r"cp3(\d+)-cp3\d+-", wheel.arch)
        if tag:
            return f"3.{tag[1]}"
    return "3.13"


def _pip_download(folder: Path, python: str, what: list[str]) -> None:
    platforms = [item for name in _PLATFORMS for item in ("--platform", name)]
    abis = ["--abi", f"cp{python.replace('.', '')}", "--abi", "abi3", "--abi", "none"]
    options = ["--only-binary=:all:", "--no-deps", "--implementation", "cp", "--python-version", python]
    run(
        [sys.executable, "-m", "pip", "-q", "download", "--dest", folder, *options, *abis, *platforms, *what],
        pip=True,
    )


def _resolve_wheels(request: WheelRequest, folder: Path) -> list[Package]:
    wheels = folder / "wheels"
    wheels.mkdir()
    try:
        _pip_download(wheels, request.python, list(request.include))
    except BuildError as error:
        raise UnavailableError("the package index lacks a wheel", detail=error.detail) from error
    found = []
    for path in sorted(wheels.glob("*.whl")):
        parts = _WHEEL.fullmatch(path.name)
        if parts is None:
            raise BuildError(f"{path.name} is not the name of a wheel")
        data = path.read_bytes()
        found.append(
            Package(
                kind=PackageKind.WHEEL,
                name=parts["name"],
                version=parts["version"],
                arch=parts["tags"],
                suite="pypi",
                roles=frozenset({"rootfs"}),
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                path=path.name,
            )
        )
    return found
