"""The connection to Redis: runs named scripts, and turns every failure into a typed error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError, ResponseError

from controlplane.errors import OptionError, StoreUnavailableError
from controlplane.store import keys
from controlplane.store.slots import Slots

_MAX_WAITING = 16_384  # what a gateway lets in, many times over
_LUA = Path(__file__).parent / "lua"
_EVERYWHERE = ("_shared", "_demand", "_quota", "_running")
# A reply with one of these words is a state of the server, not a fault in a script.
_STATES = (
    "LOADING",
    "READONLY",
    "OOM",
    "MISCONF",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "NOREPLICAS",
    "BUSY",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    # What a user may not is told in other words where a script is refused it (Redis 7; before).
    "ACL failure in script",
    "The user executing the script can't",
)


@cache
def script_text(name: str) -> str:
    """Key names, the functions that scripts share, and lua/NAME.lua."""
    files = [(_LUA / f"{each}.lua").read_text() for each in (*_EVERYWHERE, name)]
    return "\n".join((keys.lua_locals(), *files))


class Store:
    """Scripts against one Redis (or Valkey) URL. Each `run` is one round trip.

    Commands are never sent twice by themselves: a rollback that may have happened is reported as
    unavailable rather than repeated. More calls than connections wait for a turn.

    password: for a URL that names none.
    """

    def __init__(
        self,
        url: str,
        *,
        password: str = "",
        timeout_s: float = 2.0,
        max_connections: int = 32,
    ) -> None:
        try:
            pool = cast("Any", ConnectionPool).from_url(
                url,
                password=password or None,  # what the URL says goes before it
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                decode_responses=True,
                # By RESP3 redis-py 8 waits for notices of maintenance, and to keep them it does not
                # look any more whether Redis has closed a connection before it is used again.
                protocol=2,
            )
        except ValueError as error:
            raise OptionError("redis_url", f"not a Redis URL: {error}") from error
        self._redis: Redis = Redis.from_pool(pool)
        self._scripts: dict[str, AsyncScript] = {}
        self._slots = Slots(max_connections, patience_s=timeout_s, max_waiting=_MAX_WAITING)

    async def run(self, name: str, *args: str | int) -> Any:
        """The reply of script `name`. Raises: StoreUnavailableError, StoreBusyError."""
        script = self._scripts.get(name)
        if script is None:
            script = self._redis.register_script(script_text(name))
            self._scripts[name] = script
        try:
            async with self._slots.turn():
                # One declared key routes the script to its slot in a cluster.
                return await script(keys=[keys.ADAPTERS], args=args)
        except (RedisError, OSError) as error:
            raise _translated(error) from error

    async def ping(self) -> None:
        """Raises: StoreUnavailableError."""
        try:
            await cast("Any", self._redis).ping()
        except (RedisError, OSError) as error:
            raise _translated(error) from error

    async def wait_until_up(self, timeout_s: float) -> None:
        """Pings until Redis answers. Raises: StoreUnavailableError after `timeout_s`."""
        clock = asyncio.get_running_loop().time
        end = clock() + timeout_s
        while True:
            try:
                return await self.ping()
            except StoreUnavailableError:
                if clock() >= end:
                    raise
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()


def as_dict(flat: Sequence[str]) -> dict[str, str]:
    """A hash as scripts return it: field, value, field, value …"""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _translated(error: RedisError | OSError) -> Exception:
    if type(error) is ResponseError and not any(word in str(error) for word in _STATES):
        return error
    return StoreUnavailableError(f"{type(error).__name__}: {str(error)[:200]}")
