"""The sources of a process, from its options."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from storage.disk_tier import DiskTier
from storage.limits import DEFAULT_LIMITS, AdapterLimits
from storage.sources.bucket import EXTRAS, BucketSource
from storage.sources.download import Downloader
from storage.sources.http import HttpSource
from storage.sources.hub import HubSource
from storage.sources.local import LocalDirectorySource
from storage.sources.merge import MergeSource
from storage.sources.policy import SourcePolicy
from storage.sources.retry import Patience
from storage.sources.source import Source, SourceRouter

DEFAULT_HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """roots: local directories that adapters may lie in. allowed: prefixes of network sources, and
    private_hosts: those of them inside the own network, as SourcePolicy takes them. hub: address
    of the Hugging Face hub; empty: $HF_ENDPOINT, else the public one."""

    roots: Sequence[Path] = ()
    allowed: Sequence[str] = ()
    private_hosts: Sequence[str] = ()
    hub: str = ""
    patience: Patience = field(default_factory=Patience)


def build_router(
    options: SourceOptions,
    limits: AdapterLimits = DEFAULT_LIMITS,
    others: Mapping[str, Source] | None = None,
    *,
    disk: DiskTier | None = None,
) -> SourceRouter:
    """others: scheme → source, beside those of `options`. disk: where merges find and keep what
    they are made of. `aclose` the router when done.

    Every scheme has its source even where nothing of it is allowed: then it says what opens it.
    Raises: ValueError for options that are malformed.
    """
    hub = (options.hub or os.environ.get("HF_ENDPOINT", "") or DEFAULT_HUB).rstrip("/")
    patience = options.patience
    policy = SourcePolicy(options.allowed, (*options.private_hosts, _host_and_port(hub)))
    downloader = Downloader(policy, patience)
    http = HttpSource(downloader, policy, limits)
    sources: dict[str, Source] = {
        "file": LocalDirectorySource(options.roots, limits, total_s=patience.total_s),
        "hf": HubSource(downloader, policy, hub, limits),
        "http": http,
        "https": http,
    }
    for scheme in EXTRAS:
        sources[scheme] = BucketSource(scheme, policy, patience, limits)
    sources |= others or {}
    sources["merge"] = MergeSource(SourceRouter(sources), disk, limits)
    return SourceRouter(sources, on_close=downloader.aclose)


def _host_and_port(url: str) -> str:
    """Of the hub, which the operator has named and which may therefore be anywhere."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"the hub {url!r} is no http:// or https:// address (HF_ENDPOINT)")
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
