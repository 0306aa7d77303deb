"""vLLM's POST /v1/load_lora_adapter and /v1/unload_lora_adapter, on the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import grpc
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from chorale.errors import ChoraleError, NotFoundError
from chorale.source_token import KEY as SOURCE_TOKEN_KEY
from chorale.source_token import source_token_metadata
from chorale.v1 import adapter_registry_pb2 as pb
from chorale.v1.adapter_registry_pb2_grpc import AdapterRegistryServiceStub
from controlplane.gateway.gate import Gate
from controlplane.gateway.http.body import Bodies, require_json
from controlplane.gateway.http.disconnect import while_connected
from controlplane.gateway.http.failures import ApiError, api_error
from controlplane.gateway.http.fields import Test, one_of, parse_fields
from controlplane.gateway.upstream import Metadata, ask_control_plane

Text = Annotated[str, Field(min_length=1)]


class LoadBody(BaseModel):
    """A field that is null is a field left out. `base_model` is ours: vLLM serves only one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    lora_name: Text
    lora_path: Text
    load_inplace: bool | None = None
    base_model: str | None = None


class UnloadBody(BaseModel):
    """The name says which; vLLM takes the number, too, and does not look at it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    lora_name: Text
    lora_int_id: int | None = None


_NOT_SERVED: Mapping[str, Test] = {"is_3d_lora_weight": one_of(False)}
_PARAM_OF = {"name": "lora_name", "source": "lora_path"}


class VllmAdapters:
    """The handlers. They change what every gateway serves, so no web page may reach them: see
    `require_json`.

    gate: holds the calls to the control plane.
    """

    def __init__(
        self, control_plane: grpc.aio.Channel, gate: Gate, bodies: Bodies, timeout_s: float
    ) -> None:
        self._registry: Any = AdapterRegistryServiceStub(control_plane)
        self._gate = gate
        self._bodies = bodies
        self._timeout_s = timeout_s

    async def load(self, request: Request) -> Response:
        """Registers an adapter; with load_inplace also as a new version of one that exists."""
        body = parse_fields(LoadBody, await self._read(request), _NOT_SERVED)
        register = pb.RegisterAdapterRequest(
            name=body.lora_name,
            source=body.lora_path,
            base_model=body.base_model or "",
            must_be_new=not body.load_inplace,
        )
        token = source_token_metadata(request.headers.get(SOURCE_TOKEN_KEY, ""))
        try:
            await self._ask(request, self._registry.RegisterAdapter, register, token)
        except ChoraleError as error:
            raise _not_loaded(error, body.lora_name) from error
        return _success(body.lora_name, "added")

    async def unload(self, request: Request) -> Response:
        """Removes an adapter with its versions and aliases. Running requests finish."""
        body = parse_fields(UnloadBody, await self._read(request), {})
        remove = pb.RemoveAdapterRequest(name=body.lora_name)
        try:
            await self._ask(request, self._registry.RemoveAdapter, remove)
        except ChoraleError as error:
            raise _not_unloaded(error, body.lora_name) from error
        return _success(body.lora_name, "removed")

    async def _read(self, request: Request) -> dict[str, Any]:
        require_json(request)
        return await self._bodies.read_object(request)

    async def _ask(
        self, request: Request, method: Any, message: Any, metadata: Metadata = ()
    ) -> None:
        timeout_s = self._timeout_s
        with self._gate.place():
            asking = ask_control_plane(method, message, timeout_s=timeout_s, metadata=metadata)
            await while_connected(request.receive, asking)


async def turned_off(request: Request) -> Response:
    """In place of the handlers. Clients probe for 404 to see whether adapters can be loaded."""
    raise ApiError(
        404,
        f"{request.url.path} is turned off here: start the gateway with --http-registry, or "
        "register adapters over gRPC",
        code="http_registry_off",
    )


def _success(name: str, done: str) -> Response:
    return PlainTextResponse(f"Success: LoRA adapter '{name}' {done} successfully.")


def _not_loaded(error: ChoraleError, name: str) -> ApiError:
    if error.reason == "ADAPTER_EXISTS":
        return ApiError(
            400,
            f"The lora adapter '{name[:200]}' has already been loaded. If you want to load the "
            "adapter in place, set 'load_inplace' to True.",
            param="lora_name",
            code="adapter_exists",
        )
    return _refused(error, "lora_path")


def _not_unloaded(error: ChoraleError, name: str) -> ApiError:
    refused = _refused(error, "lora_name")
    if isinstance(error, NotFoundError):
        refused.message = f"The lora adapter '{name[:200]}' cannot be found: {error.message}"
    return refused


def _refused(error: ChoraleError, not_found: str) -> ApiError:
    """As everywhere, but for the fields' names here. not_found: the field that named it."""
    refused = api_error(error)
    refused.param = _PARAM_OF.get(refused.param or "", refused.param)
    if isinstance(error, NotFoundError):
        refused.param, refused.code = not_found, error.reason.lower()
    return refused
