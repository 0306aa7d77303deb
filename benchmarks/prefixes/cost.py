"""What prefixes cost the control plane and its Redis, beside admissions that tell none."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import redis

from chorale.prefixes import prompt_prefixes
from chorale.v1 import inference_pb2 as pb
from controlplane.admission.admission import Admission
from controlplane.admission.prefixes import NO_PREFIXES, PrefixKey, ToldPrefixes
from controlplane.admission.reservations import Reservations
from controlplane.fleet.fleet import Fleet
from controlplane.fleet.model import Load, Residency
from controlplane.fleet.outlook import Outlook
from controlplane.fleet.ticket_keys import TicketKeys
from controlplane.placement.expectation import RequestNeeds
from controlplane.placement.placement import PlacementPolicy
from controlplane.registry.model import BaseModelRecord
from controlplane.store.client import Store
from controlplane.store.embedded import EmbeddedRedis

_LENGTHS = {"no prefixes": 0, "4,096 characters": 4096, "65,536 characters": 65_536}
_BLOCK = 200
_OUTLOOK = Outlook(max_batch_tokens=512, prefill_token_s=0.001, cached_for_s=60.0)


def measure(*, num_planes: int, num_blocks: int) -> list[dict[str, Any]]:
    """A line for each length of prompt; blocks of admissions take turns."""
    with (
        tempfile.TemporaryDirectory(prefix="chorale-bench-") as name,
        EmbeddedRedis(Path(name)) as server,
    ):
        return asyncio.run(_measure(server.url, num_planes, num_blocks))


async def _measure(url: str, num_planes: int, num_blocks: int) -> list[dict[str, Any]]:
    store, statistics_of = Store(url), redis.Redis.from_url(url)
    keys = TicketKeys(store)
    fleet = Fleet(store, keys, lease_s=600.0)
    await _join(fleet, num_planes)
    reservations = Reservations(store)
    reservations.start()
    policy = PlacementPolicy(lease_s=600.0)
    admission = Admission(
        store,
        keys,
        reservations,
        policy,
        cast("Any", None),
        PrefixKey("a token"),
        ticket_ttl_s=30.0,
        generations_hold_s=10.0,
    )
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in _LENGTHS}
    try:
        for block in range(num_blocks):
            for name, length in _LENGTHS.items():
                told = [_told(length, block * _BLOCK + at) for at in range(_BLOCK)]
                before_us, began_s = _script_us(statistics_of), time.perf_counter()
                for each in told:
                    needs = RequestNeeds(num_characters=length)
                    await admission.admit("", needs=needs, told=each)
                took_s = time.perf_counter() - began_s
                await asyncio.sleep(0.05)
                redis_us = _script_us(statistics_of) - before_us
                found[name].append((redis_us / _BLOCK, took_s * 1e6 / _BLOCK))
    finally:
        await reservations.stop()
        await store.close()
        statistics_of.close()
    return [_line(name, found[name], found["no prefixes"]) for name in _LENGTHS]


def _line(
    name: str, blocks: list[tuple[float, float]], without: list[tuple[float, float]]
) -> dict[str, Any]:
    length = _LENGTHS[name]
    return {
        "prompt": name,
        "num_hashes": len(_told(length, 0).hashes),
        "hashing_us": _hashing_us(length),
        "redis_us": statistics.median(each for each, _ in blocks),
        "admission_us": statistics.median(each for _, each in blocks),
        "admission_ratio": statistics.median(
            mine / other for (_, mine), (_, other) in zip(blocks, without, strict=True)
        ),
    }


async def _join(fleet: Fleet, num_planes: int) -> None:
    base = BaseModelRecord(
        name="base",
        fingerprint="f" * 64,
        num_layers=1,
        layer_modules=(),
        outer_modules=(),
        max_context_tokens=32_768,
        vocab_size=512,
    )
    for at in range(num_planes):
        name = f"plane-{at}"
        await fleet.join(name, 1, "127.0.0.1:7000", base)
        load = Load(max_running=64)
        await fleet.heartbeat(name, 1, load, Residency(), outlook=_OUTLOOK)


def _told(length: int, seed: int) -> ToldPrefixes:
    found = prompt_prefixes(_request(length, seed))
    return ToldPrefixes(found.hashes, found.lengths) if found else NO_PREFIXES


def _request(length: int, seed: int) -> pb.GenerateRequest:
    """A fourth of the prompt is everybody's."""
    return pb.GenerateRequest(prompt=("s" * (length // 4) + f"{seed:08}" * (length // 8))[:length])


def _hashing_us(length: int) -> float:
    request, began_s = _request(length, 0), time.perf_counter()
    for _ in range(100):
        prompt_prefixes(request)
    return (time.perf_counter() - began_s) * 1e4


def _script_us(client: redis.Redis) -> float:
    """That Redis spent in scripts since its start."""
    return cast("dict[str, Any]", client.info("commandstats"))["cmdstat_evalsha"]["usec"]
