"""Why a registry script changed nothing, as errors for people."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.errors import ConflictError, ControlPlaneError, NameTakenError, UnknownNameError
from controlplane.registry.alias_check import shown
from controlplane.registry.model import Alias


def unknown_adapter(reference: str) -> UnknownNameError:
    return UnknownNameError(
        "ADAPTER_NOT_FOUND",
        f"no adapter, version or alias is named {reference!r}: ListAdapters tells those there are",
        metadata={"name": reference},
    )


def unknown(code: str, name: str, version: int) -> UnknownNameError:
    if code == "UNKNOWN":
        return UnknownNameError(
            "ADAPTER_NOT_FOUND",
            f"no adapter is named {name!r}; an alias does not stand for its adapter here",
            metadata={"name": name},
        )
    return UnknownNameError(
        "VERSION_NOT_FOUND",
        f"adapter {name!r} has no version {version}: GetAdapter tells those it has",
        metadata={"name": name, "version": str(version)},
    )


def registration(code: str, name: str, detail: str) -> ControlPlaneError:
    if code == "TOO_MANY_VERSIONS":
        return ConflictError(
            "TOO_MANY_VERSIONS",
            f"adapter {name!r} has {detail} versions, the most there may be: remove old ones",
            metadata={"name": name, "num_versions": detail},
        )
    if code == "ALIAS_MIXED":
        return alias_mixed(name, detail)
    if code == "NUMBER_TAKEN":
        return ConflictError(
            "VERSION_NUMBER_TAKEN",
            f"version: adapter {name!r} has other content as version {detail}, or this content "
            "under that number: leave version out, or remove that one first",
            metadata={"field": "version", "name": name, "version": detail},
        )
    if code == "EXISTS":
        return NameTakenError(
            "ADAPTER_EXISTS",
            f"name {name!r} is already an adapter and was to be a new one: choose another name, or "
            "leave must_be_new out to give it a new version",
            metadata={"field": "name", "name": name},
        )
    if code == "BASE_CHANGED":
        return ConflictError(
            "BASE_MODEL_CHANGING",
            f"base model {detail!r} is being announced anew again and again: wait until its data "
            "planes have settled",
            metadata={"base_model": detail},
        )
    if code == "COMPONENT_UNKNOWN":
        return ConflictError(
            "MERGE_COMPONENT_UNKNOWN",
            f"component {detail} of {name!r} is not registered with this content and base model: "
            "register it first, or merge what there is",
            metadata={"name": name, "component": detail},
        )
    if code == "COMPONENT_PRIVATE":
        return component_private(detail)
    return _taken(code, "name", name, detail)


def component_private(component: str) -> ConflictError:
    return ConflictError(
        "MERGE_COMPONENT_PRIVATE",
        f"component {component} is private, and a merge asks nobody for a token: merge adapters "
        "that everybody may read, or register this one from a source without a token",
        metadata={"component": component},
    )


def other_content(name: str, expected: str, found: str) -> ConflictError:
    return ConflictError(
        "DIGEST_MISMATCH",
        f"the source of {name!r} has the digest {found}, not the expected {expected[:80]}: its "
        "content has changed",
        metadata={"name": name, "expected_digest": expected[:80], "found_digest": found},
    )


def removal(reply: Sequence[str], name: str, version: int) -> ControlPlaneError:
    metadata = {"name": name, "version": str(version)}
    if reply[0] == "CURRENT":
        return ConflictError(
            "VERSION_IS_CURRENT",
            f"version {version} is the current one of adapter {name!r}: promote another first, or "
            "remove the whole adapter",
            metadata=metadata,
        )
    if reply[0] == "ALIASED":
        return ConflictError(
            "VERSION_HAS_ALIAS",
            f"alias {reply[1]!r} is bound to version {version} of adapter {name!r}: move or remove "
            "the alias first",
            metadata={**metadata, "alias": reply[1]},
        )
    if reply[0] == "SHARED_ALIAS":
        return ConflictError(
            "ALIAS_SHARED",
            f"alias {reply[1]!r} has targets in adapter {name!r} and in others: set the alias "
            "without this one, or remove it, first",
            metadata={"name": name, "alias": reply[1]},
        )
    if reply[0] == "MERGED":
        what = f"version {reply[2]} of adapter {name!r}"
        return ConflictError(
            "ADAPTER_MERGED",
            f"{what} is a component of {reply[1]}, which data planes build from it: remove that "
            "version first",
            metadata={**metadata, "merge": reply[1]},
        )
    return unknown(reply[0], name, version)


def promotion(reply: Sequence[str], name: str, version: int) -> ControlPlaneError:
    """version: 0 where none was asked for."""
    if reply[0] == "ALIAS_MIXED":
        return alias_mixed(name, reply[1])
    return unknown(reply[0], name, version) if version else unknown_adapter(name)


def alias_mixed(name: str, alias: str) -> ConflictError:
    return ConflictError(
        "ALIAS_BASE_MIXED",
        f"alias {alias!r} follows adapter {name!r} beside versions of another base model, and its "
        "targets must share one: bind the alias to a version first",
        metadata={"name": name, "alias": alias},
    )


def ambiguous(alias: Alias) -> ConflictError:
    names = ", ".join(shown(target) for target in alias.targets)
    return ConflictError(
        "ALIAS_AMBIGUOUS",
        f"alias {alias.name!r} shares its requests between {names}: name one of them",
        metadata={"name": alias.name},
    )


def alias(reply: Sequence[str], wanted: Alias) -> ControlPlaneError:
    """reply: {why not, number of the target, details}."""
    if reply[0] in ("ADAPTER", "BASE_MODEL"):
        return _taken(reply[0], "alias.name", wanted.name, "")
    target = wanted.targets[int(reply[1])]
    if reply[0] == "TOO_MANY_ALIASES":
        return ConflictError(
            "TOO_MANY_ALIASES",
            f"adapter {target.adapter!r} has the most aliases there may be: remove one first",
            metadata={"adapter": target.adapter},
        )
    if reply[0] == "MIXED":
        return ConflictError(
            "ALIAS_BASE_MIXED",
            f"alias.targets: {shown(target)} is bound to base model {reply[2]!r} and "
            f"{shown(wanted.targets[0])} to {reply[3]!r}: the targets of an alias must share one",
            metadata={"field": f"alias.targets[{reply[1]}]", "base_model": reply[2]},
        )
    return unknown(reply[0], target.adapter, target.version)


def _taken(code: str, field: str, name: str, detail: str) -> NameTakenError:
    what = {
        "ALIAS": f"an alias of adapter {detail!r}",
        "ADAPTER": "an adapter",
        "BASE_MODEL": "a base model",
    }[code]
    return NameTakenError(
        "NAME_TAKEN",
        f"{field} {name!r} is already {what}: choose another name",
        metadata={"field": field, "name": name},
    )
