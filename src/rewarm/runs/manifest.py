"""What `manifest.json` says of a run: where it came from, what rewarm chose for it, what its numbers depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from rewarm.config.plan import Extension
from rewarm.config.values import build
from rewarm.errors import UserError


@dataclass(frozen=True)
class Chosen:
    """What rewarm chose by itself when the run was begun. It stays chosen: the run's numbers depend on it."""

    precision: str | None = None
    """fp32, bf16 or fp16."""
    micro_batch_size: int | None = None
    """Sequences that go through the model at once."""
    compiled: bool | None = None
    """Whether the model was compiled."""


@dataclass(frozen=True)
class Conditions:
    """What the last bits of the run's numbers depend on, beside config, data and `Chosen`."""

    rewarm: str | None = None
    torch: str | None = None
    transformers: str | None = None
    device: str | None = None
    processes: int | None = None
    cpu: str | None = None
    """Name of the CPU, and the instructions by which kernels are chosen."""
    threads: int | None = None


@dataclass(frozen=True)
class Pinned:
    """Where the run's first weights came from: what `init` was found to mean when the run was begun."""

    asked: str
    """`init`, as the config has it."""
    folder: str | None = None
    """Their folder; None: they are random."""
    step: int | None = None
    """The step of the checkpoint in the run, or in the pre-training, that was named."""
    identity: str | None = None
    """The commit of the hub's repository, else a checksum; None in manifests that are older than this field."""


@dataclass(frozen=True)
class Forked:
    """The run that this one begins as."""

    run: str
    """Its folder."""
    step: int
    """The last update that was taken from it."""


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`. In the file the keys of `chosen` and `conditions` stand at the top."""

    id: str | None = None
    chosen: Chosen = field(default_factory=Chosen)
    conditions: Conditions = field(default_factory=Conditions)
    init: Pinned | None = None
    data: dict[str, str] = field(default_factory=dict)
    """Fingerprints of what the run trains on and is scored on."""
    extensions: list[Extension] = field(default_factory=list)
    """The budget and the horizon that it had before each extension."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """What of `conditions` and `chosen` changed when it went on after a step: before and then."""
    forked: Forked | None = None
    """Where its first updates were trained, where that was another run."""
    started: str | None = None
    """When it was begun, UTC."""
    other: dict[str, Any] = field(default_factory=dict)
    """Keys that are told and nowhere read, those of other versions among them."""

    def values(self) -> dict[str, Any]:
        """Return the content of the file."""
        top = asdict(self)
        if self.init is not None:
            top["init"] = {key: value for key, value in top["init"].items() if key == "folder" or value is not None}
        groups = top.pop("conditions") | top.pop("chosen")
        other = top.pop("other")
        return {key: value for key, value in (top | groups | other).items() if value not in (None, [])}


GROUPS = {"chosen": Chosen, "conditions": Conditions}


def parse_manifest(values: Mapping[str, Any]) -> Manifest:
    """Return the manifest that a file's `values` are. Raises `UserError` for a key of another type than it must be.

    A key that the version which wrote it did not have yet is None or empty.
    """
    if "rewarm" not in values:
        raise UserError("it does not say which version of rewarm wrote it")
    grouped = {name: {f.name for f in fields(kind)} for name, kind in GROUPS.items()}
    changes = values.get("changes", [])
    if not isinstance(changes, list) or not all(isinstance(change, dict) for change in changes):
        raise UserError("changes: must be a list of mappings")
    own = {f.name for f in fields(Manifest)} - {*GROUPS, "other", "changes"}
    taken = {key: value for key, value in values.items() if key in own}
    taken |= {name: {key: values[key] for key in keys if key in values} for name, keys in grouped.items()}
    known = own.union({"changes"}, *grouped.values())
    return replace(build(Manifest, taken), changes=changes, other={k: v for k, v in values.items() if k not in known})
