"""A control plane with adapters to merge, and the calls that its tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chorale.v1 import adapter_registry_pb2 as pb
from tests.helpers.adapters import make_adapter_dir
from tests.helpers.control_plane import ControlPlane


@pytest.fixture
async def voices(plane: ControlPlane, tmp_path: Path) -> ControlPlane:
    """`a` of rank 4, and `b` of rank 6 with versions 1 and 2 (current); alias `live` of `b`."""
    await plane.join(max_running=4)
    await plane.register("a", make_adapter_dir(tmp_path / "a", seed=1))
    for seed in (2, 3):
        made = make_adapter_dir(
            tmp_path / f"b{seed}", seed=seed, rank=6, targets=("v_proj", "up_proj")
        )
        await plane.register("b", made)
    alias = pb.Alias(name="live", adapter="b")
    await plane.registry.SetAlias(pb.SetAliasRequest(alias=alias))
    return plane


async def merge(plane: ControlPlane, name: str, weights: dict[str, float], **fields: Any) -> Any:
    components = [pb.MergeComponent(adapter=key, weight=value) for key, value in weights.items()]
    return await plane.registry.MergeAdapters(
        pb.MergeAdaptersRequest(name=name, components=components, **fields)
    )


async def get(plane: ControlPlane, name: str) -> pb.GetAdapterResponse:
    return await plane.registry.GetAdapter(pb.GetAdapterRequest(name=name))


async def remove(plane: ControlPlane, name: str, version: int = 0) -> None:
    await plane.registry.RemoveAdapter(pb.RemoveAdapterRequest(name=name, version=version))
