"""DataPlaneAdminService."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import grpc

from chorale.bearer import check_bearer
from chorale.v1 import admin_pb2, admin_pb2_grpc
from dataplane.rpc.adapter_loads import check_digests, loads_response
from dataplane.rpc.engine_client import EngineClient

SERVICE_NAME = "chorale.v1.DataPlaneAdminService"
_KINDS = {
    "adapter": admin_pb2.PAGE_OWNER_KIND_ADAPTER,
    "sequence": admin_pb2.PAGE_OWNER_KIND_SEQUENCE,
    "prefix": admin_pb2.PAGE_OWNER_KIND_PREFIX,
}


class AdminService(admin_pb2_grpc.DataPlaneAdminServiceServicer):
    """engine: gives the engine of the moment. page_bytes: of a page in all layers."""

    def __init__(
        self,
        *,
        engine: Callable[[], EngineClient],
        data_plane_id: str,
        page_bytes: int,
        fleet_token: str,
    ) -> None:
        self._engine = engine
        self._data_plane_id = data_plane_id
        self._page_bytes = page_bytes
        self._fleet_token = fleet_token

    async def GetPool(
        self,
        request: admin_pb2.GetPoolRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> admin_pb2.GetPoolResponse:
        check_bearer(context.invocation_metadata(), self._fleet_token)
        report = await self._engine().inspect()
        return admin_pb2.GetPoolResponse(
            data_plane_id=self._data_plane_id,
            num_pages=len(report.owners),
            page_bytes=self._page_bytes,
            num_used_pages=report.num_used_pages,
            runs=runs_of(report.owners),
            problem=report.problem,
        )

    async def ListAdapterLoads(
        self,
        request: admin_pb2.ListAdapterLoadsRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> admin_pb2.ListAdapterLoadsResponse:
        check_bearer(context.invocation_metadata(), self._fleet_token)
        engine = self._engine()
        report = await engine.recent_loads()
        return loads_response(
            self._data_plane_id, check_digests(request.digests), report.loads, engine.stats
        )


def runs_of(owners: Sequence[str]) -> Iterator[admin_pb2.PageRun]:
    """The runs of pages with one owner; owners: as channel.PoolReport has them."""
    first_page = 0
    for owner, pages in groupby(owners):
        num_pages = sum(1 for _ in pages)
        kind, _, owner_id = owner.partition(":")
        yield admin_pb2.PageRun(
            owner_kind=_KINDS.get(kind, admin_pb2.PAGE_OWNER_KIND_UNSPECIFIED)
            if owner
            else admin_pb2.PAGE_OWNER_KIND_FREE,
            owner_id=owner_id if kind in _KINDS else owner,
            first_page=first_page,
            num_pages=num_pages,
        )
        first_page += num_pages
