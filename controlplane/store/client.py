"""The connection to Redis: runs named scripts, and turns every failure into a typed error."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError, ResponseError

from controlplane.errors import OptionError, StoreUnavailableError
from controlplane.store import keys
from controlplane.store.password import PasswordFile
from controlplane.store.slots import Slots

_MAX_WAITING = 16_384  # what a gateway lets in, many times over
_LUA = Path(__file__).parent / "lua"
_RENEWED_S = 1.0
_CHECK_KEPT_MS = 60_000
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
    "DENIED",  # by protected mode
    "Script killed",
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

    A server that answers but refuses (a replica that was the primary, a full disk) is as good as
    one that is away, and may be the wrong one by now: its connections are given up, so that later
    calls ask anew where the URL leads.

    password_file: for a URL that names no password; read for each connection.
    """

    def __init__(
        self,
        url: str,
        *,
        password_file: Path | None = None,
        timeout_s: float = 2.0,
        max_connections: int = 32,
    ) -> None:
        self._settings: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "decode_responses": True,
            # By RESP3 redis-py 8 waits for notices of maintenance, and to keep them it does not
            # look any more whether Redis has closed a connection before it is used again.
            "protocol": 2,
            **_named(url, password_file),
        }
        self._redis = self._connect()
        self._renewed_s = -math.inf
        self._scripts: dict[str, AsyncScript] = {}
        self._slots = Slots(max_connections, patience_s=timeout_s, max_waiting=_MAX_WAITING)

    async def run(self, name: str, *args: str | int) -> Any:
        """The reply of script `name`. Raises: StoreUnavailableError, StoreBusyError."""
        script = self._scripts.get(name)
        if script is None:
            script = self._redis.register_script(script_text(name))
            self._scripts[name] = script
        async with self._slots.turn(), self._asked() as redis:
            # One declared key routes the script to its slot in a cluster.
            return await script(keys=[keys.ADAPTERS], args=args, client=redis)

    async def ping(self) -> None:
        """Raises: StoreUnavailableError."""
        async with self._asked() as redis:
            await cast("Any", redis).ping()

    async def check_writable(self) -> None:
        """Raises: StoreUnavailableError when Redis takes no writes, or does not answer."""
        async with self._asked() as redis:
            await cast("Any", redis).set(keys.LAST_CHECK, 1, px=_CHECK_KEPT_MS)

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

    def _connect(self) -> Redis:
        # A Retry of its own, as a pool changes it.
        return Redis.from_pool(ConnectionPool(retry=Retry(NoBackoff(), 0), **self._settings))

    @asynccontextmanager
    async def _asked(self) -> AsyncGenerator[Redis]:
        """Around one call."""
        redis = self._redis
        try:
            yield redis
        except (RedisError, OSError) as error:
            raise self._translated(error) from error
        finally:
            if redis is not self._redis:
                await redis.connection_pool.disconnect(inuse_connections=False)

    def _translated(self, error: RedisError | OSError) -> Exception:
        if type(error) is ResponseError and not any(word in str(error) for word in _STATES):
            return error
        now_s = asyncio.get_running_loop().time()
        # Not for each call of an outage that lasts.
        if isinstance(error, ResponseError) and now_s - self._renewed_s >= _RENEWED_S:
            self._renewed_s = now_s
            self._redis = self._connect()
        return StoreUnavailableError(f"{type(error).__name__}: {str(error)[:200]}")


def _named(url: str, password_file: Path | None) -> dict[str, Any]:
    """What a pool is to know of the URL. Raises: OptionError."""
    try:
        named: dict[str, Any] = dict(parse_url(url))
    except ValueError as error:
        raise OptionError("redis_url", f"not a Redis URL: {error}") from error
    if password_file is not None and not named.get("password"):
        user = named.pop("username", "")
        named["credential_provider"] = PasswordFile(password_file, user)
    return named


def as_dict(flat: Sequence[str]) -> dict[str, str]:
    """A hash as scripts return it: field, value, field, value …"""
    return dict(zip(flat[::2], flat[1::2], strict=True))
