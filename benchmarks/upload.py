# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""How fast a pack goes to a host over SSH, compared with OpenSSH's own `sftp` to the same server in the same run.

    python -m benchmarks.upload            pairs of `sftp put` and an upload into the store, over the loopback
    python -m benchmarks.upload --mib 256  of another size

A: `sftp -b - ... put`, the whole process. B: connecting, `Store.place` (the file arrives, its SHA-256 is asked of the host, it
is linked and renamed), disconnecting. The source's own SHA-256 is known beforehand, as a pack's is. The median of A/B in time,
that is B's speed as a part of A's, is at least 0.7.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cvmtool.host.address import SshAddress
from cvmtool.host.remote import RemoteFiles, SshAccess
from cvmtool.host.store import Artefact, Store
from tests.fakes.remote_host import RemoteHost, remote_host

BAR = 0.7


def sftp(host: RemoteHost, source: Path, target: Path) -> float:
    """Return the seconds of OpenSSH's own program."""
    begun = time.monotonic()
    options = ["-q", "-b", "-", "-F", "none", "-P", str(host.port), "-i", str(host.identity)]
    options += ["-o", f"UserKnownHostsFile={host.known_hosts}", f"{host.user}@127.0.0.1"]
    subprocess.run(["sftp", *options], input=f"put {source} {target}\n", text=True, check=True, capture_output=True)
    return time.monotonic() - begun


def place(host: RemoteHost, artefact: Artefact, folder: Path) -> float:
    """Return the seconds of an upload into an empty store."""
    begun = time.monotonic()
    address = SshAddress(user=host.user, host="127.0.0.1", port=host.port)
    files = RemoteFiles(SshAccess(address=address, known_hosts=host.known_hosts, identity=host.identity))
    store = Store(files, str(folder / "machines"), uploader="0" * 12, locks=folder)
    files.make_dir(str(folder / "machines" / "m"))
    store.place(artefact, str(folder / "machines" / "m" / "pack.img"), lambda _done, _total: None)
    files.close()
    return time.monotonic() - begun


def main() -> None:
    """Measure pairs, print and judge them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name, remote_host(libvirt=False) as host:
        source = Path(name) / "pack.img"
        digest = hashlib.sha256()
        with source.open("wb") as file:
            for _ in range(options.mib):
                piece = os.urandom(1 << 20)
                digest.update(piece)
                file.write(piece)
        artefact = Artefact(path=source, sha256=digest.hexdigest(), size=options.mib << 20)
        for _ in range(options.pairs):
            target = Path(name) / "target"
            theirs = sftp(host, source, target)
            target.unlink()
            with tempfile.TemporaryDirectory(dir=name) as folder:
                ours = place(host, artefact, Path(folder))
            pairs.append((round(options.mib / theirs), round(options.mib / ours)))
    median = statistics.median(ours / theirs for theirs, ours in pairs)
    if options.json:
        print(json.dumps({"schema": "cvmtool/bench-upload/v1", "mib_s": pairs, "median_ratio": median, "bar": BAR}))
    else:
        for theirs, ours in pairs:
            print(f"sftp {theirs} MiB/s   upload {ours} MiB/s   {ours / theirs:.2f}")
        print(f"an upload has {median:.2f} of sftp's speed (bar: {BAR})")
    sys.exit(0 if median >= BAR else 1)


if __name__ == "__main__":
    main()
