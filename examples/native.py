"""Run Python of a job's container on this machine, without container and virtual machine: to prepare inputs, and to compare.

    native.py JOB.yaml SCRIPT.py [ARGUMENT...]

The container's files are unpacked once, below `.root/` beside the job file. Its interpreter is started by its own dynamic
linker, so every library is the container's and only the kernel this machine's; no rights are needed, and nothing is isolated.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cvmtool.data.oci import OciImage
from cvmtool.owner.jobfile import parse_job_file


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    job_file, script = Path(sys.argv[1]), sys.argv[2:]
    job = parse_job_file(job_file.read_text("utf-8"))
    image = OciImage(job.container_image, job.container_digest, base=job_file.parent)
    root = (job_file.parent / ".root" / image.digest.rpartition(":")[2][:16]).resolve()
    if not root.exists():
        unpack(image, root)
    usr = root / "usr"
    libraries = f"{usr}/lib/x86_64-linux-gnu:{usr}/lib"
    environment = {**image.config.env, **job.env, "PYTHONHOME": str(usr), "PYTHONDONTWRITEBYTECODE": "1"}
    linker = usr / "lib64" / "ld-linux-x86-64.so.2"
    command = [str(linker), "--library-path", libraries, str((usr / "bin" / "python3").resolve()), *script]
    os.execve(linker, command, environment)


def unpack(image: OciImage, root: Path) -> None:
    """Write an image's files below the new directory `root`, whole or not at all."""
    new = root.with_name(root.name + ".new")
    new.mkdir(parents=True, exist_ok=True)
    tar = subprocess.Popen(["tar", "-x", "--no-same-owner", "-C", new], stdin=subprocess.PIPE)
    assert tar.stdin is not None
    with tar.stdin as pipe:
        for piece in image.rootfs():
            pipe.write(piece)
    if tar.wait() != 0:
        sys.exit(f"{root} cannot be unpacked")
    new.rename(root)


if __name__ == "__main__":
    main()
