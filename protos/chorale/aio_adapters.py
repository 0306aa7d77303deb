"""The registry of adapters: the part of the awaiting client that asks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import grpc

from chorale.adapters import PAGE_SIZE
from chorale.calls import async_call
from chorale.errors import ChoraleError, InternalError
from chorale.merges import MergeOptions, merge_request
from chorale.requests import alias_request
from chorale.source_token import source_token_metadata
from chorale.status import from_rpc_error
from chorale.upload import OnProgress, Sending, pause_before_retry_s, read_directory
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1.adapter_registry_pb2_grpc import AdapterRegistryServiceStub


class AsyncAdapters:
    """The registry of adapters: `client.adapters`. See chorale.adapters.Adapters."""

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
        return await async_call(self._stub.RegisterAdapter, request, self._timeout, metadata)

    async def merge(
        self, name: str, components: Mapping[str, float], **options: Unpack[MergeOptions]
    ) -> registry_pb.MergeAdaptersResponse:
        """Makes a weighted combination of registered adapters the current version of `name`.

        components: NAME, NAME@VERSION or alias to weight, pinned as they are now; see MergeOptions.
        """
        request = merge_request(name, components, options)
        return await async_call(self._stub.MergeAdapters, request, self._timeout)

    async def upload(
        self, directory: str | Path, *, on_progress: OnProgress | None = None
    ) -> registry_pb.UploadAdapterResponse:
        """See chorale.adapters.Adapters.upload."""
        files = await asyncio.to_thread(read_directory, Path(directory))
        attempt, reached = 0, -1
        while True:
            attempt += 1
            sending = Sending(files, on_progress)
            try:
                asked = registry_pb.GetUploadRequest(header=files.header)
                offset = (await async_call(self._stub.GetUpload, asked, self._timeout)).offset
                if offset > reached:  # an attempt that brought something is none in vain
                    attempt, reached = 1, offset
                messages = _read_ahead(sending.messages(offset))
                return await async_call(self._stub.UploadAdapter, messages, None)
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
        return await async_call(self._stub.GetAdapter, request, self._timeout)

    async def list(self, *, base_model: str = "") -> AsyncIterator[registry_pb.Adapter]:
        """Every adapter in order of name; pages are fetched as they are needed."""
        token = ""
        while True:
            request = registry_pb.ListAdaptersRequest(
                page_size=PAGE_SIZE, page_token=token, base_model=base_model
            )
            page = await async_call(self._stub.ListAdapters, request, self._timeout)
            for adapter in page.adapters:
                yield adapter
            token = page.next_page_token
            if not token:
                return

    async def promote(self, name: str, version: int) -> registry_pb.Adapter:
        """Makes `version` the current one."""
        request = registry_pb.PromoteAdapterRequest(name=name, version=version)
        return (await async_call(self._stub.PromoteAdapter, request, self._timeout)).adapter

    async def rollback(self, name: str) -> registry_pb.Adapter:
        """Makes the version current that was before the present one."""
        request = registry_pb.RollbackAdapterRequest(name=name)
        return (await async_call(self._stub.RollbackAdapter, request, self._timeout)).adapter

    async def remove(self, name: str, *, version: int = 0) -> None:
        """Removes the adapter with its aliases, or one `version` that is not current."""
        request = registry_pb.RemoveAdapterRequest(name=name, version=version)
        await async_call(self._stub.RemoveAdapter, request, self._timeout)

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
        return (await async_call(self._stub.SetAlias, request, self._timeout)).alias

    async def remove_alias(self, name: str) -> None:
        """Removes alias `name`."""
        request = registry_pb.RemoveAliasRequest(name=name)
        await async_call(self._stub.RemoveAlias, request, self._timeout)

    async def verify(
        self, name: str, *, source_token: str = ""
    ) -> registry_pb.VerifyAdapterResponse:
        """Compares the source's present content with what was registered."""
        request = registry_pb.VerifyAdapterRequest(name=name)
        metadata = source_token_metadata(source_token)
        return await async_call(self._stub.VerifyAdapter, request, self._timeout, metadata)


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
