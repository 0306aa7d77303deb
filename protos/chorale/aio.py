"""The awaiting client, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from chorale.bearer import bearer_metadata
from chorale.channel import CHANNEL_OPTIONS
from chorale.client import PAGE_SIZE
from chorale.errors import ChoraleError, InternalError
from chorale.events import Completion, CompletionBuilder, Event, event_of
from chorale.merges import MergeOptions, merge_request
from chorale.requests import (
    AdmitOptions,
    GenerateOptions,
    admit_request,
    alias_request,
    direct_request,
    generate_request,
)
from chorale.source_token import source_token_metadata
from chorale.status import from_rpc_error
from chorale.tenants import AsyncTenants
from chorale.token_spans import TokenSpan, token_spans, tokenize_request
from chorale.upload import OnProgress, Sending, pause_before_retry_s, read_directory
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
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._channel = (
            grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
        )
        self._tenant = tenant
        self._timeout = timeout
        self._inference = InferenceServiceStub(self._channel)
        self._admission = AdmissionServiceStub(self._channel)
        self._fleet = FleetServiceStub(self._channel)
        self._admin: Any = DataPlaneAdminServiceStub(self._channel)
        self._tenants: Any = TenantServiceStub(self._channel)
        self._registry = AdapterRegistryServiceStub(self._channel)
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
        return await call(self._admission.Admit, request, self._timeout, metadata)

    async def tokenize(
        self, text: str, *, model: str = "", add_special_tokens: bool = True
    ) -> list[TokenSpan]:
        """The tokens that a prompt of this text has.

        model: whose, as in `generate`. add_special_tokens: those too that prompts get (BOS).
        """
        request = tokenize_request(text, model, add_special_tokens)
        return token_spans(await call(self._inference.Tokenize, request, self._timeout))

    async def base_models(self) -> list[registry_pb.BaseModel]:
        """Base models that data planes have announced, in order of name."""
        request = registry_pb.ListBaseModelsRequest()
        return list((await call(self._registry.ListBaseModels, request, self._timeout)).base_models)

    async def pool(self, fleet_token: str) -> admin_pb.GetPoolResponse:
        """Who owns each page of the pool; only where the address is a data plane's own."""
        request = admin_pb.GetPoolRequest()
        metadata = bearer_metadata(fleet_token)
        return await call(self._admin.GetPool, request, self._timeout, metadata)

    async def adapter_loads(
        self, fleet_token: str, digests: Sequence[str] = ()
    ) -> admin_pb.ListAdapterLoadsResponse:
        """Loads under way and lately ended, of `digests` or all, and where those are; only
        where the address is a data plane's own."""
        request = admin_pb.ListAdapterLoadsRequest(digests=digests)
        metadata = bearer_metadata(fleet_token)
        return await call(self._admin.ListAdapterLoads, request, self._timeout, metadata)

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
        return await call(self._fleet.DirectAdapter, request, self._timeout, metadata)

    async def data_planes(self) -> list[fleet_pb.DataPlane]:
        """The live data planes with their last report, in order of id."""
        request = fleet_pb.ListDataPlanesRequest()
        return list((await call(self._fleet.ListDataPlanes, request, self._timeout)).data_planes)

    async def demand(self, limit: int = 0) -> fleet_pb.ListDemandResponse:
        """What is asked for lately, what is predicted by it, and how often that came true.

        limit: most adapters to list, up to 1000; 0: 100.
        """
        request = fleet_pb.ListDemandRequest(limit=limit)
        return await call(self._fleet.ListDemand, request, self._timeout)

    def tenants(self, fleet_token: str) -> AsyncTenants:
        """What tenants may ask for: to be set, told and removed with the fleet token."""
        return AsyncTenants(self._tenants, call, self._timeout, bearer_metadata(fleet_token))


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


class AsyncAdapters:
    """The registry of adapters: `client.adapters`. See chorale.client.Adapters."""

    def __init__(self, stub: AdapterRegistryServiceStub, timeout: float | None) -> None:
        self._stub = stub
        self._timeout = timeout

    async def register(
        self,
        name: str,
        source: str,
        *,
        base_model: str = "",
        labels: Mapping[str, str] | None = None,
        source_token: str = "",
        must_be_new: bool = False,
        keep_current: bool = False,
        expected_digest: str = "",
        version: int = 0,
        on_progress: OnProgress | None = None,
    ) -> registry_pb.RegisterAdapterResponse:
        """Makes the PEFT directory at `source` the current version of `name`.

        source: what RegisterAdapterRequest.source may be. source_token: opens a private source.
        must_be_new: raises AlreadyExistsError (ADAPTER_EXISTS) for a name that exists.
        keep_current: leaves the current version of a name that exists as it is.
        expected_digest: refuses other content. version: the number to give, as in a restore.
        on_progress: called with file name, bytes received and size while the source is read.
        """
        request = registry_pb.RegisterAdapterRequest(
            name=name,
            source=source,
            base_model=base_model,
            labels=labels or {},
            must_be_new=must_be_new,
            keep_current=keep_current,
            expected_digest=expected_digest,
            version=version,
        )
        metadata = source_token_metadata(source_token)
        if on_progress is not None:
            return await _registered(self._stub, request, self._timeout, metadata, on_progress)
        return await call(self._stub.RegisterAdapter, request, self._timeout, metadata)

    async def merge(
        self, name: str, components: Mapping[str, float], **options: Unpack[MergeOptions]
    ) -> registry_pb.MergeAdaptersResponse:
        """Makes a weighted combination of registered adapters the current version of `name`.

        components: NAME, NAME@VERSION or alias to weight, pinned as they are now; see MergeOptions.
        """
        request = merge_request(name, components, options)
        return await call(self._stub.MergeAdapters, request, self._timeout)

    async def upload(
        self, directory: str | Path, *, on_progress: OnProgress | None = None
    ) -> registry_pb.UploadAdapterResponse:
        """See chorale.client.Adapters.upload."""
        files = await asyncio.to_thread(read_directory, Path(directory))
        attempt, reached = 0, -1
        while True:
            attempt += 1
            sending = Sending(files, on_progress)
            try:
                asked = registry_pb.GetUploadRequest(header=files.header)
                offset = (await call(self._stub.GetUpload, asked, self._timeout)).offset
                if offset > reached:  # an attempt that brought something is none in vain
                    attempt, reached = 1, offset
                messages = _read_ahead(sending.messages(offset))
                return await call(self._stub.UploadAdapter, messages, None)
            except (ChoraleError, asyncio.CancelledError) as error:
                if sending.problem is not None:
                    raise sending.problem from None
                if isinstance(error, asyncio.CancelledError):
                    raise
                pause_s = pause_before_retry_s(error, attempt)
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)

    async def get(self, name: str) -> registry_pb.GetAdapterResponse:
        """The adapter that a name, `name@version` or alias means, and the version it means."""
        request = registry_pb.GetAdapterRequest(name=name)
        return await call(self._stub.GetAdapter, request, self._timeout)

    async def list(self, *, base_model: str = "") -> AsyncIterator[registry_pb.Adapter]:
        """Every adapter in order of name; pages are fetched as they are needed."""
        token = ""
        while True:
            request = registry_pb.ListAdaptersRequest(
                page_size=PAGE_SIZE, page_token=token, base_model=base_model
            )
            page = await call(self._stub.ListAdapters, request, self._timeout)
            for adapter in page.adapters:
                yield adapter
            token = page.next_page_token
            if not token:
                return

    async def promote(self, name: str, version: int) -> registry_pb.Adapter:
        """Makes `version` the current one."""
        request = registry_pb.PromoteAdapterRequest(name=name, version=version)
        return (await call(self._stub.PromoteAdapter, request, self._timeout)).adapter

    async def rollback(self, name: str) -> registry_pb.Adapter:
        """Makes the version current that was before the present one."""
        request = registry_pb.RollbackAdapterRequest(name=name)
        return (await call(self._stub.RollbackAdapter, request, self._timeout)).adapter

    async def remove(self, name: str, *, version: int = 0) -> None:
        """Removes the adapter with its aliases, or one `version` that is not current."""
        request = registry_pb.RemoveAdapterRequest(name=name, version=version)
        await call(self._stub.RemoveAdapter, request, self._timeout)

    async def set_alias(
        self,
        name: str,
        adapter: str = "",
        *,
        version: int = 0,
        targets: Mapping[str, int] | None = None,
    ) -> registry_pb.Alias:
        """Points alias `name` at `adapter` (`version` 0 follows its current version), or at several
        `targets`: NAME or NAME@VERSION to weights, which share its requests."""
        request = alias_request(name, adapter, version, targets)
        return (await call(self._stub.SetAlias, request, self._timeout)).alias

    async def remove_alias(self, name: str) -> None:
        """Removes alias `name`."""
        request = registry_pb.RemoveAliasRequest(name=name)
        await call(self._stub.RemoveAlias, request, self._timeout)

    async def verify(
        self, name: str, *, source_token: str = ""
    ) -> registry_pb.VerifyAdapterResponse:
        """Compares the source's present content with what was registered."""
        request = registry_pb.VerifyAdapterRequest(name=name)
        metadata = source_token_metadata(source_token)
        return await call(self._stub.VerifyAdapter, request, self._timeout, metadata)


async def _read_ahead(
    messages: Iterator[registry_pb.UploadAdapterRequest],
) -> AsyncIterator[registry_pb.UploadAdapterRequest]:
    """The upload's messages; the file is read in threads."""
    while (message := await asyncio.to_thread(next, messages, None)) is not None:
        yield message


async def _registered(
    stub: Any,
    register: registry_pb.RegisterAdapterRequest,
    timeout: float | None,
    metadata: Sequence[tuple[str, str]],
    on_progress: OnProgress,
) -> registry_pb.RegisterAdapterResponse:
    request = registry_pb.StreamRegisterAdapterRequest(register=register)
    try:
        async for event in stub.StreamRegisterAdapter(request, timeout=timeout, metadata=metadata):
            if event.HasField("registered"):
                return event.registered
            progress = event.progress
            on_progress(progress.file, progress.received_bytes, progress.total_bytes)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    raise InternalError("STREAM_ENDED", "the server ended the stream without an answer: try again")


async def call(
    method: Any, request: Any, timeout: float | None, metadata: Sequence[tuple[str, str]] = ()
) -> Any:
    """One unary call. Raises: ChoraleError."""
    try:
        return await method(request, timeout=timeout, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
