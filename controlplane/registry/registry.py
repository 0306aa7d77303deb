"""The registry of adapters. Every method that changes something is one atomic script."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from typing import Any

from controlplane.errors import ConflictError, InvalidRequestError, UnknownNameError
from controlplane.registry import refusals
from controlplane.registry.alias_check import check_alias
from controlplane.registry.intake import Intake, check_source, choose_base
from controlplane.registry.model import (
    Adapter,
    AdapterVersion,
    Alias,
    BaseModelRecord,
    Meaning,
    Page,
    Registration,
    Verification,
    VersionRecord,
    decode_adapter,
    decode_base_model,
    encode,
    encode_labels,
    encode_targets,
)
from controlplane.registry.names import (
    check_name,
    check_reference,
    check_version,
    is_odd,
    odd_name,
)
from controlplane.store.client import Store, as_dict
from storage.adapter.manifest import AdapterManifest
from storage.merge.recipe import is_merge, parse_recipe
from storage.sources import ANYBODY, Access

MAX_VERSIONS = 1000
MAX_ALIASES = 256
MAX_GIVEN_VERSION = 1_000_000_000  # leaves room for those that come after it
MAX_HISTORY = 1000
MAX_LABELS = 32
MAX_LABEL_KEY_CHARS = 64
MAX_LABEL_VALUE_CHARS = 256
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_MAX_PAGE_CHARS = 1_000_000  # keeps a page's message below gRPC's default limit of 4 MiB
_SCAN = 200
_MAX_ATTEMPTS = 5
_TOKEN_PREFIX = b"after:"


class AdapterRegistry:
    """Adapters, versions, aliases. All state is in `store`: any number of instances may share it.

    Raises everywhere, besides what methods name: InvalidRequestError for malformed names,
    StoreUnavailableError.
    """

    def __init__(self, store: Store, intake: Intake) -> None:
        self._store = store
        self._intake = intake

    async def register(
        self,
        name: str,
        source: str,
        *,
        base_model: str = "",
        labels: Mapping[str, str],
        access: Access = ANYBODY,
        must_be_new: bool = False,
        version: int = 0,
        expected_digest: str = "",
        keep_current: bool = False,
    ) -> Registration:
        """Validates the adapter at `source` and makes it the current version of `name`.

        A version is its content and its base model: the same pair under the name again only
        becomes current, with `source` and (unless empty) `labels` of this registration. A version
        that is registered with a token is private.

        must_be_new: a name that is an adapter already is refused, before its source is read.
        version: the number of a new version, 0 for the next. expected_digest: of the content, ""
        for any. keep_current: whether a name that exists keeps its current version.
        Raises: NameTakenError, ConflictError, SourceError, AdapterFormatError,
        AdapterMismatchError. Nothing is stored then.
        """
        check_name("name", name)
        if base_model:
            check_name("base_model", base_model)
        _check_labels(labels)
        if version > MAX_GIVEN_VERSION:
            raise InvalidRequestError(
                "VERSION_INVALID",
                f"version must be 0 to {MAX_GIVEN_VERSION:,}, not {version}",
                metadata={"field": "version"},
            )
        if must_be_new and (taken := await self._store.run("get", name)):
            adapter = taken[1][0]
            raise refusals.registration("EXISTS" if adapter == name else "ALIAS", name, adapter)
        await self._check_parts("name", name)
        check_source(source)
        await self._check_components(name, source)
        found = await self._intake.read(source, access)
        manifest = found.manifest
        if expected_digest and expected_digest != manifest.digest:
            raise refusals.other_content(name, expected_digest, manifest.digest)
        reply: list[Any] = []
        for _ in range(_MAX_ATTEMPTS):
            known = await self._base_model_texts()
            base = choose_base(
                base_model,
                found.trained_on,
                {name: decode_base_model(text) for name, text in known.items()},
            )
            # A name that only the model card gives was matched here already.
            explicit = bool(base_model) or not manifest.config.base_model_name_or_path
            await self._intake.check_base(manifest, base, explicit=explicit)
            reply = await self._store.run(
                "register",
                name,
                manifest.digest,
                base.name,
                known[base.name],
                encode(_record(manifest, base, found.size_bytes)),
                found.uri,
                encode_labels(labels) if labels else "",
                MAX_VERSIONS,
                MAX_HISTORY,
                "1" if access.token else "",
                "1" if must_be_new else "",
                version,
                "1" if keep_current else "",
                *(part for each in found.components for part in (each.name, each.digest)),
            )
            # Another data plane has announced the base model anew since: check against that.
            if reply[0] != "BASE_CHANGED":
                break
        if reply[0] != "OK":
            raise refusals.registration(reply[0], name, reply[1])
        return Registration(_adapter(reply[3]), int(reply[1]), bool(reply[2]))

    async def _check_components(self, name: str, source: str) -> None:
        """Of a merge, before anything is read: whoever writes a recipe by hand may name any number
        of sources in it. The script looks again, at their base model as well.

        Raises: MergeRefusedError, ConflictError (MERGE_COMPONENT_UNKNOWN, MERGE_COMPONENT_PRIVATE).
        """
        for component in parse_recipe(source).components if is_merge(source) else ():
            reply = await self._store.run("get", component.name)
            adapter = _adapter(reply[1]) if reply else None
            version = adapter.version(int(reply[0])) if adapter else None
            if version is None or version.record.digest != component.digest:
                raise refusals.registration("COMPONENT_UNKNOWN", name, component.name)
            if version.private:
                raise refusals.component_private(component.name)

    async def get(self, reference: str) -> Meaning:
        """What a name, `name@version` or alias means. Raises: UnknownNameError."""
        check_reference("name", reference)
        reply = await self._store.run("get", reference)
        if not reply:
            raise refusals.unknown_adapter(reference)
        adapter = _adapter(reply[1])
        alias = next((alias for alias in adapter.aliases if alias.name == reference), None)
        return Meaning(adapter, int(reply[0]), alias, int(reply[2]) > 1)

    async def get_one(self, reference: str) -> tuple[Adapter, int]:
        """The adapter and the version of which `reference` is a name.

        Raises: UnknownNameError, ConflictError (ALIAS_AMBIGUOUS).
        """
        found = await self.get(reference)
        if found.alias is not None and found.is_shared:
            raise refusals.ambiguous(found.alias)
        return found.adapter, found.version

    async def page(self, *, size: int = 0, token: str = "", base_model: str = "") -> Page:
        """Adapters in order of name. size: most to return; 0 is the default. token: from the page
        before. base_model: only those whose current version is bound to it.
        """
        if size > MAX_PAGE_SIZE:
            raise InvalidRequestError(
                "PAGE_SIZE_INVALID",
                f"page_size must be 0 to {MAX_PAGE_SIZE}, not {size}",
                metadata={"field": "page_size"},
            )
        if base_model:
            check_name("base_model", base_model)
        after = _name_of_token(token)
        size = size or DEFAULT_PAGE_SIZE
        adapters: list[Adapter] = []
        num_chars = 0
        while True:
            # One more than asked for tells whether there is a next page.
            wanted = min(size - len(adapters) + 1, _SCAN) if not base_model else _SCAN
            total, after, end, dumps = await self._store.run("list", after, wanted, base_model)
            for dump in dumps:
                adapter = _adapter(dump)
                num_chars += sum(map(len, dump[1]))
                num_chars += sum(len(part) for alias in dump[2] for part in alias)
                if len(adapters) == size or (adapters and num_chars > _MAX_PAGE_CHARS):
                    return Page(tuple(adapters), _token_of_name(adapters[-1].name), int(total))
                adapters.append(adapter)
            if end:
                return Page(tuple(adapters), "", int(total))

    async def promote(self, name: str, version: int) -> Adapter:
        """Makes `version` current. Raises: UnknownNameError, ConflictError (ALIAS_BASE_MIXED)."""
        check_name("name", name)
        check_version("version", version)
        reply = await self._store.run("promote", name, version, MAX_HISTORY)
        if reply[0] != "OK":
            raise refusals.promotion(reply, name, version)
        return _adapter(reply[1])

    async def rollback(self, name: str) -> Adapter:
        """Makes the version before the current one current again; twice goes back two.

        Raises: UnknownNameError, ConflictError (NO_PREVIOUS_VERSION, ALIAS_BASE_MIXED).
        """
        check_name("name", name)
        reply = await self._store.run("rollback", name)
        if reply[0] == "NO_PREVIOUS":
            raise ConflictError(
                "NO_PREVIOUS_VERSION",
                f"adapter {name!r} had no other version current before; promote one by its number",
                metadata={"name": name},
            )
        if reply[0] != "OK":
            raise refusals.promotion(reply, name, 0)
        return _adapter(reply[1])

    async def remove(self, name: str, version: int = 0) -> None:
        """Removes the adapter with its aliases, or one `version`.

        Raises: UnknownNameError; ConflictError (VERSION_IS_CURRENT, VERSION_HAS_ALIAS,
        ALIAS_SHARED, ADAPTER_MERGED).
        """
        check_name("name", name)
        reply = await self._store.run("remove", name, version)
        if reply[0] != "OK":
            raise refusals.removal(reply, name, version)

    async def set_alias(self, alias: Alias) -> Alias:
        """Creates an alias or replaces its targets.

        Raises: UnknownNameError, NameTakenError, ConflictError (TOO_MANY_ALIASES,
        ALIAS_BASE_MIXED).
        """
        check_alias(alias)
        await self._check_parts("alias.name", alias.name)
        heaviest = alias.heaviest
        reply = await self._store.run(
            "set_alias",
            alias.name,
            MAX_ALIASES,
            encode_targets(alias.targets) if len(alias.targets) > 1 else "",
            *(heaviest.adapter, heaviest.version),
            *(part for target in alias.targets for part in (target.adapter, target.version)),
        )
        if reply[0] != "OK":
            raise refusals.alias(reply, alias)
        return alias

    async def remove_alias(self, name: str) -> None:
        """Raises: UnknownNameError."""
        check_name("name", name)
        if not await self._store.run("remove_alias", name):
            raise UnknownNameError(
                "ALIAS_NOT_FOUND", f"no alias is named {name!r}", metadata={"name": name}
            )

    async def blob_digests(self) -> set[str]:
        """Of all versions whose source is an upload, and of what merges are made of."""
        found: set[str] = set()
        token = ""
        while True:
            page = await self.page(size=MAX_PAGE_SIZE, token=token)
            for adapter in page.adapters:
                sources = (each for version in adapter.versions for each in _read_from(version))
                found.update(uri.removeprefix("blob:") for uri in sources if uri[:5] == "blob:")
            token = page.next_token
            if not token:
                return found

    async def verify(self, reference: str, access: Access = ANYBODY) -> Verification:
        """Compares what the source holds now with what was registered.

        Raises: UnknownNameError, ConflictError (ALIAS_AMBIGUOUS), SourceError, AdapterFormatError.
        """
        adapter, number = await self.get_one(reference)
        version = adapter.version(number)
        found = await self._intake.digest(version.source, access)
        return Verification(version.record.digest, found)

    async def base_models(self) -> dict[str, BaseModelRecord]:
        """What data planes have announced, by name, in order of name."""
        found = await self._base_model_texts()
        return {name: decode_base_model(found[name]) for name in sorted(found)}

    async def _check_parts(self, field: str, name: str) -> None:
        """Names that are there already stay good. Raises: InvalidRequestError (NAME_INVALID)."""
        if is_odd(name) and not await self._store.run("get", name):
            raise odd_name(field, name)

    async def _base_model_texts(self) -> dict[str, str]:
        return as_dict(await self._store.run("base_models"))


def _record(manifest: AdapterManifest, base: BaseModelRecord, size_bytes: int) -> VersionRecord:
    return VersionRecord(
        digest=manifest.digest,
        base_model=base.name,
        rank=manifest.max_rank,
        target_modules=tuple(sorted({module.name for module in manifest.modules})),
        size_bytes=size_bytes,
        created_at_ms=time.time_ns() // 1_000_000,
        invocation_tokens=manifest.config.invocation_tokens,
    )


def _read_from(version: AdapterVersion) -> list[str]:
    if not is_merge(version.source):
        return [version.source]
    return [component.source for component in parse_recipe(version.source).components]


def _adapter(dump: list[Any]) -> Adapter:
    name, flat, aliases = dump
    return decode_adapter(name, as_dict(flat), aliases)


def _check_labels(labels: Mapping[str, str]) -> None:
    for key, value in labels.items():
        if not 1 <= len(key) <= MAX_LABEL_KEY_CHARS or len(value) > MAX_LABEL_VALUE_CHARS:
            raise InvalidRequestError(
                "LABEL_INVALID",
                f"labels: keys have 1 to {MAX_LABEL_KEY_CHARS} characters and values up to "
                f"{MAX_LABEL_VALUE_CHARS}; {key[:80]!r} has {len(key)} and {len(value)}",
                metadata={"field": "labels", "key": key[:80]},
            )
    if len(labels) > MAX_LABELS:
        raise InvalidRequestError(
            "LABEL_INVALID",
            f"labels: at most {MAX_LABELS}, not {len(labels)}",
            metadata={"field": "labels"},
        )


def _token_of_name(name: str) -> str:
    return base64.urlsafe_b64encode(_TOKEN_PREFIX + name.encode()).decode()


def _name_of_token(token: str) -> str:
    if not token:
        return ""
    try:
        raw = base64.b64decode(token[:1024].encode(), altchars=b"-_", validate=True)
        if raw.startswith(_TOKEN_PREFIX):
            return check_name("page_token", raw.removeprefix(_TOKEN_PREFIX).decode())
    except (binascii.Error, ValueError, InvalidRequestError):
        pass
    raise InvalidRequestError(
        "PAGE_TOKEN_INVALID",
        "page_token is not one that ListAdapters returned: begin again with an empty one",
        metadata={"field": "page_token"},
    )
