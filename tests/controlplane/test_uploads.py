"""Uploads over gRPC, and what data planes and requests get of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
import trustme

import chorale
from chorale.aio import AsyncClient
from chorale.upload import MAX_ATTEMPTS, pause_before_retry_s, read_directory
from chorale.v1 import adapter_registry_pb2 as pb
from chorale.v1 import blob_pb2
from chorale.v1.blob_pb2_grpc import BlobServiceStub
from controlplane.gateway.main import serve as serve_gateway
from controlplane.gateway.options import GatewayOptions
from controlplane.registry.uploads import Uploads
from dataplane.lora.blob_source import BlobSource
from storage.adapter.manifest import digest_of
from storage.blobs import BlobStore
from storage.errors import (
    SourceNotFoundError,
    SourceUnavailableError,
    SourceUnreadableError,
    UploadOffsetError,
)
from storage.files import CONFIG_NAME, WEIGHTS_NAME
from storage.limits import AdapterLimits
from storage.sources.retry import Patience
from storage.upload import UploadHeader
from tests.helpers.adapters import make_adapter_dir
from tests.helpers.control_plane import AUTHORIZATION, TOKEN, ControlPlane, failure, running
from tests.helpers.fleet_certificates import write_files


@pytest.fixture
async def plane(redis_url: str, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with running(redis_url, blob_dir=tmp_path / "blobs") as made:
        await made.join()
        yield made


def sent(directory: Path, offset: int = 0, upto: int | None = None) -> Iterator[Any]:
    """The messages of an upload, small ones."""
    files = read_directory(directory)
    yield pb.UploadAdapterRequest(begin=pb.UploadBegin(header=files.header, offset=offset))
    data = files.weights.read_bytes()[offset:upto]
    for begin in range(0, len(data), 1000):
        yield pb.UploadAdapterRequest(data=data[begin : begin + 1000])


def digest_in(directory: Path) -> str:
    return digest_of(
        (directory / CONFIG_NAME).read_bytes(), (directory / WEIGHTS_NAME).read_bytes()
    )


async def test_upload_register_fetch(plane: ControlPlane, tmp_path: Path) -> None:
    made = make_adapter_dir(tmp_path / "away" / "a")
    progress: list[tuple[str, int, int]] = []
    async with AsyncClient(plane.address) as client:
        uploaded = await client.adapters.upload(
            made, on_progress=lambda *args: progress.append(args)
        )
        assert uploaded.digest == digest_in(made)
        assert progress[-1][1] == progress[-1][2] == (made / WEIGHTS_NAME).stat().st_size
        done = await client.adapters.register("voice", uploaded.source)
        assert (done.version.source, done.version.digest) == (uploaded.source, uploaded.digest)
        assert not done.version.private
        assert (await client.adapters.verify("voice")).matches
        progress.clear()
        assert await client.adapters.upload(made, on_progress=lambda *a: progress.append(a))
        assert progress == []  # the control plane has it
    source = BlobSource(plane.address, TOKEN)
    files = await source.fetch(uploaded.source)
    assert files.weights == (made / WEIGHTS_NAME).read_bytes()
    assert files.config == (made / CONFIG_NAME).read_bytes()
    await source.aclose()


async def test_a_broken_upload_goes_on(plane: ControlPlane, tmp_path: Path) -> None:
    made = make_adapter_dir(tmp_path / "a")
    error = await failure(plane.registry.UploadAdapter(sent(made, upto=2500)))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "UPLOAD_OFFSET")
    header = read_directory(made).header
    offset = (await plane.registry.GetUpload(pb.GetUploadRequest(header=header))).offset
    assert offset == 2500 == int(error.metadata["offset"])
    error = await failure(plane.registry.UploadAdapter(sent(made, offset=0)))
    assert error.reason == "UPLOAD_OFFSET"
    response = await plane.registry.UploadAdapter(sent(made, offset=offset))
    assert response.digest == digest_in(made)


async def test_an_upload_whose_status_was_lost_is_tried_again(
    plane: ControlPlane, tmp_path: Path
) -> None:
    """What grpc.aio makes, now and then, of a refusal that comes while it writes."""
    none = grpc.aio.Metadata()
    lost = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, none, none, "Internal error from Core")
    made = make_adapter_dir(tmp_path / "a")
    async with AsyncClient(plane.address) as client:
        stub: Any = client.adapters._stub
        upload = stub.UploadAdapter

        def losing(*_: Any, **__: Any) -> Any:
            stub.UploadAdapter = upload
            raise lost

        stub.UploadAdapter = losing
        assert (await client.adapters.upload(made)).digest == digest_in(made)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_what_ends_an_upload_here_is_raised_as_it_is(
    plane: ControlPlane, tmp_path: Path, kind: str
) -> None:
    made = make_adapter_dir(tmp_path / "a")

    def full(*_: object) -> None:
        raise OSError("the log is full")

    with pytest.raises(OSError, match="log is full"):
        if kind == "async":
            async with AsyncClient(plane.address) as client:
                await client.adapters.upload(made, on_progress=full)
        else:
            with chorale.Client(plane.address) as blocking:
                await asyncio.to_thread(blocking.adapters.upload, made, on_progress=full)


async def test_a_line_that_breaks_often_ends_no_upload_that_moves(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_adapter_dir(tmp_path / "a")
    size = (made / WEIGHTS_NAME).stat().st_size
    monkeypatch.setattr("chorale.aio_adapters.pause_before_retry_s", without_pause)
    async with AsyncClient(plane.address) as client:
        stub: Any = client.adapters._stub
        upload = stub.UploadAdapter
        calls: list[int] = []

        async def breaking(messages: AsyncIterator[Any], **_: Any) -> Any:
            calls.append(1)
            begin, data = [message async for message in messages]
            part = pb.UploadAdapterRequest(data=data.data[: size // 20 + 1])
            return await upload(iter([begin, part]))

        stub.UploadAdapter = breaking
        assert (await client.adapters.upload(made)).digest == digest_in(made)
        assert len(calls) == 20 > MAX_ATTEMPTS


def without_pause(error: chorale.ChoraleError, attempt: int) -> float | None:
    return None if pause_before_retry_s(error, attempt) is None else 0.0


async def test_bad_uploads_are_typed(plane: ControlPlane, tmp_path: Path) -> None:
    made = make_adapter_dir(tmp_path / "a")
    header = read_directory(made).header
    begin = pb.UploadAdapterRequest(begin=pb.UploadBegin(header=header))
    data = pb.UploadAdapterRequest(data=b"x")
    damaged = pb.UploadAdapterRequest(data=bytes(header.weights_bytes))
    wrong = pb.UploadHeader(config=b"{", weights_bytes=10, weights_sha256=bytes(32))
    expected: dict[str, list[pb.UploadAdapterRequest]] = {
        "UPLOAD_ORDER": [data, begin],
        "UPLOAD_DAMAGED": [begin, damaged],
        "UPLOAD_INVALID": [begin, damaged, data],
        "BAD_CONFIG": [pb.UploadAdapterRequest(begin=pb.UploadBegin(header=wrong))],
    }
    error = await failure(plane.registry.UploadAdapter(iter([begin, begin])))
    assert error.reason == "UPLOAD_ORDER"
    for reason, messages in expected.items():
        error = await failure(plane.registry.UploadAdapter(iter(messages)))
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", reason)
    error = await failure(plane.registry.UploadAdapter(iter([])))
    assert error.reason == "UPLOAD_ORDER"
    not_sound = b"{}" * 100
    false = pb.UploadHeader(
        config=header.config,
        weights_bytes=len(not_sound),
        weights_sha256=hashlib.sha256(not_sound).digest(),
    )
    messages = [
        pb.UploadAdapterRequest(begin=pb.UploadBegin(header=false)),
        pb.UploadAdapterRequest(data=not_sound),
    ]
    error = await failure(plane.registry.UploadAdapter(iter(messages)))
    assert error.reason == "BAD_WEIGHTS"


async def test_quota_and_off(redis_url: str, tmp_path: Path) -> None:
    made = make_adapter_dir(tmp_path / "a")
    async with running(redis_url, blob_dir=tmp_path / "b", max_blob_bytes=1000) as plane:
        error = await failure(plane.registry.UploadAdapter(sent(made)))
        assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "BLOB_QUOTA_EXCEEDED")
    async with running(redis_url) as plane:
        error = await failure(plane.registry.UploadAdapter(sent(made)))
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "UPLOADS_OFF")
        await plane.join()
        error = await failure(plane.register("v", f"blob:{'a' * 64}"))
        assert error.reason == "UNSUPPORTED_SCHEME"


async def test_blobs_are_for_data_planes_only(plane: ControlPlane, tmp_path: Path) -> None:
    made = make_adapter_dir(tmp_path / "a")
    digest = (await plane.registry.UploadAdapter(sent(made))).digest
    stub: Any = BlobServiceStub(plane.channel)
    request = blob_pb2.FetchBlobRequest(digest=digest, file=blob_pb2.BLOB_FILE_WEIGHTS, offset=7)

    async def first(metadata: Any, request: Any = request) -> Any:
        return await anext(aiter(stub.FetchBlob(request, metadata=metadata)))

    for metadata in ((), (("authorization", "Bearer wrong"),)):
        assert (await failure(first(metadata))).code.name == "UNAUTHENTICATED"
    answer = await first(AUTHORIZATION)
    assert answer.data == (made / WEIGHTS_NAME).read_bytes()[7 : 7 + len(answer.data)]
    assert answer.total_bytes == (made / WEIGHTS_NAME).stat().st_size
    for fields, code in (
        ({"digest": "b" * 64}, "NOT_FOUND"),
        ({"digest": "../x"}, "INVALID_ARGUMENT"),
        ({"file": 0}, "INVALID_ARGUMENT"),
        ({"offset": 1 << 40}, "INVALID_ARGUMENT"),
    ):
        bad = blob_pb2.FetchBlobRequest()
        bad.CopyFrom(request)
        for field, value in fields.items():
            setattr(bad, field, value)
        assert (await failure(first(AUTHORIZATION, bad))).code.name == code


async def test_a_data_planes_fetch_is_typed_and_tried_again(
    plane: ControlPlane, tmp_path: Path
) -> None:
    quick = Patience(stall_s=60, max_attempts=2, first_pause_s=0.01)
    made = make_adapter_dir(tmp_path / "a")
    digest = (await plane.registry.UploadAdapter(sent(made))).digest
    nobody = BlobSource("127.0.0.1:9", TOKEN, patience=quick)
    with pytest.raises(Exception, match="2 times in a row") as caught:
        await nobody.fetch(f"blob:{digest}")
    assert getattr(caught.value, "reason", "") == "SOURCE_UNAVAILABLE"
    await nobody.aclose()
    stranger = BlobSource(plane.address, "wrong", patience=quick)
    with pytest.raises(SourceUnreadableError, match="FLEET_TOKEN_WRONG"):
        await stranger.fetch(f"blob:{digest}")
    await stranger.aclose()
    source = BlobSource(
        plane.address, TOKEN, patience=quick, limits=AdapterLimits(max_weights_bytes=100)
    )
    with pytest.raises(Exception, match="limit is 100"):
        await source.fetch(f"blob:{digest}")
    with pytest.raises(SourceNotFoundError):
        await source.fetch(f"blob:{'b' * 64}")
    await source.aclose()


async def test_through_a_gateway(plane: ControlPlane, tmp_path: Path) -> None:
    made = make_adapter_dir(tmp_path / "a")
    ports: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    options = GatewayOptions(
        control_plane=plane.address,
        host="127.0.0.1",
        grpc_port=0,
        http_port=0,
        ready=lambda grpc_port, http_port: ports.set_result(grpc_port),
    )
    serving = asyncio.create_task(serve_gateway(options, stop))
    address = f"127.0.0.1:{await ports}"
    try:
        progress: list[tuple[str, int, int]] = []
        async with AsyncClient(address) as client:
            uploaded = await client.adapters.upload(made)
            done = await client.adapters.register(
                "voice", uploaded.source, on_progress=lambda *args: progress.append(args)
            )
            assert done.version.digest == digest_in(made)
            with pytest.raises(chorale.PermissionDeniedError):
                await client.adapters.register(
                    "v", "https://example.com/a", on_progress=lambda *args: None
                )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with grpc.aio.insecure_channel(address) as channel:
                stub: Any = BlobServiceStub(channel)
                await anext(aiter(stub.FetchBlob(blob_pb2.FetchBlobRequest())))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        stop.set()
        await serving


async def test_over_tls_of_the_fleet(redis_url: str, tmp_path: Path) -> None:
    """A control plane that serves its fleet alone, and what its data planes fetch there."""
    files = write_files(tmp_path / "fleet", trustme.CA())
    absent = "0" * 64
    quick = Patience(stall_s=60, max_attempts=2, first_pause_s=0.01)
    async with running(redis_url, blob_dir=tmp_path / "blobs", fleet_tls=files) as plane:
        member = BlobSource(plane.address, TOKEN, files, patience=quick)
        with pytest.raises(SourceNotFoundError):
            await member.fetch(f"blob:{absent}")
        await member.aclose()
        stranger = BlobSource(plane.address, TOKEN, patience=quick)
        with pytest.raises(SourceUnavailableError, match="--fleet-tls-cert-file"):
            await stranger.fetch(f"blob:{absent}")
        await stranger.aclose()


async def test_a_damaged_blob_is_registered_as_nothing_and_uploaded_anew(
    plane: ControlPlane, tmp_path: Path
) -> None:
    made = make_adapter_dir(tmp_path / "a")
    async with AsyncClient(plane.address) as client:
        uploaded = await client.adapters.upload(made)
        (kept,) = (tmp_path / "blobs").glob(f"blobs/*/{WEIGHTS_NAME}")
        data = bytearray(kept.read_bytes())
        data[-1] ^= 1
        kept.write_bytes(data)
        error = await failure(plane.register("voice", uploaded.source))
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "DIGEST_MISMATCH")
        assert "upload it again" in error.message
        shouted = uploaded.source.replace("blob:", "BLOB:")
        assert (await failure(plane.register("voice", shouted))).reason == "DIGEST_MISMATCH"
        assert await client.adapters.upload(made) == uploaded
        done = await client.adapters.register("voice", uploaded.source)
        assert done.version.digest == uploaded.digest


async def test_an_upload_that_says_nothing_is_ended(tmp_path: Path) -> None:
    made = make_adapter_dir(tmp_path / "a")
    files = read_directory(made)
    header = UploadHeader(
        files.header.config, files.header.weights_bytes, files.header.weights_sha256
    )
    uploads = Uploads(BlobStore(tmp_path / "blobs", 1 << 20), Mock(), silence_s=0.05)

    async def silent(first: bytes) -> AsyncIterator[bytes]:
        yield first
        await asyncio.Event().wait()

    data = files.weights.read_bytes()
    async with asyncio.timeout(10):
        with pytest.raises(UploadOffsetError, match=r"0\.05 s after byte 100") as caught:
            await uploads.take(header, 0, silent(data[:100]))
        assert caught.value.metadata == {"offset": "100"}
        assert await uploads.offset(header) == 100  # and nobody holds it

        async def rest() -> AsyncIterator[bytes]:
            yield data[100:]

        assert await uploads.take(header, 100, rest()) == digest_in(made)
