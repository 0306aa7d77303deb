"""Adapters on a Hugging Face hub: `hf://org/name[/folder][@revision]`."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from urllib.parse import quote, urlsplit

import msgspec

from storage.errors import (
    AdapterTooLargeError,
    SourceAccessError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceUnavailableError,
    SourceUnreadableError,
    excerpt,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME, AdapterFiles, ModelCard
from storage.limits import DEFAULT_LIMITS, AdapterLimits
from storage.sources.access import ANYBODY, Access
from storage.sources.download import Downloader
from storage.sources.exchange import refuse
from storage.sources.pickles import PICKLE_NAME, pickle_only
from storage.sources.policy import SourcePolicy, split

_MAX_INFO_BYTES = 16 << 20
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_URI = re.compile(
    rf"hf://(?P<org>{_NAME})/(?P<name>{_NAME})"
    r"(?P<folder>(?:/[A-Za-z0-9_][A-Za-z0-9._ -]{0,95}){0,8})/?"
    r"(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{0,127}))?",
    re.ASCII | re.IGNORECASE,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class _Place(NamedTuple):
    repo: str
    folder: str  # "" or "a/b"
    revision: str

    def file(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name

    def at(self, commit: str) -> str:
        return f"hf://{self.repo}{'/' if self.folder else ''}{self.folder}@{commit}"


@dataclass(frozen=True, slots=True)
class _Info:
    """What the hub says of a repository. sizes: bytes by path, None where untold. sha256: of the
    content, for files in large file storage."""

    commit: str
    sizes: dict[str, int | None]
    sha256: dict[str, str]
    card: ModelCard


class HubSource:
    """Reads the two files, and nothing else, of a repository that `policy` opens.

    A revision is resolved to its commit, and the files' `uri` names that. endpoint: the hub, as
    https://huggingface.co. It may redirect to other public https hosts, where the files are; the
    caller's token stays with the hub.
    """

    def __init__(
        self,
        downloader: Downloader,
        policy: SourcePolicy,
        endpoint: str,
        limits: AdapterLimits = DEFAULT_LIMITS,
    ) -> None:
        self._downloader = downloader
        self._policy = policy
        self._endpoint = endpoint.rstrip("/")
        self._limits = limits

    async def fetch(self, uri: str, access: Access = ANYBODY) -> AdapterFiles:
        """Raises: SourceError, AdapterTooLargeError, PickleRefusedError."""
        place = self._place(uri)
        info = await self._info(uri, place, access)
        self._check_files(uri, place, info)
        config = await self._file(place, info, CONFIG_NAME, self._limits.max_config_bytes, access)
        weights = await self._file(
            place, info, WEIGHTS_NAME, self._limits.max_weights_bytes, access
        )
        return AdapterFiles(bytes(config), weights, place.at(info.commit), info.card)

    async def check(self, uri: str, access: Access) -> None:
        """Raises: SourceAccessError when the hub refuses this caller; other SourceError."""
        place = self._place(uri)
        url = self._url(place, place.revision, CONFIG_NAME)
        status = await self._downloader.head(url, access=access, check=self._check_url)
        refuse(status, url)
        if not 200 <= status < 300:
            raise SourceUnreadableError(f"{excerpt(url)} answers with status {status}")

    def _place(self, uri: str) -> _Place:
        self._policy.check(split_hub(uri))
        found = _URI.fullmatch(uri)
        if found is None:
            raise SourceUnreadableError(
                f"source {excerpt(uri)} is not hf://ORG/NAME[/FOLDER][@REVISION]"
            )
        revision = found["revision"] or "main"
        folder = found["folder"].strip("/")
        if ".." in (*folder.split("/"), *revision.split("/")):
            raise SourceUnreadableError(f'source {excerpt(uri)} has ".." in it')
        return _Place(f"{found['org']}/{found['name']}", folder, revision)

    async def _info(self, uri: str, place: _Place, access: Access) -> _Info:
        revision = quote(place.revision, safe="")
        url = f"{self._endpoint}/api/models/{place.repo}/revision/{revision}?blobs=true"
        quiet = Access(access.token)
        try:
            data = await self._downloader.get(
                url, file="", max_bytes=_MAX_INFO_BYTES, access=quiet, check=self._check_url
            )
        except SourceAccessError as error:
            raise SourceAccessError(
                f"source {excerpt(uri)} is private or does not exist: {error.message}",
                metadata=error.metadata,
            ) from None
        try:
            return await asyncio.to_thread(_parse_info, bytes(data))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise SourceUnreadableError(
                f"source {excerpt(uri)}: {self._endpoint} does not answer as a hub does: "
                f"{type(error).__name__}: {str(error)[:200]}"
            ) from None

    def _check_files(self, uri: str, place: _Place, info: _Info) -> None:
        """Before anything is fetched: what is there, and how large."""
        for name, limit in (
            (CONFIG_NAME, self._limits.max_config_bytes),
            (WEIGHTS_NAME, self._limits.max_weights_bytes),
        ):
            path = place.file(name)
            if path not in info.sizes:
                if name == WEIGHTS_NAME and place.file(PICKLE_NAME) in info.sizes:
                    raise pickle_only(uri)
                hint = "" if info.card.is_lora else "; the hub does not tag it as a LoRA adapter"
                raise SourceNotFoundError(
                    f"source {excerpt(uri)} has no {path} at commit {info.commit}{hint}",
                    metadata={"file": path},
                )
            size = info.sizes[path]
            if size is not None and size > limit:
                raise AdapterTooLargeError(
                    f"source {excerpt(uri)}: {path} has {size} bytes; the limit is {limit}",
                    metadata={"size_bytes": str(size), "limit_bytes": str(limit)},
                )

    async def _file(
        self, place: _Place, info: _Info, name: str, max_bytes: int, access: Access
    ) -> memoryview:
        url = self._url(place, info.commit, name)
        data = await self._downloader.get(
            url, file=name, max_bytes=max_bytes, access=access, check=self._check_url
        )
        expected = info.sha256.get(place.file(name))
        if expected is not None:
            found = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
            if found != expected:
                raise SourceUnavailableError(
                    f"{excerpt(url)} came as {found}, the hub says {expected}: damaged on the way",
                    metadata={"expected": expected, "found": found},
                )
        return data

    def _url(self, place: _Place, revision: str, name: str) -> str:
        # As hf_hub_url has it, which is slow to import, and this is the event loop.
        path = quote(place.file(name))
        return f"{self._endpoint}/{place.repo}/resolve/{quote(revision, safe='')}/{path}"

    def _check_url(self, url: str) -> None:
        if url.startswith(f"{self._endpoint}/"):
            return
        if urlsplit(url).scheme != "https":
            raise SourceNotAllowedError(
                f"the hub {self._endpoint} redirects to {excerpt(url)}, which is not https"
            )


def split_hub(uri: str) -> str:
    """The URI without its revision, for the policy."""
    path, at, _ = uri.rpartition("@")
    split(path if at else uri)
    return path if at else uri


def _parse_info(data: bytes) -> _Info:
    from huggingface_hub.hf_api import ModelInfo

    fields: Any = msgspec.json.decode(data)
    info = ModelInfo(**cast("dict[str, Any]", fields))
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise ValueError(f"sha {commit[:80]!r} is no commit")
    sizes: dict[str, int | None] = {}
    sha256: dict[str, str] = {}
    for file in info.siblings or ():
        if file.lfs is not None:
            sha256[file.rfilename] = file.lfs.sha256
        # Its class believes what came.
        size = cast("object", file.size if file.lfs is None else file.lfs.size)
        if size is not None and not isinstance(size, int):
            raise ValueError(f"size {excerpt(size)} is no number")
        sizes[file.rfilename] = size
    return _Info(commit, sizes, sha256, _card(info))


def _card(info: Any) -> ModelCard:
    tags: list[str] = [tag for tag in info.tags or () if isinstance(tag, str)]
    base: object = getattr(info.card_data, "base_model", None)
    if isinstance(base, list):
        names = cast("list[object]", base)
        base = names[0] if len(names) == 1 else ""
    if not isinstance(base, str) or not base:
        tagged = [tag.removeprefix("base_model:adapter:") for tag in tags if "base_model:ad" in tag]
        base = tagged[0] if len(tagged) == 1 else ""
    is_lora = "lora" in tags or any(tag.startswith("base_model:adapter:") for tag in tags)
    return ModelCard(base_model=base[:200], is_lora=is_lora)
