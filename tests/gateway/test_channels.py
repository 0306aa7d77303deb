from __future__ import annotations

import grpc
import pytest

from controlplane.gateway.channels import ChannelCache


async def test_a_channel_is_used_again() -> None:
    cache = ChannelCache()
    async with cache.lease("127.0.0.1:1") as first, cache.lease("127.0.0.1:1") as second:
        assert first is second
    async with cache.lease("127.0.0.1:1") as third:
        assert third is first
    await cache.close()


async def test_longest_unused_is_closed_first_and_used_ones_never() -> None:
    cache = ChannelCache(max_idle=2)
    async with cache.lease("127.0.0.1:9") as used:
        channels = {}
        for port in (1, 2, 1, 3):
            async with cache.lease(f"127.0.0.1:{port}") as channel:
                channels[port] = channel
        assert len(cache) == 3
        assert channels[2].get_state() is grpc.ChannelConnectivity.SHUTDOWN
        for channel in (channels[1], channels[3], used):
            assert channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN
    assert len(cache) == 2
    assert channels[1].get_state() is grpc.ChannelConnectivity.SHUTDOWN
    await cache.close()
    assert len(cache) == 0


async def test_close_closes_channels_in_use() -> None:
    cache = ChannelCache()
    async with cache.lease("127.0.0.1:1") as channel:
        await cache.close()
        with pytest.raises(grpc.aio.UsageError):
            await channel.unary_unary("/x/y")(b"")
    assert len(cache) == 0
