"""One adapter or alias of an export, back in the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.cli.backup_file import AdapterLine, AliasLine, VersionEntry
from controlplane.cli.bulk import Done
from controlplane.cli.errors import BlockedError
from storage.merge.recipe import is_merge

if TYPE_CHECKING:
    from chorale.adapters import Adapters
    from chorale.errors import ChoraleError
    from chorale.v1 import adapter_registry_pb2 as registry_pb

_SHOWN = 5


def has_merges(line: AdapterLine) -> bool:
    return any(is_merge(entry.source) for entry in line.versions)


def restored(
    registry: Adapters, line: AdapterLine, source_token: str, *, merges: bool = True
) -> Done:
    """Registers the versions that are missing, under their numbers, and makes `line.current` the
    current one. merges: False leaves out those that are merges, and what is current as it is.

    Raises: BlockedError naming what could not be restored, when all else was; ChoraleError for what
    may pass.
    """
    from chorale.errors import ChoraleError

    there = _versions(registry, line.name)
    known = {version.version: version.digest for version in there.versions} if there else {}
    failed: list[tuple[str, str]] = []
    for entry in line.versions:
        if not merges and is_merge(entry.source):
            continue
        if entry.version in known:
            if known[entry.version] != entry.digest:
                failed.append(("VERSION_DIFFERS", f"version {entry.version} has other content"))
            continue
        try:
            _register(registry, line.name, entry, source_token)
        except ChoraleError as error:
            _raise_if_it_may_pass(error)
            failed.append((error.reason, f"version {entry.version}: {error.message}"))
    now = _versions(registry, line.name)
    if merges and now and now.current_version != line.current:
        try:
            now = registry.promote(line.name, line.current)
        except ChoraleError as error:
            _raise_if_it_may_pass(error)
            failed.append((error.reason, f"current {line.current}: {error.message}"))
    if failed:
        said = "; ".join(message for _, message in failed[:_SHOWN])
        more = f"; and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
        raise BlockedError(failed[0][0], said + more)
    unchanged = there is not None and there == now
    return Done("unchanged" if unchanged else "added", line.current)


def restored_alias(registry: Adapters, line: AliasLine) -> Done:
    """Raises: ChoraleError."""
    before = _alias(registry, line.name)
    targets = {
        f"{each.adapter}@{each.version}" if each.version else each.adapter: each.weight
        for each in line.targets
    }
    return Done(
        "unchanged" if registry.set_alias(line.name, targets=targets) == before else "added"
    )


def _register(registry: Adapters, name: str, entry: VersionEntry, source_token: str) -> None:
    registry.register(
        name,
        entry.source,
        base_model=entry.base_model,
        labels=entry.labels,
        # Others read their sources without, and would become private by it.
        source_token=source_token if entry.private else "",
        keep_current=True,
        expected_digest=entry.digest,
        version=entry.version,
    )


def _versions(registry: Adapters, name: str) -> registry_pb.Adapter | None:
    from chorale.errors import NotFoundError

    try:
        found = registry.get(name).adapter
    except NotFoundError:
        return None
    return found if found.name == name else None  # else it is an alias now: registering says so


def _alias(registry: Adapters, name: str) -> registry_pb.Alias | None:
    from chorale.errors import NotFoundError

    try:
        found = registry.get(name)
    except NotFoundError:
        return None
    return found.alias if found.HasField("alias") else None


def _raise_if_it_may_pass(error: ChoraleError) -> None:
    if error.retry_after_s is not None or error.reason == "UNTYPED":
        raise error
