"""GET /v1/models: base models, adapters and aliases as OpenAI models."""

from __future__ import annotations

import time
from typing import Any

import grpc

from chorale.errors import InvalidArgumentError, NotFoundError
from chorale.v1 import adapter_registry_pb2 as pb
from chorale.v1.adapter_registry_pb2_grpc import AdapterRegistryServiceStub
from controlplane.gateway.upstream import ask_control_plane

_PAGE_SIZE = 1000


class Models:
    """Reads the registry anew at each call, so that all gateways say the same."""

    def __init__(self, control_plane: grpc.aio.Channel) -> None:
        self._registry: Any = AdapterRegistryServiceStub(control_plane)
        self._started_at = int(time.time())

    async def list(self) -> dict[str, Any]:
        """Every model. Raises: ChoraleError."""
        data = [self._base(base) for base in await self._base_models()]
        token = ""
        while True:
            request = pb.ListAdaptersRequest(page_size=_PAGE_SIZE, page_token=token)
            page = await ask_control_plane(self._registry.ListAdapters, request)
            for adapter in page.adapters:
                data.append(_version(adapter.name, adapter, adapter.current_version))
                # One of several adapters' targets is told by each of them.
                mine = (alias for alias in adapter.aliases if alias.adapter == adapter.name)
                data.extend(_alias(alias, adapter) for alias in mine)
            token = page.next_page_token
            if not token:
                return {"object": "list", "data": data}

    async def get(self, name: str) -> dict[str, Any]:
        """The model that a base model's name, an adapter's name, `name@version` or an alias means.

        Raises: NotFoundError and other ChoraleErrors.
        """
        for base in await self._base_models():
            if base.name == name:
                return self._base(base)
        try:
            found = await ask_control_plane(
                self._registry.GetAdapter, pb.GetAdapterRequest(name=name)
            )
        except InvalidArgumentError as error:  # what can be no name is no model either
            raise NotFoundError(error.reason, error.message) from error
        if found.HasField("alias"):
            return _alias(found.alias, found.adapter)
        return _version(name, found.adapter, found.resolved_version)

    async def info(self, max_concurrent_requests: int) -> dict[str, Any]:
        """The base model as LoRAX's /info has it; the first by name where there are several.

        Raises: NotFoundError while no data plane has announced one; other ChoraleErrors.
        """
        bases = await self._base_models()
        if not bases:
            raise NotFoundError("MODEL_NOT_FOUND", "no data plane has announced a base model yet")
        return {
            "model_id": bases[0].name,
            "model_sha": bases[0].fingerprint,
            "max_concurrent_requests": max_concurrent_requests,
            "max_input_length": bases[0].max_context_tokens - 1,
            "max_total_tokens": bases[0].max_context_tokens,
        }

    async def _base_models(self) -> list[pb.BaseModel]:
        answer = await ask_control_plane(self._registry.ListBaseModels, pb.ListBaseModelsRequest())
        return list(answer.base_models)

    def _base(self, base: pb.BaseModel) -> dict[str, Any]:
        return {
            **_model(base.name, self._started_at, root=base.name, parent=None),
            "max_model_len": base.max_context_tokens,
        }


def _alias(alias: pb.Alias, adapter: pb.Adapter) -> dict[str, Any]:
    """Of several targets the heaviest, and what they are."""
    model = _version(alias.name, adapter, alias.version or adapter.current_version)
    if alias.targets:
        model["targets"] = [
            {"adapter": each.adapter, "version": each.version or None, "weight": each.weight}
            for each in alias.targets
        ]
    return model


def _version(name: str, adapter: pb.Adapter, number: int) -> dict[str, Any]:
    for version in adapter.versions:
        if version.version == number:
            return _model(
                name,
                version.created_at.ToSeconds(),
                root=version.source,
                parent=version.base_model,
            )
    return _model(name, 0, root=adapter.name, parent=None)


def _model(name: str, created: int, *, root: str, parent: str | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "chorale",
        "root": root,
        "parent": parent,
    }
