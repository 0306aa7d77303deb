"""Reading an adapter's files: from a source to a validated description."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from controlplane.errors import ConflictError, InvalidRequestError
from controlplane.registry.model import BaseModelRecord
from storage.adapter.manifest import AdapterManifest, digest_of, parse_adapter
from storage.adapter.match import check_base
from storage.errors import DigestMismatchError, excerpt
from storage.limits import AdapterLimits
from storage.merge.recipe import MAX_RECIPE_CHARS, Component, is_merge, parse_recipe
from storage.sources import Access, AdapterFiles, OriginSlots, SourceRouter
from storage.sources.policy import without_secrets

MAX_SOURCE_CHARS = 4096
_MAX_OF_ONE_ORIGIN = 2


class Found(NamedTuple):
    """uri: canonical. size_bytes: of the weights file. trained_on: the base model that the
    configuration names, or else the model card. components: of a merge."""

    manifest: AdapterManifest
    uri: str
    size_bytes: int
    trained_on: str
    components: tuple[Component, ...] = ()


class Intake:
    """Fetches and checks adapters; few of one origin are in memory at once, so that a source that
    hangs holds up no other's adapters.

    Parsing, hashing and matching run in threads: the event loop never waits for them.
    """

    def __init__(self, sources: SourceRouter, limits: AdapterLimits) -> None:
        self._sources = sources
        self._limits = limits
        self._slots = OriginSlots(_MAX_OF_ONE_ORIGIN)

    async def read(self, source: str, access: Access) -> Found:
        """The adapter at `source`. Raises: InvalidRequestError, SourceError, AdapterFormatError."""
        async with self._slots.hold(source):
            files = await self._fetch(source, access)
            parsed = await asyncio.to_thread(
                parse_adapter, files.config, files.weights, limits=self._limits
            )
            manifest = parsed.manifest
            _check_blob(files.uri, manifest.digest)
            trained_on = manifest.config.base_model_name_or_path
            if not trained_on and files.card is not None:
                trained_on = files.card.base_model
            components = parse_recipe(files.uri).components if is_merge(files.uri) else ()
            uri = canonical_uri(files.uri)
            return Found(manifest, uri, len(files.weights), trained_on, components)

    async def digest(self, source: str, access: Access) -> str:
        """The digest of what `source` holds now. Raises: SourceError, AdapterFormatError."""
        async with self._slots.hold(source):
            files = await self._fetch(source, access)
            return await asyncio.to_thread(
                digest_of, files.config, files.weights, limits=self._limits
            )

    async def check_base(
        self, manifest: AdapterManifest, base: BaseModelRecord, *, explicit: bool
    ) -> None:
        """Raises: AdapterMismatchError, AdapterFormatError."""
        await asyncio.to_thread(check_base, manifest, base.spec(), explicit_base=explicit)

    async def _fetch(self, source: str, access: Access) -> AdapterFiles:
        check_source(source)
        return await self._sources.fetch(source, access)


def check_source(source: str) -> None:
    """Raises: InvalidRequestError (SOURCE_INVALID)."""
    limit = MAX_RECIPE_CHARS if is_merge(source) else MAX_SOURCE_CHARS
    if not 1 <= len(source) <= limit or "\0" in source:
        raise InvalidRequestError(
            "SOURCE_INVALID",
            f"source must be 1 to {limit} characters without NUL: the absolute path "
            f"or the URI of a PEFT directory, not {excerpt(without_secrets(source))}",
            metadata={"field": "source"},
        )


def _check_blob(uri: str, digest: str) -> None:
    """uri: as its source spells it. Raises: DigestMismatchError when a blob is no longer what its
    name says."""
    if uri.startswith("blob:") and uri != f"blob:{digest}":
        raise DigestMismatchError(
            f"{uri} was damaged where the control plane keeps it, and holds {digest} now: "
            "upload it again",
            metadata={"expected": uri.removeprefix("blob:"), "found": digest},
        )


def canonical_uri(source: str) -> str:
    """One spelling of each local directory's URI: file:///a/b for /a/b/, //a/b and file:/a//b.

    Links and ".." stay: what they lead to may change.
    """
    parts = urlsplit(source) if source.lower().startswith("file:") else None
    path = unquote(parts.path) if parts else source
    if not path.startswith("/"):
        return source
    return "file://" + quote(str(PurePosixPath("/" + path.lstrip("/"))))


def choose_base(
    requested: str, trained_on: str, known: Mapping[str, BaseModelRecord]
) -> BaseModelRecord:
    """The base model to bind an adapter to.

    requested: the request's base model, or "". trained_on: base_model_name_or_path of its config;
    a path or hub id stands for the base model with the same last component.

    Raises: ConflictError (BASE_MODEL_UNKNOWN, BASE_MODEL_AMBIGUOUS, BASE_MODEL_REQUIRED).
    """
    announced = ", ".join(sorted(known)[:10]) or "none yet (a data plane must join first)"
    if requested:
        if requested not in known:
            raise ConflictError(
                "BASE_MODEL_UNKNOWN",
                f"base_model {requested!r} is not served here; base models known: {announced}",
                metadata={"base_model": requested},
            )
        return known[requested]
    if not trained_on:
        raise ConflictError(
            "BASE_MODEL_REQUIRED",
            "adapter_config.json names no base model: set base_model in the request; base models "
            f"known: {announced}",
        )
    if trained_on in known:
        return known[trained_on]
    leaf = _leaf(trained_on)
    matches = [record for name, record in sorted(known.items()) if _leaf(name) == leaf]
    if len(matches) == 1:
        return matches[0]
    reason = "BASE_MODEL_AMBIGUOUS" if matches else "BASE_MODEL_UNKNOWN"
    raise ConflictError(
        reason,
        f"adapter_config.json names the base model {trained_on[:200]!r}, which "
        f"{'several served here match' if matches else 'is not served here'}: set base_model in "
        f"the request; base models known: {announced}",
        metadata={"base_model": trained_on[:200]},
    )


def _leaf(name: str) -> str:
    return Path(name.replace("\\", "/").rstrip("/")).name.casefold()
