# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What an image is made of: `image.toml` of a guest image, read strictly.

Zone: image. Pure: no I/O.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import dataclass
from typing import Any

from cvmtool.errors import ConfigError
from cvmtool.formats.pack import NAME

ROLES = ("rootfs", "initrd", "kernel", "firmware", "extra", "tools")
MODULES_ROLE = "modules"
"""Compiler, headers and source of kernel modules: only an image that compiles some asks for it."""
MAIN = ("main",)
"""The archive's components that hold free software alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRequest:
    """Packages for one purpose: `include` with what they depend on, without `drop`, and of that `only` if given."""

    include: tuple[str, ...]
    drop: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelRequest:
    """Wheels from PyPI for one Python version."""

    python: str
    include: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of the archive; a lock answers it."""

    suites: tuple[str, ...]
    fallback_suites: tuple[str, ...]
    roles: dict[str, RoleRequest]
    wheels: WheelRequest | None
    components: tuple[str, ...] = MAIN
    """Components of the archive."""

    def digest(self) -> str:
        """Return the SHA-256 of the request, 64 hex digits."""
        roles = {
            name: [sorted(role.include), sorted(role.drop), sorted(role.only)] for name, role in self.roles.items()
        }
        wheels = [self.wheels.python, sorted(self.wheels.include)] if self.wheels else []
        asked: list[object] = [self.suites, self.fallback_suites, roles, wheels]
        if self.components != MAIN:  # locks are older than the key
            asked.append(self.components)
        text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class RootfsRecipe:
    """What is done to the root file system after its packages were unpacked."""

    prune: tuple[str, ...]
    directories: tuple[str, ...]
    busybox: tuple[str, ...]
    extra: dict[str, str]
    """Path in the image -> path in a package of the role `extra`."""
    links: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModulesRecipe:
    """Kernel modules that the build compiles, all in one run of make."""

    source: str
    """Path of their source in a package of the role `modules`: a folder with a Kbuild file."""
    make: tuple[str, ...]
    """Words for make; `{release}` stands for the kernel's release."""
    take: tuple[str, ...]
    """Names of the modules that go into the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One guest image."""

    name: str
    shell: bool
    """Whether a guest of this image may give its owner a shell; the measured command line says so."""
    source_date_epoch: int
    """Seconds; the time stamp of every file."""
    cmdline: tuple[str, ...]
    cpus: tuple[str, ...]
    request: Request
    vmlinuz: str
    """Glob in the kernel package."""
    initrd_modules: tuple[str, ...]
    rootfs_modules: tuple[str, ...]
    firmware: str
    """Path in the firmware package."""
    rootfs: RootfsRecipe
    modules: ModulesRecipe | None
    """What is compiled, if anything is."""


class Table:
    """A TOML table that is taken apart key by key; what is left over is an error."""

    def __init__(self, value: dict[str, Any], where: str) -> None:
        self._value = dict(value)
        self._where = where

    def _take(self, key: str, kind: type, default: object) -> Any:  # noqa: ANN401  checked right here
        item = self._value.pop(key, default)
        if item is None:
            raise ConfigError(f"{self._where} lacks the key {key!r}")
        if not isinstance(item, kind) or isinstance(item, bool):
            raise ConfigError(f"{self._where}.{key} is a {type(item).__name__}; {kind.__name__} is required")
        return item

    def text(self, key: str, default: str | None = None) -> str:
        """Take a string."""
        return str(self._take(key, str, default))

    def number(self, key: str) -> int:
        """Take an integer that is not negative."""
        number = int(self._take(key, int, None))
        if number < 0:
            raise ConfigError(f"{self._where}.{key} is {number}; 0 or more is required")
        return number

    def words(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """Take a list of strings."""
        items = self._take(key, list, None if default is None else list(default))
        if not all(isinstance(item, str) and item for item in items):
            raise ConfigError(f"{self._where}.{key} holds something that is not a word")
        return tuple(items)

    def flag(self, key: str) -> bool:
        """Take true or false; false where it is absent."""
        item = self._value.pop(key, False)
        if not isinstance(item, bool):
            raise ConfigError(f"{self._where}.{key} is a {type(item).__name__}; true or false is required")
        return item

    def table(self, key: str, *, optional: bool = False) -> Table:
        """Take a table."""
        return Table(self._take(key, dict, {} if optional else None), f"{self._where}.{key}")

    def texts(self, key: str) -> dict[str, str]:
        """Take a table of strings, which may be absent."""
        items = self._take(key, dict, {})
        if not all(isinstance(item, str) for item in items.values()):
            raise ConfigError(f"{self._where}.{key} holds something that is not a string")
        return dict(items)

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def end(self) -> None:
        """Refuse what was not taken."""
        if self._value:
            raise ConfigError(f"{self._where} has the unknown key {min(self._value)!r}")


def parse_toml(data: bytes, where: str) -> Table:
    """Read a TOML file.

    Raises:
        ConfigError: not TOML.
    """
    return Table(_load(data, where), where)


def _load(data: bytes, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not TOML: {error}") from error


def extended(data: bytes) -> str | None:
    """Return the name of the image that an `image.toml` extends.

    Raises:
        ConfigError: not TOML, or not the name of an image.
    """
    name = _load(data, "image.toml").get("extends")
    if name is not None and not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ConfigError(f"image.toml.extends is {name!r}; the name of an image is required")
    return name


def asks_for_packages(data: bytes) -> bool:
    """Say whether an `image.toml` names packages or wheels, so that it takes a lock of its own to answer it.

    Raises:
        ConfigError: not TOML.
    """
    return not {"packages", "wheels"}.isdisjoint(_load(data, "image.toml"))


def _without(base: dict[str, Any], gone: Any, where: str) -> dict[str, Any]:  # noqa: ANN401  checked right here
    """Take words out of the lists of a table.

    Raises:
        ConfigError: `gone` is no table, or a list or a word to take out is not there.
    """
    if not isinstance(gone, dict):
        raise ConfigError(f"{where} is a {type(gone).__name__}; a table is required")
    left = dict(base)
    for key, value in gone.items():
        below = left.get(key)
        if isinstance(below, dict):
            left[key] = _without(below, value, f"{where}.{key}")
        elif isinstance(below, list) and isinstance(value, list):
            for word in value:
                if word not in below:
                    raise ConfigError(f"{where}.{key} names {word!r}, which the image that is extended does not have")
            left[key] = [word for word in below if word not in value]
        else:
            raise ConfigError(f"{where}.{key} is no list or table of the image that is extended")
    return left


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Lay one table over another: tables are merged, lists appended, all else replaced."""
    merged = dict(base)
    for key, value in own.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merged(below, value)
        elif isinstance(below, list) and isinstance(value, list):
            merged[key] = below + value
        else:
            merged[key] = value
    return merged


def parse_recipe(data: bytes, *, base: bytes | None = None) -> Recipe:
    """Read an image's `image.toml`, laid over that of the image which it extends.

    Raises:
        ConfigError: not TOML, a key is missing or unknown, or has another type; `base` extends another image itself.
    """
    value = _load(data, "image.toml")
    if base is not None:
        below = _load(base, "image.toml")
        value.pop("extends", None)
        value = _merged(_without(below, value.pop("without", {}), "image.toml.without"), value)
    top = Table(value, "image.toml")
    modules = _take_modules(top)
    request = take_request(top, roles=ROLES if modules is None else (*ROLES, MODULES_ROLE))
    kernel = top.table("kernel")
    firmware = top.table("firmware")
    rootfs = top.table("rootfs")
    recipe = Recipe(
        name=top.text("name"),
        shell=top.flag("shell"),
        source_date_epoch=top.number("source_date_epoch"),
        cmdline=_cmdline(top.words("cmdline")),
        cpus=top.words("cpus"),
        request=request,
        vmlinuz=kernel.text("vmlinuz"),
        initrd_modules=kernel.words("initrd_modules"),
        rootfs_modules=kernel.words("rootfs_modules"),
        firmware=firmware.text("path"),
        rootfs=RootfsRecipe(
            prune=rootfs.words("prune"),
            directories=rootfs.words("directories"),
            busybox=rootfs.words("busybox"),
            extra=rootfs.texts("extra"),
            links=rootfs.texts("links"),
        ),
        modules=modules,
    )
    for table in (kernel, firmware, rootfs, top):
        table.end()
    return recipe


def _take_modules(top: Table) -> ModulesRecipe | None:
    if "modules" not in top:
        return None
    table = top.table("modules")
    modules = ModulesRecipe(source=table.text("source"), make=table.words("make"), take=table.words("take"))
    table.end()
    return modules


def take_request(top: Table, *, roles: tuple[str, ...]) -> Request:
    """Take the tables `packages` and `wheels`.

    Raises:
        ConfigError: a key is missing or unknown, or has another type.
    """
    packages = top.table("packages")
    wanted = {}
    for name in roles:
        table = packages.table(name)
        wanted[name] = RoleRequest(
            include=table.words("include"), drop=table.words("drop", ()), only=table.words("only", ())
        )
        table.end()
    wheels = None
    if "wheels" in top:
        table = top.table("wheels")
        wheels = WheelRequest(python=table.text("python"), include=table.words("include"))
        table.end()
    request = Request(
        suites=packages.words("suites"),
        fallback_suites=packages.words("fallback_suites", ()),
        roles=wanted,
        wheels=wheels,
        components=packages.words("components", MAIN),
    )
    packages.end()
    return request


def _cmdline(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if not word.isascii() or not word.isprintable() or " " in word:
            raise ConfigError(f"image.toml.cmdline holds {word!r}; printable words without spaces are required")
        if word.startswith("cvmtool."):
            raise ConfigError(f"image.toml.cmdline holds {word!r}; the build alone adds words that begin with cvmtool.")
    return words
