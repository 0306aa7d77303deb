"""AdapterRegistryService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from chorale.source_token import source_token_of
from chorale.v1 import adapter_registry_pb2 as pb
from chorale.v1.adapter_registry_pb2_grpc import AdapterRegistryServiceServicer
from controlplane.errors import InvalidRequestError
from controlplane.registry.merging import register_merge
from controlplane.registry.registry import AdapterRegistry
from controlplane.registry.uploads import Uploads
from controlplane.rpc import translate
from controlplane.rpc.merges import merge_from_pb
from controlplane.rpc.progress import LatestProgress
from storage.sources import Access

Context = grpc.aio.ServicerContext[Any, Any]


class AdapterRegistryHandlers(AdapterRegistryServiceServicer):
    def __init__(self, registry: AdapterRegistry, uploads: Uploads) -> None:
        self._registry = registry
        self._uploads = uploads

    async def RegisterAdapter(
        self, request: pb.RegisterAdapterRequest, context: Context
    ) -> pb.RegisterAdapterResponse:
        return await self._register(request, Access(token_of(context)))

    async def StreamRegisterAdapter(
        self, request: pb.StreamRegisterAdapterRequest, context: Context
    ) -> AsyncIterator[pb.StreamRegisterAdapterResponse]:
        latest = LatestProgress()
        access = Access(token_of(context), latest.set)
        working = asyncio.create_task(self._register(request.register, access))
        async with aclosing(latest.until(working)) as news:
            async for progress in news:
                yield pb.StreamRegisterAdapterResponse(progress=translate.progress_to_pb(progress))
        yield pb.StreamRegisterAdapterResponse(registered=working.result())

    async def _register(
        self, request: pb.RegisterAdapterRequest, access: Access
    ) -> pb.RegisterAdapterResponse:
        done = await self._registry.register(
            request.name,
            request.source,
            base_model=request.base_model,
            labels=request.labels,
            access=access,
            must_be_new=request.must_be_new,
            version=request.version,
            expected_digest=request.expected_digest,
            keep_current=request.keep_current,
        )
        return pb.RegisterAdapterResponse(
            adapter=translate.adapter_to_pb(done.adapter),
            version=translate.version_to_pb(done.adapter.version(done.version)),
            created=done.created,
        )

    async def MergeAdapters(
        self, request: pb.MergeAdaptersRequest, context: Context
    ) -> pb.MergeAdaptersResponse:
        refuse_token(context)
        done = await register_merge(
            self._registry,
            request.name,
            merge_from_pb(request),
            labels=request.labels,
            must_be_new=request.must_be_new,
            keep_current=request.keep_current,
        )
        return pb.MergeAdaptersResponse(
            adapter=translate.adapter_to_pb(done.adapter),
            version=translate.version_to_pb(done.adapter.version(done.version)),
            created=done.created,
        )

    async def GetUpload(
        self, request: pb.GetUploadRequest, context: Context
    ) -> pb.GetUploadResponse:
        header = translate.upload_header_from_pb(request.header)
        return pb.GetUploadResponse(offset=await self._uploads.offset(header))

    async def UploadAdapter(
        self, request_iterator: AsyncIterator[pb.UploadAdapterRequest], context: Context
    ) -> pb.UploadAdapterResponse:
        begin = await translate.upload_begin_from_pb(request_iterator)
        header = translate.upload_header_from_pb(begin.header)
        data = translate.upload_data_from_pb(request_iterator)
        digest = await self._uploads.take(header, begin.offset, data)
        return pb.UploadAdapterResponse(digest=digest, source=f"blob:{digest}")

    async def GetAdapter(
        self, request: pb.GetAdapterRequest, context: Context
    ) -> pb.GetAdapterResponse:
        found = await self._registry.get(request.name)
        return pb.GetAdapterResponse(
            adapter=translate.adapter_to_pb(found.adapter),
            resolved_version=found.version,
            alias=translate.alias_to_pb(found.alias) if found.alias else None,
        )

    async def ListAdapters(
        self, request: pb.ListAdaptersRequest, context: Context
    ) -> pb.ListAdaptersResponse:
        page = await self._registry.page(
            size=request.page_size, token=request.page_token, base_model=request.base_model
        )
        return pb.ListAdaptersResponse(
            adapters=[translate.adapter_to_pb(adapter) for adapter in page.adapters],
            next_page_token=page.next_token,
            total_size=page.total,
        )

    async def PromoteAdapter(
        self, request: pb.PromoteAdapterRequest, context: Context
    ) -> pb.PromoteAdapterResponse:
        adapter = await self._registry.promote(request.name, request.version)
        return pb.PromoteAdapterResponse(adapter=translate.adapter_to_pb(adapter))

    async def RollbackAdapter(
        self, request: pb.RollbackAdapterRequest, context: Context
    ) -> pb.RollbackAdapterResponse:
        adapter = await self._registry.rollback(request.name)
        return pb.RollbackAdapterResponse(adapter=translate.adapter_to_pb(adapter))

    async def RemoveAdapter(
        self, request: pb.RemoveAdapterRequest, context: Context
    ) -> pb.RemoveAdapterResponse:
        await self._registry.remove(request.name, request.version)
        return pb.RemoveAdapterResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        alias = await self._registry.set_alias(translate.alias_from_pb(request.alias))
        return pb.SetAliasResponse(alias=translate.alias_to_pb(alias))

    async def RemoveAlias(
        self, request: pb.RemoveAliasRequest, context: Context
    ) -> pb.RemoveAliasResponse:
        await self._registry.remove_alias(request.name)
        return pb.RemoveAliasResponse()

    async def VerifyAdapter(
        self, request: pb.VerifyAdapterRequest, context: Context
    ) -> pb.VerifyAdapterResponse:
        found = await self._registry.verify(request.name, Access(token_of(context)))
        return pb.VerifyAdapterResponse(
            matches=found.matches,
            registered_digest=found.registered_digest,
            found_digest=found.found_digest,
        )

    async def ListBaseModels(
        self, request: pb.ListBaseModelsRequest, context: Context
    ) -> pb.ListBaseModelsResponse:
        known = await self._registry.base_models()
        return pb.ListBaseModelsResponse(
            base_models=[translate.base_model_to_pb(base) for base in known.values()]
        )


def refuse_token(context: Context) -> None:
    """Where one would mean nothing. Raises: InvalidRequestError (TOKEN_UNSUPPORTED)."""
    if token_of(context):
        raise InvalidRequestError(
            "TOKEN_UNSUPPORTED",
            "a merge is made of adapters that everybody may read, so a source token means nothing "
            "to it; send none",
        )


def token_of(context: Context) -> str:
    """The caller's token for private sources. Raises: InvalidArgumentError."""
    return source_token_of(context.invocation_metadata())
