# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A pack, a job and a job file that hold in every detail, for tests that then change one."""

import hashlib
import json
from dataclasses import replace

from cvmtool.formats.job import Container, JobManifest, Kind, Limits, Network, Output, OutputKind, Resources
from cvmtool.formats.jobterms import Access, Checkpoint, Destination
from cvmtool.formats.pack import PackDescriptor, Role
from cvmtool.formats.parties import Party
from cvmtool.formats.volume import Volume
from cvmtool.formats.wire import canonical_json

DIGEST = "sha256:" + "ab" * 32


def pack(name: str, role: Role = Role.INPUT, **changes) -> PackDescriptor:
    blocks = 5000
    base = PackDescriptor(
        name=name,
        role=role,
        root_hash=hashlib.sha256(name.encode()).hexdigest(),
        salt="5a" * 32,
        data_blocks=blocks,
        hash_offset=blocks * 4096,
        size=blocks * 4096 + 45 * 4096,
        luks_uuid="01234567-89ab-cdef-0123-456789abcdef",
        volume_key_digest="A" * 43 + "=",
        header_sha256="cd" * 32,
    )
    return replace(base, **changes)


def changed_json(base: object, path: list[str | int] | tuple[str | int, ...], value: object) -> bytes:
    """The canonical bytes of `base` with `value` at `path`."""
    document = json.loads(json.dumps(base))
    *parents, last = path
    at = document
    for step in parents:
        at = at[step]
    at[last] = value
    return canonical_json(document)


def manifest(**changes) -> JobManifest:
    base = JobManifest(
        name="digits",
        salt="11" * 32,
        owner_key="22" * 32,
        container=Container(
            oci_digest=DIGEST, args=("python3", "train.py"), env=(("A", "1"), ("B", "é\n")), workdir="/app"
        ),
        packs=(pack("container", Role.CONTAINER), pack("data"), pack("model")),
        outputs=(
            Output(name="model.safetensors", kind=OutputKind.SAFETENSORS, max_bytes=1 << 20),
            Output(name="logs/metrics.json", kind=OutputKind.JSON, max_bytes=4096),
        ),
        resources=Resources(vcpus=2, memory_mib=1024, cpu="EPYC-Genoa"),
        limits=Limits(memory_mib=800, pids=64, scratch_mib=64, outputs_mib=64, log_mib=16, seconds=600),
        network=Network.NONE,
    )
    return replace(base, **changes)


def ample_manifest(**changes) -> JobManifest:
    """One with every term that a job may have."""
    return manifest(
        **{
            "network": Network.ALLOW,
            "kind": Kind.SERVE,
            "destinations": (
                Destination(host="192.0.2.7", port=80, addresses=("192.0.2.7",), tls=False),
                Destination(host="example.org", port=443, addresses=("192.0.2.1", "2001:db8::1"), tls=True),
            ),
            "access": Access(exec=True, tunnels=(6006, 8080), clients=("33" * 32, "44" * 32)),
            "checkpoint": Checkpoint(
                volume=Volume(
                    name="checkpoint", luks_uuid="00112233-4455-6677-8899-aabbccddeeff", size=1 << 30, create=True
                ),
                grace_seconds=30,
            ),
            "recipients": ("55" * 32, "66" * 32),
            **changes,
        }
    )


def pooled_manifest(**changes) -> JobManifest:
    """One of several owners: the container is the coordinator's, each input a party's."""
    return manifest(
        **{
            "packs": (pack("container", Role.CONTAINER), pack("clinic"), pack("ward")),
            "recipients": ("55" * 32, "66" * 32),
            "parties": (Party(owner_key="77" * 32, packs=("clinic",)), Party(owner_key="88" * 32, packs=("ward",))),
            **changes,
        }
    )


JOB_YAML = f"""
name: digits
container:
  image: oci-archive:container.oci.tar
  digest: {DIGEST}
command: [python3, train.py, --epochs, "3"]
env: {{THREADS: "1"}}
inputs: {{data: inputs/data}}
outputs:
  model.safetensors: {{kind: safetensors, max: 1MiB}}
resources: {{vcpus: 2, memory: 1GiB, cpu: EPYC-Genoa}}
limits: {{time: 10m}}
"""
