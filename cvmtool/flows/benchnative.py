# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The native run of `cvmtool bench`: the container's file system as a root of this machine's own kernel, without any VM.

Zone: flows. One of the doors to subprocess. The files of the packs are unpacked in clear into a directory of this user's that is
gone afterwards. The container gets what it gets in a guest (uid, mounts, variables, no network), but no control group and no
seccomp: they cost next to nothing, and a machine may have other control groups than a guest.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from io import FileIO
from pathlib import Path

from cvmtool.config import Settings, private_dir
from cvmtool.data.opening import extract_pack
from cvmtool.errors import ConfigError, JobError
from cvmtool.flows.benchphases import Watch
from cvmtool.flows.prepare import Prepared
from cvmtool.formats.control import LogRecord, Stream
from cvmtool.formats.job import JobManifest

_PROGRAMS = ("unshare", "mount", "env", "sh")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOBODY = 65_534
_LEAST_TMP_MIB = 16
_SETUP_SECONDS = 60.0
_PIECE = 1 << 16
# $1 root, $2 to $4 MiB of outputs, scratch and memory; then NAME=VALUE and what enters the root and runs the program.
# Standard input is where it says how far it is: the one descriptor beside the two streams that has a number of one digit.
_SCRIPT = """
set -e
exec 3>&0 </dev/null
root=$1 outputs=$2 scratch=$3 memory=$4
shift 4
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o "size=${memory}m,mode=1777" tmpfs "$root/dev/shm"
mount -t tmpfs -o "size=${scratch}m,mode=1777" tmpfs "$root/tmp"
mount -t tmpfs -o "size=${scratch}m,uid=65534,gid=65534,mode=700" tmpfs "$root/scratch"
mount -t tmpfs -o "size=${outputs}m,uid=65534,gid=65534,mode=700" tmpfs "$root/outputs"
echo started >&3
code=0
env -i "$@" 3>&- || code=$?
echo ended >&3
mkdir "$root/home"
cp -a "$root/outputs/." "$root/home/"
exit $code
"""


def run_native(prepared: Prepared, settings: Settings) -> Watch:
    """Run a prepared job's container here, and take its outputs without keeping them.

    Raises:
        ConfigError: this user is not root, or a program is missing.
        JobError: the container failed.
    """
    if os.geteuid() != 0:
        raise ConfigError("user is not root; root is required to run a container natively (mounts and another root)")
    for program in _PROGRAMS:
        if shutil.which(program, path=_PATH) is None:
            raise ConfigError(f"{program} is not installed; it is required to run a container natively")
    with tempfile.TemporaryDirectory(dir=private_dir(settings.state_dir), prefix=".bench-") as name:
        root = _unpack(prepared, Path(name))
        return _run(prepared.manifest, root)


def _unpack(prepared: Prepared, folder: Path) -> Path:
    """Unpack the container and its inputs below `folder`; return the container's root."""
    root = folder / "root"
    for pack in prepared.packs:
        target = root if pack.descriptor.name == "container" else root / "inputs" / pack.descriptor.name
        passphrase = prepared.keys.pack_passphrase(pack.descriptor.luks_uuid)
        extract_pack(pack.path, pack.descriptor, target, passphrase=passphrase)
        if target is root:
            for point in ("proc", "dev", "tmp", "inputs", "outputs", "scratch"):
                (root / point).mkdir(exist_ok=True)
        target.chmod(0o755)
    folder.chmod(0o711)
    return root


def _run(manifest: JobManifest, root: Path) -> Watch:
    limits, container = manifest.limits, manifest.container
    scratch = max(_LEAST_TMP_MIB, limits.scratch_mib)
    sizes = [str(size) for size in (limits.outputs_mib, scratch, limits.memory_mib)]
    variables = {"PATH": _PATH, "HOME": "/tmp", **dict(container.env)}  # noqa: S108 - inside the container
    given = [f"{key}={value}" for key, value in variables.items()]
    command = ["unshare", "--mount", "--pid", "--fork", "--net", "--ipc", "--uts", "--kill-child", "sh", "-c", _SCRIPT]
    enter = [shutil.which("unshare", path=_PATH) or "unshare", f"--root={root}", f"--wd={container.workdir}"]
    enter += [f"--setgid={_NOBODY}", f"--setuid={_NOBODY}", "--"]
    command += ["sh", str(root), *sizes, *given, *enter, *container.args]
    told, tell = os.pipe2(os.O_CLOEXEC)
    begun = time.monotonic()
    with (
        os.fdopen(told, "rb", buffering=0) as words,
        subprocess.Popen(
            command,
            stdin=tell,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": _PATH, "LC_ALL": "C"},
            start_new_session=True,
        ) as process,
    ):
        os.close(tell)
        try:
            times, records = _attend(process, words, begun + limits.seconds + _SETUP_SECONDS)
            code = process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    home = time.monotonic()
    if code != 0 or "ended" not in times:
        said = b"".join(record.data for record in records).decode("utf-8", "replace")
        raise JobError(f"the container ended with {code} natively; 0 is required", detail=said[-2000:])
    started, ended = times["started"], times["ended"]
    return Watch(start=started - begun, run=ended - started, export=home - ended, records=tuple(records))


def _attend(
    process: subprocess.Popen[bytes], words: FileIO, deadline: float
) -> tuple[dict[str, float], list[LogRecord]]:
    """Return when the script said its words, and both streams as a guest's log has them.

    Raises:
        JobError: the job's limit of time has come.
    """
    times: dict[str, float] = {}
    records: list[LogRecord] = []
    with selectors.DefaultSelector() as selector:
        selector.register(words, selectors.EVENT_READ, None)
        for stream, pipe in ((Stream.STDOUT, process.stdout), (Stream.STDERR, process.stderr)):
            if pipe is not None:
                selector.register(pipe, selectors.EVENT_READ, stream)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise JobError("the container did not end natively within limits.time")
            for key, _ in selector.select(left):
                data = os.read(key.fd, _PIECE)
                now = time.monotonic()
                if not data:
                    selector.unregister(key.fileobj)
                elif key.data is None:
                    times |= dict.fromkeys(data.decode("ascii").split(), now)
                else:
                    microseconds = round((now - times.get("started", now)) * 1e6)
                    records.append(LogRecord(stream=key.data, microseconds=microseconds, data=data))
    return times, records
