"""The awaiting client, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from chorale.aio_adapters import AsyncAdapters
from chorale.api_key import api_key_metadata
from chorale.bearer import bearer_metadata
from chorale.calls import async_call
from chorale.connection import carrying, open_aio_channel
from chorale.events import Completion, CompletionBuilder, Event, event_of
from chorale.requests import (
    AdmitOptions,
    GenerateOptions,
    admit_request,
    direct_request,
    generate_request,
)
from chorale.source_token import source_token_metadata
from chorale.status import from_rpc_error
from chorale.tenants import AsyncTenants
from chorale.token_spans import TokenSpan, token_spans, tokenize_request
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import admin_pb2 as admin_pb
from chorale.v1 import admission_pb2 as admission_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from chorale.v1.adapter_registry_pb2_grpc import AdapterRegistryServiceStub
from chorale.v1.admin_pb2_grpc import DataPlaneAdminServiceStub
from chorale.v1.admission_pb2_grpc import AdmissionServiceStub
from chorale.v1.fleet_pb2_grpc import FleetServiceStub
from chorale.v1.inference_pb2_grpc import InferenceServiceStub
from chorale.v1.tenant_pb2_grpc import TenantServiceStub


class AsyncClient:
    """As chorale.Client, for one event loop; create it inside that loop.

    Raises: the errors of `chorale.errors`; cancelling a task that awaits a call cancels the call.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        tenant: str = "",
        timeout: float | None = 60.0,
        api_key: str = "",
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str = "",
    ) -> None:
        key = api_key_metadata(api_key)
        self._channel = open_aio_channel(address, credentials, server_name)
        channel = carrying(self._channel, key)
        self._tenant = tenant
        self._timeout = timeout
        self._inference = InferenceServiceStub(channel)
        self._admission = AdmissionServiceStub(channel)
        self._fleet = FleetServiceStub(channel)
        self._admin: Any = DataPlaneAdminServiceStub(channel)
        self._tenants: Any = TenantServiceStub(channel)
        self._registry = AdapterRegistryServiceStub(channel)
        self.adapters = AsyncAdapters(self._registry, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; running generations are cancelled."""
        await self._channel.close()

    def generate(
        self, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncGeneration:
        """Starts one generation and streams it; see GenerateOptions."""
        request = generate_request(prompt, options, tenant=self._tenant)
        metadata = source_token_metadata(options.get("source_token", ""))
        return AsyncGeneration(
            self._inference.Generate(request, timeout=options.get("timeout"), metadata=metadata)
        )

    async def complete(
        self, prompt: str | None = None, **options: Unpack[GenerateOptions]
    ) -> Completion:
        """Generates and returns the whole; see GenerateOptions."""
        builder = CompletionBuilder()
        async with self.generate(prompt, **options) as events:
            async for event in events:
                builder.add(event)
        return builder.build()

    async def admit(
        self, model: str = "", **options: Unpack[AdmitOptions]
    ) -> admission_pb.AdmitResponse:
        """A place on a data plane: its endpoint and the ticket to stream straight from it; see
        AdmitOptions."""
        request = admit_request(model, options, tenant=self._tenant)
        metadata = source_token_metadata(options.get("source_token", ""))
        return await async_call(self._admission.Admit, request, self._timeout, metadata)

    async def tokenize(
        self, text: str, *, model: str = "", add_special_tokens: bool = True
    ) -> list[TokenSpan]:
        """The tokens that a prompt of this text has.

        model: whose, as in `generate`. add_special_tokens: those too that prompts get (BOS).
        """
        request = tokenize_request(text, model, add_special_tokens)
        return token_spans(await async_call(self._inference.Tokenize, request, self._timeout))

    async def base_models(self) -> list[registry_pb.BaseModel]:
        """Base models that data planes have announced, in order of name."""
        request = registry_pb.ListBaseModelsRequest()
        return list(
            (await async_call(self._registry.ListBaseModels, request, self._timeout)).base_models
        )

    async def pool(self, fleet_token: str) -> admin_pb.GetPoolResponse:
        """Who owns each page of the pool; only where the address is a data plane's own."""
        request = admin_pb.GetPoolRequest()
        metadata = bearer_metadata(fleet_token)
        return await async_call(self._admin.GetPool, request, self._timeout, metadata)

    async def adapter_loads(
        self, fleet_token: str, digests: Sequence[str] = ()
    ) -> admin_pb.ListAdapterLoadsResponse:
        """Loads under way and lately ended, of `digests` or all, and where those are; only
        where the address is a data plane's own."""
        request = admin_pb.ListAdapterLoadsRequest(digests=digests)
        metadata = bearer_metadata(fleet_token)
        return await async_call(self._admin.ListAdapterLoads, request, self._timeout, metadata)

    async def direct_adapter(
        self,
        name: str,
        action: fleet_pb.AdapterAction,
        fleet_token: str,
        *,
        tier: fleet_pb.AdapterTier = fleet_pb.ADAPTER_TIER_UNSPECIFIED,
        within_s: float | None = None,
        data_plane_id: str = "",
    ) -> fleet_pb.DirectAdapterResponse:
        """Has data planes prefetch, pin, unpin or unload an adapter; they hear of it at their next
        heartbeat."""
        request = direct_request(name, action, tier, within_s, data_plane_id)
        metadata = bearer_metadata(fleet_token)
        return await async_call(self._fleet.DirectAdapter, request, self._timeout, metadata)

    async def data_planes(self) -> list[fleet_pb.DataPlane]:
        """The live data planes with their last report, in order of id."""
        request = fleet_pb.ListDataPlanesRequest()
        return list(
            (await async_call(self._fleet.ListDataPlanes, request, self._timeout)).data_planes
        )

    async def demand(self, limit: int = 0) -> fleet_pb.ListDemandResponse:
        """What is asked for lately, what is predicted by it, and how often that came true.

        limit: most adapters to list, up to 1000; 0: 100.
        """
        request = fleet_pb.ListDemandRequest(limit=limit)
        return await async_call(self._fleet.ListDemand, request, self._timeout)

    def tenants(self, fleet_token: str) -> AsyncTenants:
        """What tenants may ask for: to be set, told and removed with the fleet token."""
        return AsyncTenants(self._tenants, self._timeout, bearer_metadata(fleet_token))


class AsyncGeneration:
    """A running generation: an async iterator of events, and a context manager that ends it.

    Closing it before it is finished cancels the request on the server at once.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._responses = aiter(stream)
        self._closed = False

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._closed:
            try:
                event = event_of(await anext(self._responses))
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._closed and task is not None and not task.cancelling():
                    break
                raise
            if event is not None:
                return event
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the generation; iterating stops."""
        self._closed = True
        self._stream.cancel()
