"""The supervisor: starts all parts at once, keeps them alive, stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from chorale import fleet_tls_files
from controlplane.cli import fleet_token
from controlplane.cli.output import sanitized
from controlplane.cli.supervisor import plan
from controlplane.cli.supervisor.data_dir import DataDir
from controlplane.cli.supervisor.keeper import Keeper, Report
from controlplane.cli.supervisor.plan import UpOptions
from controlplane.cli.supervisor.process import Part
from controlplane.cli.supervisor.readiness import wait_until_serving
from controlplane.cli.supervisor.store import keep_store
from controlplane.store.embedded import EmbeddedRedis

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Watched = Callable[[], Coroutine[Any, Any, None]]

# Beside what parts take to drain. With the 2 s that this is by default, and the store's
# milliseconds, less than the 5 s in which `up` promises to be gone.
STOP_GRACE_S = {plan.EDGE: 1.0, plan.CORE: 0.9}
_LONG_DRAIN_S = 5.0


def up(options: UpOptions) -> None:
    """Serves until SIGINT or SIGTERM; prints `ready grpc=HOST:PORT http=HOST:PORT` once it can.

    Raises: ControlPlaneError, with everything stopped, when it cannot start or a part keeps dying.
    """
    for number in SIGNALS:  # until the event loop handles them
        signal.signal(number, _exit)
    with DataDir(options.data_dir) as data_dir, data_dir.usable(), ExitStack() as stack:
        addresses = plan.claim_addresses(options)
        data_planes = plan.data_planes(options, addresses, data_dir.disk_cache)
        redis_url, watched = options.redis_url, list[Watched]()
        if redis_url is None:
            redis = stack.enter_context(EmbeddedRedis(data_dir.path))
            redis_url = redis.url
            watched.append(partial(keep_store, redis, report))
        # The slowest to start comes first; each part waits by itself for those that it needs.
        parts = [*data_planes.values(), plan.control_plane(options, addresses, redis_url)]
        parts.append(plan.gateway(options, addresses))
        token = fleet_token.token_to_serve_with()
        # Between the parts is this machine's loopback: the variables are about another fleet.
        environment = {fleet_token.VARIABLE: token, **dict.fromkeys(fleet_tls_files.VARIABLES, "")}
        fleet_token.write_token(data_dir.fleet_token, token)

        async def announce() -> None:
            await wait_until_serving(
                addresses.control_plane,
                addresses.http_from_here,
                list(data_planes),
                tls=options.tls_cert_file is not None,
            )
            print(f"ready grpc={addresses.grpc} http={addresses.http}", flush=True)

        try:
            asyncio.run(
                Supervisor(parts, environment, data_dir.logs, report).run(announce, *watched)
            )
        finally:
            for number in SIGNALS:  # nothing must disturb the milliseconds of the store's stop
                signal.signal(number, signal.SIG_IGN)


class Supervisor:
    """Runs parts as one.

    environment: what all parts get beside their own. logs: the directory of their logs.
    """

    def __init__(
        self, parts: Sequence[Part], environment: Mapping[str, str], logs: Path, report: Report
    ) -> None:
        self._report = report
        self._keepers = [Keeper(part, environment, logs, report) for part in parts]
        self._stop = asyncio.Event()

    async def run(self, announce: Callable[[], Awaitable[None]], *watched: Watched) -> None:
        """Returns, with all parts stopped, after SIGINT or SIGTERM; a second one hurries them.

        announce: called once, when every part has said that it is ready.
        watched: run beside the parts; they end only by raising.
        Raises: PartFailedError, with all parts stopped, when one cannot be kept running; what
        `watched` raise.
        """
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        keeping = {asyncio.create_task(keeper.run()): keeper for keeper in self._keepers}
        stopping = asyncio.create_task(self._stop.wait())
        beside: list[asyncio.Task[Any]] = [
            stopping,
            asyncio.create_task(self._announce(announce)),
            *(asyncio.create_task(one()) for one in watched),
        ]
        try:
            waited: set[asyncio.Task[Any]] = {*keeping, *beside}
            while not stopping.done():
                done, waited = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await _stop_all(keeping)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            for keeper in self._keepers:
                keeper.kill()
        elif (drain_s := max(keeper.part.drain_s for keeper in self._keepers)) > _LONG_DRAIN_S:
            self._report(
                f"stopping; requests have up to {drain_s:g} s to finish, another signal ends them"
            )
        self._stop.set()

    async def _announce(self, announce: Callable[[], Awaitable[None]]) -> None:
        for keeper in self._keepers:
            await keeper.ready.wait()
        await announce()


async def _stop_all(keeping: Mapping[asyncio.Task[None], Keeper]) -> None:
    for phase, grace_s in sorted(STOP_GRACE_S.items()):
        members = {task: k for task, k in keeping.items() if k.part.stop_phase == phase}
        for keeper in members.values():
            keeper.stop()
        if members:
            drain_s = max(keeper.part.drain_s for keeper in members.values())
            _, late = await asyncio.wait(members, timeout=drain_s + grace_s)
            for task in late:
                members[task].kill()
            await asyncio.gather(*members, return_exceptions=True)


def _exit(number: int, frame: object) -> None:
    raise SystemExit(0)


def report(line: str) -> None:
    """On stderr. Whose reader may be gone, or disk full: the parts go on."""
    with contextlib.suppress(OSError):
        print(f"chorale up: {sanitized(line, one_line=True)}", file=sys.stderr, flush=True)
