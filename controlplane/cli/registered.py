"""What commands say of a version that they have registered."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chorale.v1 import adapter_registry_pb2 as registry_pb


def sentence(
    response: registry_pb.RegisterAdapterResponse | registry_pb.MergeAdaptersResponse,
) -> str:
    """As "added sql@2 1f0c…; current is still 1"."""
    adapter, version = response.adapter, response.version
    is_current = adapter.current_version == version.version
    before = "was registered before" + ("; current now:" if is_current else ":")
    verb = "added" if response.created else before
    after = "" if is_current else f"; current is still {adapter.current_version}"
    return f"{verb} {adapter.name}@{version.version} {version.digest[:12]}{after}"
