# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Settings and every place cvmtool keeps a file.

Zone: owner's machine (cli and flows). The only module that reads the environment.
Order of precedence: flags, then CVMTOOL_*, then ./cvmtool.toml, then $XDG_CONFIG_HOME/cvmtool/cvmtool.toml, then
/etc/cvmtool/cvmtool.toml. Unknown keys are errors.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from cvmtool.errors import ConfigError

PACKAGE_DIR = Path(__file__).resolve().parent

# Names below the state directory (0700).
KEYSTORE_FILE = "owner.key"  # the owner's seed, 0600
JOBS_DIR = "jobs"  # one directory a run: record, evidence, verdict, log, outputs, receipt
CASES_DIR = "cases"  # evidence of refusals, for `cvmtool attest replay`
VISITS_DIR = "visits"  # sessions with others' running jobs; below a run, those of its owner beside the one that runs it
PACKS_DIR = "packs"  # sealed packs by content
DRYRUN_DIR = "dryrun"  # the simulated AMD root and its keys
PROBES_DIR = "probes"  # what running something taught us about this host
RECORDS_DIR = "machines"  # one file a machine: where it runs
VMS_DIR = "vms"  # one directory a machine without a job: what it is, its image, what it proved
VOLUMES_DIR = "volumes"  # one file a volume: where it is, and which of its states is the newest
GRANTS_DIR = "grants"  # one directory a grant of ours: itself, its nonces, its uses
LOCKS_DIR = "locks"  # held while something is sent to a host
SSH_DIR = "ssh"  # for libvirt: ssh with the settings of a host
LIBVIRT_LOG_FILE = "libvirt.log"
# Names below the configuration directory.
HOSTS_DIR = "hosts"  # one directory a host that `cvmtool host add` made
HOST_FILE = "host.toml"
KNOWN_HOSTS_FILE = "known_hosts"
# Names below the data directory.
BUNDLES_DIR = "bundles"  # guest images
# Names below the cache directory.
PACKAGES_DIR = "packages"  # distribution packages by SHA-256
SEEDS_DIR = "seeds"  # what launch digests need of firmwares, by SHA-256


HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_ACCELERATORS = ("qemu", "kvm")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """A host that has a name: a table `[hosts.NAME]`, or a directory that `cvmtool host add` made."""

    name: str
    uri: str
    """libvirt URI."""
    identity: Path | None = None
    """Private SSH key; None tries the agent and the account's own keys."""
    known_hosts: Path | None = None
    """The host's SSH keys; None is `~/.ssh/known_hosts`."""
    machines: str | None = None
    """The host's directory of machines and store."""
    files: str | None = None
    """`sftp://[USER@]HOST[:PORT]`, where the URI is not SSH's."""
    accelerator: str | None = None
    """`kvm` or `qemu` (TCG) in dry runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are and which host is driven. A text can be set at each level of precedence, a named host in files."""

    host: str | None
    """A named host or a libvirt URI; None chooses one on this machine (docs/architecture.md)."""
    state_dir: Path
    """The owner's keys, jobs, packs and evidence. Trusted, 0700."""
    data_dir: Path
    """Guest image bundles."""
    cache_dir: Path
    """What can be fetched or made again."""
    machines_dir: Path
    """What is handed to the host: for a local host, its copies of the disks, and consoles. Nothing secret."""
    hosts: Mapping[str, HostSettings]
    """Named hosts."""
    config_dir: Path
    """Where `cvmtool host add` writes. Follows XDG_CONFIG_HOME alone: it is where settings come from."""
    known_hosts: Path
    """The account's SSH host keys, for hosts without a file of their own."""
    rules: tuple[Path, ...] = ()
    """Rules of every run (docs/reference/policy-pipeline.md). A level adds to those before it, and takes none away."""

    @property
    def hosts_dir(self) -> Path:
        """One directory an added host."""
        return self.config_dir / HOSTS_DIR

    def target(self) -> HostSettings | None:
        """Return the host that is driven; None leaves the choice open.

        Raises:
            ConfigError: it is neither a named host nor a URI.
        """
        if self.host is None or self.host in self.hosts:
            return None if self.host is None else self.hosts[self.host]
        if ":" not in self.host:
            near = difflib.get_close_matches(self.host, self.hosts, 1)
            hint = f"did you mean {near[0]!r}?" if near else "cvmtool host list"
            raise ConfigError(f"there is no host {self.host[:80]!r}", hint=hint)
        return HostSettings(name=self.host, uri=self.host)

    @property
    def keystore(self) -> Path:
        """The file with the owner's seed."""
        return self.state_dir / KEYSTORE_FILE

    @property
    def jobs_dir(self) -> Path:
        """One directory a run."""
        return self.state_dir / JOBS_DIR

    @property
    def cases_dir(self) -> Path:
        """One directory a refusal."""
        return self.state_dir / CASES_DIR

    @property
    def visits_dir(self) -> Path:
        """One directory a session with another account's running job."""
        return self.state_dir / VISITS_DIR

    @property
    def packs_dir(self) -> Path:
        """One directory a pack."""
        return self.state_dir / PACKS_DIR

    @property
    def dryrun_dir(self) -> Path:
        """The simulated AMD."""
        return self.state_dir / DRYRUN_DIR

    @property
    def probes_dir(self) -> Path:
        """Cached probe results."""
        return self.state_dir / PROBES_DIR

    @property
    def records_dir(self) -> Path:
        """One file a machine."""
        return self.state_dir / RECORDS_DIR

    @property
    def vms_dir(self) -> Path:
        """One directory a machine without a job."""
        return self.state_dir / VMS_DIR

    @property
    def volumes_dir(self) -> Path:
        """One file a volume."""
        return self.state_dir / VOLUMES_DIR

    @property
    def grants_dir(self) -> Path:
        """One directory a grant to another owner's jobs."""
        return self.state_dir / GRANTS_DIR

    @property
    def ssh_dir(self) -> Path:
        """Programs that are ssh with the settings of a host."""
        return self.state_dir / SSH_DIR

    @property
    def locks_dir(self) -> Path:
        """Locks between this owner's processes."""
        return self.state_dir / LOCKS_DIR

    @property
    def bundles_dir(self) -> Path:
        """Guest images by name."""
        return self.data_dir / BUNDLES_DIR

    @property
    def packages_dir(self) -> Path:
        """Kept packages."""
        return self.cache_dir / PACKAGES_DIR

    @property
    def seeds_dir(self) -> Path:
        """Kept firmware seeds."""
        return self.cache_dir / SEEDS_DIR


def load_settings(
    environ: Mapping[str, str] | None = None, *, project: Path | None = None, host: str | None = None
) -> Settings:
    """Merge the settings of every level.

    Args:
        environ: the environment; None means this process's.
        project: the directory that may hold cvmtool.toml; None means the working directory.
        host: of the flag, which wins.

    Raises:
        ConfigError: a file cannot be read, or has an unknown key or a value of another type.
    """
    env = os.environ if environ is None else environ
    home = Path(env.get("HOME") or "~").expanduser()
    merged: dict[str, str] = {}
    config_home = _xdg(env, "XDG_CONFIG_HOME", home / ".config")
    hosts = _added_hosts(config_home / HOSTS_DIR)
    rules: list[Path] = []
    for path in (
        Path("/etc/cvmtool/cvmtool.toml"),
        config_home / "cvmtool.toml",
        (project or Path.cwd()) / "cvmtool.toml",
    ):
        texts, named = _read(path)
        merged.update(texts)
        hosts.update(named)
        rules += [path.parent / Path(texts["rules"]).expanduser()] if "rules" in texts else []
    for name in _names():
        value = env.get(f"CVMTOOL_{name.upper()}")
        if value:
            merged[name] = value
    rules += [Path(env["CVMTOOL_RULES"]).absolute()] if env.get("CVMTOOL_RULES") else []
    state = Path(merged.get("state_dir", _xdg(env, "XDG_STATE_HOME", home / ".local/state")))
    # As root, QEMU runs as an unprivileged user that cannot reach below /root; what the host gets stands where it can.
    machines = Path("/var/lib/cvmtool/machines") if os.geteuid() == 0 else state / "host"
    return Settings(
        host=host or merged.get("host"),
        state_dir=state,
        data_dir=Path(merged.get("data_dir", _xdg(env, "XDG_DATA_HOME", home / ".local/share"))),
        cache_dir=Path(merged.get("cache_dir", _xdg(env, "XDG_CACHE_HOME", home / ".cache"))),
        machines_dir=Path(merged.get("machines_dir", machines)),
        hosts=hosts,
        config_dir=config_home,
        known_hosts=home / ".ssh/known_hosts",
        rules=tuple(dict.fromkeys(rules)),
    )


def session_dirs(environ: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    """Return what stands for XDG_RUNTIME_DIR and XDG_CONFIG_HOME in libvirt's eyes; its session sockets lie below."""
    env = os.environ if environ is None else environ
    home = Path(env.get("HOME") or "~").expanduser()
    cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache")
    runtime = env.get("XDG_RUNTIME_DIR")
    return Path(runtime if runtime and _is_own(runtime) else cache), Path(
        env.get("XDG_CONFIG_HOME") or home / ".config"
    )


def forget_foreign_runtime_dir() -> None:
    """Drop an XDG_RUNTIME_DIR that is not this user's, as after `su`: libvirt would insist on writing there."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime is not None and not _is_own(runtime):
        del os.environ["XDG_RUNTIME_DIR"]


def _is_own(folder: str) -> bool:
    try:
        return Path(folder).stat().st_uid == os.geteuid() and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        return False


def _names() -> list[str]:
    return [item.name for item in fields(Settings) if item.name not in {"hosts", "config_dir", "known_hosts"}]


def _xdg(env: Mapping[str, str], name: str, default: Path) -> Path:
    return Path(env.get(name) or default) / "cvmtool"


def _read(path: Path) -> tuple[dict[str, str], dict[str, HostSettings]]:
    document = _toml(path)
    tables = document.pop("hosts", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: hosts is a {type(tables).__name__}; tables [hosts.NAME] are required")
    hosts = {name: _host(path, name, table, f"hosts.{name}.") for name, table in tables.items()}
    return _texts(path, document, _names(), ""), hosts


def _toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read", detail=str(error)) from error


def _texts(path: Path, table: Mapping[str, object], known: list[str], where: str) -> dict[str, str]:
    found = {}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"{path}: unknown key {where + key!r}", hint=hint)
        if not isinstance(value, str):
            raise ConfigError(f"{path}: {where}{key} is a {type(value).__name__}; a string is required")
        found[key] = value
    return found


def _host(path: Path, name: str, table: object, where: str) -> HostSettings:
    if not HOST_NAME.fullmatch(name):
        raise ConfigError(
            f"{path}: a host's name is {name[:80]!r}; lower-case letters, digits, '.', '_' and '-' are required"
        )
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {where}uri is missing; a table [hosts.{name}] is required")
    values = _texts(path, table, [item.name for item in fields(HostSettings) if item.name != "name"], where)
    if "uri" not in values:
        raise ConfigError(f"{path}: {where}uri is missing", hint=f'uri = "qemu+ssh://USER@{name}/system"')
    if values.get("accelerator", "qemu") not in _ACCELERATORS:
        raise ConfigError(f"{path}: {where}accelerator is {values['accelerator']!r}; kvm or qemu is required")
    if not values.get("machines", "/").startswith("/"):
        raise ConfigError(f"{path}: {where}machines is {values['machines']!r}; an absolute path is required")
    keys = {key: (path.parent / Path(values[key]).expanduser()) for key in ("identity", "known_hosts") if key in values}
    return HostSettings(
        name=name,
        uri=values["uri"],
        machines=values.get("machines"),
        files=values.get("files"),
        accelerator=values.get("accelerator"),
        **keys,
    )


def _added_hosts(folder: Path) -> dict[str, HostSettings]:
    paths = {path.parent.name: path for path in sorted(folder.glob(f"*/{HOST_FILE}"))}
    return {name: _host(path, name, _toml(path), "") for name, path in paths.items()}


def resources(name: str) -> Path:
    """Return the directory `images` or `templates`: the checkout's, or the wheel's copy.

    Raises:
        ConfigError: neither is there.
    """
    for candidate in (PACKAGE_DIR.parent / name, PACKAGE_DIR / "_share" / name):
        if candidate.is_dir():
            return candidate
    raise ConfigError(f"the directory {name} was not installed with cvmtool", hint="reinstall cvmtool")


def private_dir(path: Path) -> Path:
    """Make `path` if it is missing and return it. It and every directory made on the way to it are 0700.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        for folder in reversed([path, *path.parents]):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the directory {path} cannot be made", detail=str(error)) from error
    return path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write `data` so that a reader sees the old file or the new one, whole, even after a crash."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_once(path: Path, data: bytes) -> bool:
    """Write `data` (0600) if there is no such file yet; False if there is. Of two processes, one wins, whole."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        return True
    finally:
        temporary.unlink(missing_ok=True)
