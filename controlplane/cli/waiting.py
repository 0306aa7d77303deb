"""Waiting, with a live line for each data plane, until an adapter is where it was sent."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from controlplane.cli import output
from controlplane.cli.data_plane import asked
from controlplane.cli.errors import BlockedError, DataPlaneSilentError, NotInTimeError

if TYPE_CHECKING:
    from chorale.client import Client
    from chorale.v1 import admin_pb2 as admin_pb
    from chorale.v1 import fleet_pb2 as fleet_pb

TierName = Literal["host", "pool"]
Show = Callable[[str, "Look"], None]

_ASK_S = 0.3
_NO_ROOM_AFTER_S = 5.0  # a directive is heard, and a loaded adapter placed, well within


@dataclass(frozen=True, slots=True)
class Look:
    """What one data plane says at one moment. state: for people. total_bytes: 0 is not known."""

    there: bool
    state: str
    received_bytes: int = 0
    total_bytes: int = 0
    bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Wish:
    adapter: str
    digest: str
    tier: TierName
    pinned: bool


def look(wish: Wish, answer: admin_pb.ListAdapterLoadsResponse, elapsed_s: float) -> Look:
    """elapsed_s: since the directive was sent; what ended before then says nothing.

    Raises: BlockedError when the data plane could not load it (its reason), or has no room for it
    (NO_ROOM). A pin goes on waiting: it is tried again.
    """
    (place,) = answer.places
    if place.in_pool or (wish.tier == "host" and place.in_host):
        return Look(True, "there")
    if answer.loading:
        load = answer.loading[0]
        return Look(False, load.state, load.received_bytes, load.total_bytes, load.bytes_per_s)
    if place.pin_waits_for:
        return Look(False, f"tried again: {place.pin_waits_for}")
    ended = [each for each in answer.loads if each.age_s < elapsed_s]
    if ended and ended[-1].reason and not wish.pinned:
        raise BlockedError(
            ended[-1].reason,
            f"{wish.adapter} could not be loaded on {answer.data_plane_id}: {ended[-1].message}",
            metadata={"data_plane_id": answer.data_plane_id, "adapter": wish.adapter},
        )
    had_time = elapsed_s > _NO_ROOM_AFTER_S and (not ended or ended[-1].age_s > _NO_ROOM_AFTER_S)
    if had_time and (ended or place.in_host) and not wish.pinned:
        raise BlockedError(
            "NO_ROOM",
            f"{wish.adapter} was loaded on {answer.data_plane_id}, but the {wish.tier} tier holds "
            "nothing that is worth less: give it more room, or pin the adapter",
            metadata={"data_plane_id": answer.data_plane_id, "adapter": wish.adapter},
        )
    return Look(False, "placing" if ended else "told")


def wish_for(client: Client, adapter: str, tier: TierName, pinned: bool) -> Wish:
    """adapter: `name@version`. Raises: ChoraleError."""
    found = client.adapters.get(adapter)
    number = found.resolved_version
    digest = next(each.digest for each in found.adapter.versions if each.version == number)
    return Wish(adapter, digest, tier, pinned)


def brought(client: Client, adapter: str, token: str, timeout_s: float, *, quiet: bool) -> str:
    """Has all data planes of its base model prefetch an adapter to host memory, and waits. Returns
    what to say. Raises: as `wait_until_there`."""
    from chorale.v1 import fleet_pb2 as pb

    told = client.direct_adapter(
        adapter, pb.ADAPTER_ACTION_PREFETCH, token, tier=pb.ADAPTER_TIER_HOST
    )
    planes = list(told.data_plane_ids)
    wish = wish_for(client, told.adapter, "host", pinned=False)
    seconds = wait_until_there(wish, client.data_planes(), planes, token, timeout_s, quiet=quiet)
    if not planes:
        return f"no data plane of its base model is live: {told.adapter} is nowhere yet"
    return sentence(wish, planes, seconds)


def wait_until_there(
    wish: Wish,
    live: Sequence[fleet_pb.DataPlane],
    told: Sequence[str],
    token: str,
    timeout_s: float,
    *,
    quiet: bool,
) -> float:
    """live: the data planes of the fleet. told: the ids of those to wait for; one that has left the
    fleet is not waited for. quiet: no live lines. Returns the seconds that it took.

    Raises: NotInTimeError (NOT_IN_TIME), BlockedError, ChoraleError.
    """
    from chorale.client import Client

    began_s = time.monotonic()
    endpoints = {
        plane.data_plane_id: plane.endpoint for plane in live if plane.data_plane_id in told
    }
    with ExitStack() as stack:
        clients: dict[str, Client] = {
            plane: stack.enter_context(Client(endpoint, timeout=max(timeout_s, 1.0)))
            for plane, endpoint in endpoints.items()
        }
        show = stack.enter_context(_shown(quiet))
        while clients:
            state = ""
            for plane, client in list(clients.items()):
                try:
                    with asked(plane, endpoints[plane]):
                        answer = client.adapter_loads(token, [wish.digest])
                except DataPlaneSilentError:  # its engine may be starting again
                    found = Look(False, "it does not answer")
                else:
                    found = look(wish, answer, time.monotonic() - began_s)
                show(plane, found)
                state = found.state
                if found.there:
                    del clients[plane]
            elapsed_s = time.monotonic() - began_s
            if clients and elapsed_s >= timeout_s:
                raise NotInTimeError(wish.adapter, sorted(clients), state, timeout_s)
            if clients:
                time.sleep(min(_ASK_S, timeout_s - elapsed_s))
    return time.monotonic() - began_s


def sentence(wish: Wish, planes: Sequence[str], seconds: float) -> str:
    where = {"host": "host memory", "pool": "the pool"}[wish.tier]
    shown = ", ".join(output.sanitized(each, one_line=True) for each in planes)
    return f"{wish.adapter} is in {where} of {shown} after {seconds:.1f} s"


@contextmanager
def _shown(quiet: bool) -> Generator[Show]:
    if quiet or not sys.stderr.isatty():
        yield lambda _plane, _look: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(plane: str, found: Look) -> None:
            if plane not in tasks:
                tasks[plane] = bars.add_task("", total=None, rate="")
            rate = f"{output.human_bytes(int(found.bytes_per_s))}/s" if found.bytes_per_s else ""
            text = output.sanitized(f"{plane} {found.state}", one_line=True)
            bars.update(
                tasks[plane],
                description=text,
                completed=found.received_bytes,
                total=found.total_bytes or None,
                rate=rate,
            )

        yield show
