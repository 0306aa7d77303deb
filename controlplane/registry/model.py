"""What the registry holds, and how it stands in Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from storage.base_model import BaseModelSpec, MixtureModule


class VersionRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What never changes in a version. `size_bytes` is that of the weights file.

    invocation_tokens: of an activated LoRA; else empty, and then not in the JSON (admit.lua looks).
    created_at_ms: milliseconds since the Unix epoch.
    """

    digest: str
    base_model: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    created_at_ms: int
    invocation_tokens: tuple[int, ...] = ()


class ModuleRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    module: str
    in_features: int
    out_features: int
    layers: tuple[int, ...] = ()  # that have it, ascending; empty: all
    num_experts: int = 0  # of a part of mixtures; 0: a router


class BaseModelRecord(msgspec.Struct, frozen=True):
    """A base model as a data plane announced it; modules in the order of their names."""

    name: str
    fingerprint: str
    num_layers: int
    layer_modules: tuple[ModuleRecord, ...]
    outer_modules: tuple[ModuleRecord, ...]
    max_context_tokens: int
    vocab_size: int
    mixture_modules: tuple[ModuleRecord, ...] = ()

    def spec(self) -> BaseModelSpec:
        return BaseModelSpec(
            name=self.name,
            num_layers=self.num_layers,
            layer_modules=_shapes(self.layer_modules),
            outer_modules=_shapes(self.outer_modules),
            module_layers={each.module: each.layers for each in self.layer_modules if each.layers},
            mixture_modules={
                each.module: MixtureModule(
                    each.in_features,
                    each.out_features,
                    each.num_experts,
                    each.layers or tuple(range(self.num_layers)),
                )
                for each in self.mixture_modules
            },
        )


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """`source`, `labels` and whether the source is private are those of its latest registration."""

    version: int
    record: VersionRecord
    source: str
    labels: Mapping[str, str]
    private: bool = False


@dataclass(frozen=True, slots=True)
class AliasTarget:
    """`version` 0 follows the adapter's current version."""

    adapter: str
    version: int
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Alias:
    """targets: at least one, one of them with a weight above 0."""

    name: str
    targets: tuple[AliasTarget, ...]

    @property
    def heaviest(self) -> AliasTarget:
        """The first of equal ones."""
        return max(self.targets, key=lambda target: target.weight)


@dataclass(frozen=True, slots=True)
class Adapter:
    """versions: newest first. aliases: in order of name."""

    name: str
    current_version: int
    versions: tuple[AdapterVersion, ...]
    aliases: tuple[Alias, ...]

    def version(self, number: int) -> AdapterVersion:
        return next(version for version in self.versions if version.version == number)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a reference means: `version` of `adapter`. alias: when the reference is one's name.
    is_shared: whether requests for it go to several targets, of which this is the heaviest.
    """

    adapter: Adapter
    version: int
    alias: Alias | None = None
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    adapters: tuple[Adapter, ...]
    next_token: str
    total: int


@dataclass(frozen=True, slots=True)
class Registration:
    """`created` is False when the name had this content before."""

    adapter: Adapter
    version: int
    created: bool


@dataclass(frozen=True, slots=True)
class Verification:
    registered_digest: str
    found_digest: str

    @property
    def matches(self) -> bool:
        return self.registered_digest == self.found_digest


def encode(record: VersionRecord | BaseModelRecord) -> str:
    return msgspec.json.encode(record).decode()


_version_decoder = msgspec.json.Decoder(VersionRecord)
_base_model_decoder = msgspec.json.Decoder(BaseModelRecord)
_labels_decoder = msgspec.json.Decoder(dict[str, str])
_targets_decoder = msgspec.json.Decoder(list[tuple[str, str, int]])


def decode_version(text: str) -> VersionRecord:
    return _version_decoder.decode(text)


def decode_base_model(text: str) -> BaseModelRecord:
    return _base_model_decoder.decode(text)


def encode_labels(labels: Mapping[str, str]) -> str:
    return msgspec.json.encode(dict(labels)).decode()


def encode_targets(targets: Sequence[AliasTarget]) -> str:
    """As the scripts read them: versions are text."""
    rows = [(target.adapter, str(target.version), target.weight) for target in targets]
    return msgspec.json.encode(rows).decode()


def decode_adapter(name: str, fields: Mapping[str, str], aliases: list[list[str]]) -> Adapter:
    """From `dump` of the scripts."""
    numbers = sorted(
        (int(key[8:]) for key in fields if key.startswith("version:")),
        reverse=True,
    )
    return Adapter(
        name=name,
        current_version=int(fields["current"]),
        versions=tuple(
            AdapterVersion(
                version=number,
                record=decode_version(fields[f"version:{number}"]),
                source=fields[f"source:{number}"],
                labels=_labels_decoder.decode(fields[f"labels:{number}"]),
                private=fields.get(f"private:{number}") == "1",
            )
            for number in numbers
        ),
        aliases=tuple(
            _alias(alias, _targets_decoder.decode(text) if text else [(adapter, version, 1)])
            for alias, adapter, version, text in sorted(aliases)
        ),
    )


def _alias(name: str, rows: list[tuple[str, str, int]]) -> Alias:
    return Alias(name, tuple(AliasTarget(row[0], int(row[1]), row[2]) for row in rows))


def _shapes(modules: tuple[ModuleRecord, ...]) -> dict[str, tuple[int, int]]:
    return {module.module: (module.in_features, module.out_features) for module in modules}
