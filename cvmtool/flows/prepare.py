# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""From a job file to what a launch commits to: inputs and container sealed, the manifest written.

Zone: flows (owner's machine). Needs no host.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvmtool.config import Settings, private_dir, write_once
from cvmtool.data.oci import ImageConfig, OciImage
from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows.decisions import Gate, Headers, input_headers
from cvmtool.flows.egress import pin
from cvmtool.flows.launch import Launch, Site
from cvmtool.flows.models import seal_model
from cvmtool.flows.packfile import seal_input, take_container
from cvmtool.flows.packs import SealedPack, seal_container
from cvmtool.flows.reporter import Reporter, Stage
from cvmtool.formats.idblock import NAME_BYTES, IdBlock, LaunchIdentity
from cvmtool.formats.job import Container, JobManifest, Network, parse_job_manifest
from cvmtool.formats.jobterms import CHECKPOINT, NO_ACCESS, Checkpoint, Destination
from cvmtool.formats.machine import Manifest
from cvmtool.formats.manifest import Mode
from cvmtool.formats.pack import Role
from cvmtool.formats.policybits import POLICY_BITS, GuestPolicy
from cvmtool.formats.volume import Volume
from cvmtool.host.domain import Disk
from cvmtool.image.bundle import Bundle
from cvmtool.owner.jobfile import JobFile, parse_job_file
from cvmtool.owner.jobmodel import MODEL, ModelWish
from cvmtool.owner.jobparties import parties_of
from cvmtool.owner.keystore import OwnerKeys, generate_keys, parse_keys
from cvmtool.owner.launchsign import sign_launch
from cvmtool.owner.packsign import refuse_unscrubbed

_SMT_ALLOWED = 1 << POLICY_BITS["smt"]
_RESERVED_ONE = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job ready to be launched."""

    file: JobFile
    manifest: JobManifest
    packs: tuple[SealedPack, ...]
    keys: OwnerKeys
    bundle: Bundle

    @property
    def headers(self) -> Headers:
        """What is said of each input."""
        return {pack.descriptor.name: pack.header for pack in self.packs if pack.descriptor.role is Role.INPUT}

    def launch(self, mode: Mode, site: Site | None = None, volumes: tuple[Disk, ...] = ()) -> Launch:
        """Return the machine that this job is for, with the disks of its `volumes`.

        Raises:
            FormatError: as `signed_launch`.
        """
        return signed_launch(
            self.manifest,
            self.bundle,
            mode,
            self.keys,
            smt=self.file.smt,
            packs=self.packs,
            volumes=volumes,
            site=site,
        )


def signed_launch(
    manifest: Manifest,
    bundle: Bundle,
    mode: Mode,
    keys: OwnerKeys,
    *,
    smt: bool = True,
    packs: tuple[SealedPack, ...] = (),
    volumes: tuple[Disk, ...] = (),
    site: Site | None = None,
) -> Launch:
    """Return the machine that a manifest is for, its launch signed by the owner: firmware then finishes no other.

    It demands of the firmware: no debugging, no migration, and no SMT unless `smt`.

    Raises:
        FormatError: the image has no launch digest for the CPU model and count.
    """
    resources, site = manifest.resources, site or Site()
    policy = GuestPolicy(_RESERVED_ONE | (_SMT_ALLOWED if smt else 0))
    block = IdBlock(
        digest=bundle.manifest.launch_digest(mode, resources.cpu, resources.vcpus),
        image_id=bytes.fromhex(bundle.digest)[:NAME_BYTES],
        policy=policy,
    )
    return Launch(
        label=manifest.name,
        bundle=bundle,
        mode=mode,
        host_data=manifest.host_data,
        policy=policy,
        resources=resources,
        packs=packs,
        volumes=volumes,
        reachable=isinstance(manifest, JobManifest) and manifest.access != NO_ACCESS,
        network=isinstance(manifest, JobManifest) and manifest.network is Network.ALLOW,
        placement=site.placement,
        gpus=site.gpus,
        identity=LaunchIdentity(block=block, auth=sign_launch(block, keys.launch_key())),
    )


def load_keys(settings: Settings) -> OwnerKeys:
    """Read the owner's keys; make them at first use.

    Raises:
        ConfigError: the file is damaged.
    """
    private_dir(settings.state_dir)
    try:
        return parse_keys(settings.keystore.read_bytes())
    except FileNotFoundError:
        # Two first uses at once must agree: a pack sealed with keys that were overwritten never opens again.
        write_once(settings.keystore, generate_keys().encode())
        return parse_keys(settings.keystore.read_bytes())


def read_job(path: Path) -> JobFile:
    """Read a job file.

    Raises:
        ConfigError: it cannot be read or is not a job.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", detail=str(error)) from error
    try:
        return parse_job_file(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", detail=error.detail, hint=error.hint) from error


def prepare(
    path: Path, bundle: Bundle, *, settings: Settings, reporter: Reporter, gate: Gate | None = None
) -> Prepared:
    """Seal a job's inputs and container and write its manifest; `gate`: the rules of the run, None for none.

    Raises:
        RulesError: the rules forbid it (an AppraisalError).
        AppraisalError: an input is personal and neither scrubbed nor waived.
        ConfigError: an input is missing, the container cannot run here, or a destination's name stands for nothing outside.
        VerificationError: the container is not the one that the job pins, or the model not the one that its signer signed.
    """
    job = read_job(path)
    if gate is not None:
        gate.ingest(job, input_headers(job, path.resolve().parent))
    keys = load_keys(settings)
    base = path.resolve().parent
    destinations = pin(job.destinations)
    with reporter.stage(Stage.PACK, "sealing inputs"):
        image = OciImage(job.container_image, job.container_digest, base=base)
        reporter.step("container")
        packs = [_container(job, image, base, settings=settings, keys=keys, reporter=reporter)]
        for name, source in job.inputs.items():
            reporter.step(name)
            if job.model is not None and name == MODEL:
                packs.append(_seal_model(job, job.model, base, settings=settings, keys=keys, reporter=reporter))
            else:
                packs.append(
                    seal_input(
                        base / source,
                        name,
                        settings=settings,
                        keys=keys,
                        progress=reporter.progress,
                        parties=job.parties.values(),
                    )
                )
        for name in refuse_unscrubbed({pack.descriptor.name: pack.header for pack in packs[1:]}, job.waive):
            reporter.notice(f"input {name} is personal and was never scrubbed; the job waives that")
        salt = secrets.token_bytes(32)
        manifest = make_manifest(job, image.config, keys, packs, destinations=destinations, salt=salt)
    prepared = Prepared(file=job, manifest=manifest, packs=tuple(packs), keys=keys, bundle=bundle)
    if gate is not None:
        gate.seal(manifest, prepared.headers)
    return prepared


def _container(
    job: JobFile, image: OciImage, base: Path, *, settings: Settings, keys: OwnerKeys, reporter: Reporter
) -> SealedPack:
    if job.container_pack is None:
        return seal_container(image, settings=settings, keys=keys, progress=reporter.progress)
    return take_container(base / job.container_pack, image.digest, keys=keys, parties=job.parties.values())


def _seal_model(
    job: JobFile, wish: ModelWish, base: Path, *, settings: Settings, keys: OwnerKeys, reporter: Reporter
) -> SealedPack:
    return seal_model(
        base / wish.path,
        signer=base / wish.signer if wish.signer else None,
        settings=settings,
        keys=keys,
        progress=reporter.progress,
        notice=reporter.notice,
        parties=job.parties.values(),
    )


def make_manifest(
    job: JobFile,
    image: ImageConfig,
    keys: OwnerKeys,
    packs: Sequence[SealedPack],
    *,
    salt: bytes,
    destinations: tuple[Destination, ...] = (),
) -> JobManifest:
    """Merge what the job file and the container image say into the document that a launch commits to.

    Raises:
        ConfigError: neither names a program, or no guest would take the whole: an environment variable of the image with
            a name that cannot be passed on, one tree as two inputs, too much text.
    """
    args = job.command or image.args
    if not args:
        raise ConfigError(
            "command is empty and the container image has no entry point", hint="set command: in the job file"
        )
    env = {**image.env, **job.env}
    manifest = JobManifest(
        name=job.name,
        salt=salt.hex(),
        owner_key=keys.public.hex(),
        container=Container(
            oci_digest=job.container_digest,
            args=args,
            env=tuple(sorted(env.items())),
            workdir=job.workdir or image.workdir,
        ),
        packs=tuple(pack.descriptor for pack in packs),
        outputs=job.outputs,
        resources=job.resources,
        limits=job.limits,
        network=job.network,
        destinations=destinations,
        kind=job.kind,
        access=job.access,
        checkpoint=_checkpoint(job),
        recipients=job.recipients,
        parties=parties_of(job.parties, keys.public.hex(), [(pack.descriptor.name, pack.header) for pack in packs]),
    )
    try:
        parse_job_manifest(manifest.encode())  # what the guest would refuse is refused here, before anything starts
    except FormatError as error:
        raise ConfigError(f"job {job.name} cannot be run: {error.message}") from error
    return manifest


def _checkpoint(job: JobFile) -> Checkpoint | None:
    wish = job.checkpoint
    if wish is None:
        return None
    # It may be made on a blank disk as long as the owner says so with its key: the manifest stays the same for every launch.
    volume = Volume(name=CHECKPOINT, luks_uuid=str(uuid.uuid4()), size=wish.size, create=True)
    return Checkpoint(volume=volume, grace_seconds=wish.grace_seconds)
