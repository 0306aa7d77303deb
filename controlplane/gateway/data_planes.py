"""Where a model's base model is served, for what needs no place there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from chorale.errors import InvalidArgumentError, NotFoundError, UnavailableError
from chorale.v1 import adapter_registry_pb2 as registry_pb
from chorale.v1 import fleet_pb2 as fleet_pb
from chorale.v1.adapter_registry_pb2_grpc import AdapterRegistryServiceStub
from chorale.v1.fleet_pb2_grpc import FleetServiceStub
from controlplane.gateway.upstream import ask_control_plane

_FRESH_S = 1.0


class Place(NamedTuple):
    """A live data plane. endpoint: HOST:PORT."""

    data_plane_id: str
    endpoint: str
    base_model: str


class DataPlanes:
    """The control plane's list, asked for at most once a second however many want it."""

    def __init__(
        self, control_plane: grpc.aio.Channel, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fleet: Any = FleetServiceStub(control_plane)
        self._registry: Any = AdapterRegistryServiceStub(control_plane)
        self._clock = clock
        self._turn = asyncio.Lock()
        self._fresh_until_s = 0.0
        self._places: list[Place] = []

    async def serving(self, model: str) -> list[Place]:
        """At least one, for a base model, an adapter, `name@version` or an alias; empty is the base
        model, if there is one only.

        Raises: NotFoundError (MODEL_NOT_FOUND), InvalidArgumentError (MODEL_REQUIRED),
        UnavailableError (NO_DATA_PLANE and the control plane's), other ChoraleErrors.
        """
        places = await self._live()
        served = sorted({place.base_model for place in places})
        if not model and len(served) > 1:
            raise InvalidArgumentError(
                "MODEL_REQUIRED",
                f"model is empty, and {len(served)} base models are served: name one of "
                f"{', '.join(served[:10])}",
                metadata={"field": "model"},
            )
        base = model
        if model and model not in served:
            base = await self._base_of(model)
        found = [place for place in places if not model or place.base_model == base]
        if not found:
            raise UnavailableError(
                "NO_DATA_PLANE",
                f"no live data plane serves {repr(base) if base else 'any base model'}: wait for "
                "one to join or recover",
                metadata={"base_model": base},
                retry_after_s=1.0,
            )
        return found

    async def _live(self) -> list[Place]:
        async with self._turn:
            if self._clock() >= self._fresh_until_s:
                request = fleet_pb.ListDataPlanesRequest(without_residency=True)
                listed = await ask_control_plane(self._fleet.ListDataPlanes, request)
                self._places = [
                    Place(plane.data_plane_id, plane.endpoint, plane.base_model)
                    for plane in listed.data_planes
                ]
                self._fresh_until_s = self._clock() + _FRESH_S
            return self._places

    async def _base_of(self, model: str) -> str:
        """The base model that `model` is bound to, or is itself when it is served no more."""
        request = registry_pb.GetAdapterRequest(name=model)
        try:
            found = await ask_control_plane(self._registry.GetAdapter, request)
        except (NotFoundError, InvalidArgumentError) as error:
            known = await ask_control_plane(
                self._registry.ListBaseModels, registry_pb.ListBaseModelsRequest()
            )
            if any(base.name == model for base in known.base_models):
                return model
            raise NotFoundError(
                "MODEL_NOT_FOUND",
                f"model {model[:200]!r} is no adapter, version, alias or base model here",
                metadata={"model": model[:200]},
            ) from error
        versions = {version.version: version for version in found.adapter.versions}
        return versions[found.resolved_version].base_model
