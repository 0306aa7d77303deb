"""`chorale adapters prefetch | pin | unpin | unload`: directives to data planes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from controlplane.cli import output, waiting
from controlplane.cli.connection import connected
from controlplane.cli.fleet_token import find_token
from controlplane.cli.options import (
    DEFAULT_ADDRESS,
    AdapterReference,
    Address,
    AsJson,
    DataDir,
    Timeout,
    Wait,
    WaitTimeout,
)

Action = Literal["PREFETCH", "PIN", "UNPIN", "UNLOAD"]
TierName = Literal["host", "pool"]
Tier = Annotated[TierName, typer.Option(help="Host memory, or the device's pool as well.")]
OneDataPlane = Annotated[
    str, typer.Option(help="Id of one data plane; left out, all that serve its base model.")
]


def prefetch(
    name: AdapterReference,
    tier: Tier = "host",
    data_plane: OneDataPlane = "",
    wait: Wait = False,
    wait_timeout: WaitTimeout = 600.0,
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Bring an adapter nearer before it is asked for, if it is worth the room it takes there."""
    wait_s = wait_timeout if wait else None
    _direct(
        name,
        "PREFETCH",
        data_dir,
        address,
        timeout,
        as_json,
        tier=tier,
        plane=data_plane,
        wait_s=wait_s,
    )


def pin(
    name: AdapterReference,
    tier: Tier = "host",
    wait: Wait = False,
    wait_timeout: WaitTimeout = 600.0,
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Bring an adapter to a tier of every data plane and keep it there, until `unpin`, `unload` or
    `remove`. Pinned adapters take at most half of a pool; one that finds no room is tried again."""
    wait_s = wait_timeout if wait else None
    _direct(name, "PIN", data_dir, address, timeout, as_json, tier=tier, wait_s=wait_s)


def unpin(
    name: AdapterReference,
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Let a pinned adapter be evicted again."""
    _direct(name, "UNPIN", data_dir, address, timeout, as_json)


def unload(
    name: AdapterReference,
    within: Annotated[
        float, typer.Option(min=0.0, max=3600.0, help="Seconds that running requests may go on.")
    ] = 30.0,
    data_plane: OneDataPlane = "",
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Free an adapter's memory: at once when nobody uses it, else after the last token. Disk keeps
    it, and a later request loads it again."""
    _direct(name, "UNLOAD", data_dir, address, timeout, as_json, plane=data_plane, within_s=within)


def _direct(
    name: str,
    action: Action,
    data_dir: Path | None,
    address: str,
    timeout: float,
    as_json: bool,
    *,
    tier: TierName | None = None,
    plane: str = "",
    within_s: float | None = None,
    wait_s: float | None = None,
) -> None:
    with connected(address, timeout, as_json=as_json) as client:
        from chorale.v1 import fleet_pb2 as pb

        token = find_token(data_dir)
        actions: dict[Action, pb.AdapterAction] = {
            "PREFETCH": pb.ADAPTER_ACTION_PREFETCH,
            "PIN": pb.ADAPTER_ACTION_PIN,
            "UNPIN": pb.ADAPTER_ACTION_UNPIN,
            "UNLOAD": pb.ADAPTER_ACTION_UNLOAD,
        }
        tiers = {
            None: pb.ADAPTER_TIER_UNSPECIFIED,
            "host": pb.ADAPTER_TIER_HOST,
            "pool": pb.ADAPTER_TIER_POOL,
        }
        told = client.direct_adapter(
            name,
            actions[action],
            token,
            tier=tiers[tier],
            within_s=within_s,
            data_plane_id=plane,
        )
        planes = list(told.data_plane_ids)
        view: dict[str, Any] = {"adapter": told.adapter, "action": action.lower()}
        view["data_planes"] = planes
        if not as_json:
            shown = ", ".join(output.sanitized(each, one_line=True) for each in planes)
            told_whom = shown or "no data plane, as none is live"
            print(f"{action.lower()} {told.adapter}: told {told_whom}", flush=True)
        if wait_s is not None:
            wish = waiting.wish_for(client, told.adapter, tier or "host", action == "PIN")
            seconds = waiting.wait_until_there(
                wish, client.data_planes(), planes, token, wait_s, quiet=as_json
            )
            view["waited_s"] = round(seconds, 3)
            if planes and not as_json:
                print(waiting.sentence(wish, planes, seconds))
    if as_json:
        output.print_json(view)


def install(app: typer.Typer) -> None:
    for command in (prefetch, pin, unpin, unload):
        app.command(command.__name__)(command)
