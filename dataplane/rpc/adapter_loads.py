"""What DataPlaneAdminService.ListAdapterLoads tells."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from chorale.errors import InvalidArgumentError
from chorale.v1 import admin_pb2
from dataplane.channel import Stats
from dataplane.load_reports import AdapterLoad, LoadUnderWay

_MAX_DIGESTS = 1000


def check_digests(digests: Sequence[str]) -> Sequence[str]:
    """Raises: InvalidArgumentError (TOO_MANY_DIGESTS)."""
    if len(digests) > _MAX_DIGESTS:
        raise InvalidArgumentError(
            "TOO_MANY_DIGESTS",
            f"digests holds {len(digests)}; at most {_MAX_DIGESTS}, or none for all loads",
            metadata={"field": "digests"},
        )
    return digests


def loads_response(
    data_plane_id: str,
    digests: Sequence[str],
    loads: Sequence[AdapterLoad],
    stats: Stats | None,
) -> admin_pb2.ListAdapterLoadsResponse:
    """digests: those asked for; empty: all. stats: the engine's last report, None before any."""
    asked = frozenset(digests)
    under_way = stats.loading if stats is not None else []
    return admin_pb2.ListAdapterLoadsResponse(
        data_plane_id=data_plane_id,
        loads=[_load(each) for each in loads if not asked or each.digest in asked],
        loading=[_loading(each) for each in under_way if not asked or each.digest in asked],
        places=_places(digests, stats),
    )


def _load(load: AdapterLoad) -> admin_pb2.AdapterLoad:
    return admin_pb2.AdapterLoad(**structs.asdict(load))


def _loading(load: LoadUnderWay) -> admin_pb2.AdapterLoading:
    return admin_pb2.AdapterLoading(**structs.asdict(load))


def _places(digests: Sequence[str], stats: Stats | None) -> list[admin_pb2.AdapterPlace]:
    if stats is None:
        return [admin_pb2.AdapterPlace(digest=digest) for digest in digests]
    pool, host, disk = map(frozenset, (stats.pool_digests, stats.host_digests, stats.disk_digests))
    waiting = {each.digest: each.reason for each in stats.waiting_pins}
    return [
        admin_pb2.AdapterPlace(
            digest=digest,
            in_pool=digest in pool,
            in_host=digest in host,
            on_disk=digest in disk,
            pin_waits_for=waiting.get(digest, ""),
        )
        for digest in digests
    ]
