# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Every key of job.yaml and what it means: the readers ask here which keys there are, docs/reference/job.md is made from it.

Zone: owner. Pure. What is said of types, bounds and defaults on that page comes from the readers' own calls; here only where a
reader cannot say it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. `NAME` in it stands for any name."""

    name: str
    meaning: str
    kind: str | None = None
    """What it holds, if more than one thing or what no reader's call tells."""
    default: str | None = None
    """In words, if it is not a value."""


def _key(name: str, meaning: str, *, kind: str | None = None, default: str | None = None) -> Key:
    return Key(name=name, meaning=meaning, kind=kind, default=default)


KEYS = (
    _key("name", "of the job"),
    _key("kind", "`train` ends by itself and has outputs; `serve` stands by at a port until it is ended"),
    _key("image", "the guest image: a folder of `images/`"),
    _key("container", "what runs"),
    _key("container.image", "`oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`"),
    _key("container.digest", "of the linux/amd64 manifest; `cvmtool image container --pin` writes it"),
    _key(
        "container.pack",
        "a pack with that image's files, ours or a party's, instead of sealing them: who signed it says that they are",
        default="none",
    ),
    _key("command", "what is run in it", default="the image's entry point and arguments"),
    _key("workdir", "where it begins", default="the image's"),
    _key("env", "variables; they win over the image's", kind="names to strings", default="none"),
    _key("inputs", "what the container reads", kind="names to paths", default="none"),
    _key(
        "inputs.NAME",
        "of a directory, a file or a pack (`cvmtool data pack`); it appears read-only at `/inputs/NAME`",
        default="none",
    ),
    _key(
        "model",
        "a model in Hugging Face layout, as a directory or a pack of `--kind model`; it appears at `/inputs/model`, and takes the "
        "place of an input of that name. Pickles are refused ([bring-your-own-model.md](../howto/bring-your-own-model.md))",
        kind="path, or keys",
        default="none",
    ),
    _key("model.path", "the same, if a signer is named"),
    _key(
        "model.signer",
        "the PEM file with the public key of who must have signed it: refused if `model.sig` in it does not hold",
        default="none",
    ),
    _key(
        "outputs",
        "what may leave, by its path below `/outputs`; at least one, but for `kind: serve`. "
        "What is not declared stays in the guest",
    ),
    _key("outputs.NAME", "one file"),
    _key("outputs.NAME.kind", "what does not parse as its kind stays in the guest"),
    _key("outputs.NAME.max", "its largest size"),
    _key(
        "recipients",
        "age's X25519 recipients: outputs leave the guest sealed to them, and `cvmtool unseal` or `age` opens them",
        default="none: outputs come home in clear, through the attested channel",
    ),
    _key(
        "parties",
        "other owners of inputs, each of whom looks at the guest before it opens their packs "
        "([several-owners.md](../howto/several-owners.md)). Such a job has `recipients`, and no `network`, `access`, `checkpoint` "
        "or `gpus`",
        kind="names to keys",
        default="none",
    ),
    _key("parties.NAME", "the `public` key that `cvmtool key show` prints for them", default="none"),
    _key("resources", "the virtual machine; CPU count and model are measured"),
    _key("resources.vcpus", "virtual CPUs"),
    _key("resources.memory", "of the VM; at least 256 MiB"),
    _key("resources.cpu", "QEMU's CPU model"),
    _key(
        "resources.smt",
        "`false` refuses a host that has SMT switched on: its threads share a core's caches, which leak timing",
    ),
    _key(
        "resources.gpus",
        "NVIDIA GPUs of the host; the keys leave only if each of them is verified too ([gpu.md](../howto/gpu.md)). "
        "No dry run has any",
    ),
    _key(
        "resources.requires",
        "CPU features that the container needs, in QEMU's words, such as `[avx2, avx512f]`: checked before anything starts "
        "([fit.md](../howto/fit.md))",
        default="none",
    ),
    _key("network", "whether the container reaches anything", kind="`none`, or keys"),
    _key(
        "network.allow",
        "TLS destinations as `host:port`; the owner pins names to addresses before the start "
        "([allow-a-destination.md](../howto/allow-a-destination.md))",
        default="none",
    ),
    _key("network.plaintext", "the same without TLS: the host reads along", default="none"),
    _key("serve", "with `kind: serve`", default="none"),
    _key("serve.port", "where the container listens"),
    _key("access", "who may reach into the running container", default="nobody"),
    _key("access.exec", "whether the owner may run commands in it; the receipt counts them"),
    _key("access.tunnels", "its TCP ports that may be reached", kind="list of ports, 1 to 65535", default="none"),
    _key("access.clients", "SSH public keys (ed25519) of others who may use those ports", default="none"),
    _key(
        "checkpoint",
        "an encrypted volume at `/checkpoint` that outlives the machine ([detach-and-resume.md](../howto/detach-and-resume.md))",
        default="none",
    ),
    _key("checkpoint.size", "of the volume"),
    _key("checkpoint.every", "how often what was written becomes the state to go on from"),
    _key("checkpoint.grace", "how long the container may take to end when it is asked"),
    _key("limits", "of the container"),
    _key(
        "limits.memory",
        "everything it writes counts, since all of it is memory",
        default="all but 224 MiB of `resources.memory`",
    ),
    _key("limits.pids", "processes and threads"),
    _key("limits.scratch", "of `/scratch`, and of `/tmp` (at least 16 MiB)"),
    _key("limits.outputs", "of `/outputs`, all together"),
    _key("limits.log", "of standard output and error; what is more is dropped, and the log says so"),
    _key("limits.time", "then it is killed"),
    _key("restart", "whether it is begun again when the machine dies; see below"),
    _key(
        "training",
        "how the model among the inputs is trained, so that its memory can be reckoned beforehand ([fit.md](../howto/fit.md)); it "
        "stays with the owner",
        default="none",
    ),
    _key("training.trained", "the share of the parameters that is trained, such as `0.5%` for LoRA"),
    _key(
        "training.optimizer",
        "`adam` is AdamW as well: 0, 0, 4 or 8 bytes for each trained parameter, besides 4 of its gradient",
    ),
    _key("training.activations", "what a batch holds", default="0"),
    _key(
        "waive",
        "inputs that are packs marked `personal` and were never scrubbed; without it such a job is refused (exit 6). "
        "A waiver that is not needed is an error",
        default="none",
    ),
)


def below(parent: str = "") -> tuple[str, ...]:
    """Return the keys that may stand directly below `parent`; "" is the file itself."""
    prefix = f"{parent}." if parent else ""
    rest = (key.name.removeprefix(prefix) for key in KEYS if key.name.startswith(prefix))
    return tuple(name for name in rest if "." not in name)
