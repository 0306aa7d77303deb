"""`chorale pool`: who owns which pages of a data plane's pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from controlplane.cli import output, views
from controlplane.cli.connection import connected
from controlplane.cli.data_plane import connected_to
from controlplane.cli.errors import NoSuchDataPlaneError
from controlplane.cli.fleet_token import find_token
from controlplane.cli.options import DEFAULT_ADDRESS, Address, AsJson, DataDir, Timeout
from controlplane.cli.pool_map import SIGNS, PoolMap, pool_map

if TYPE_CHECKING:
    from chorale.client import Client

_STYLES = {".": "dim", "#": "yellow", "+": "green", "?": "red"}


def pool(
    data_plane: Annotated[
        str, typer.Option(help="Id of the data plane; left out, all of them.")
    ] = "",
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Show the owner of each page of the pool: adapters, sequences, cached prefixes.

    The data planes are found through the gateway and asked directly; the fleet token goes to the
    addresses that the gateway names.
    """
    with connected(address, timeout, as_json=as_json) as client:
        token = find_token(data_dir)
        planes = _endpoints(client, data_plane)
        names = {} if as_json else _adapter_names(client)
        pools: list[dict[str, Any]] = []
        for plane, endpoint in planes.items():
            with connected_to(plane, endpoint, timeout) as its_client:
                pools.append(views.pool(its_client.pool(token)))
    if as_json:
        output.print_json({"pools": pools})
        return
    if not pools:
        print("no live data planes")
    for view in pools:
        _show(view, pool_map(view), names)


def _endpoints(client: Client, data_plane: str) -> dict[str, str]:
    """By data plane id."""
    planes = {plane.data_plane_id: plane.endpoint for plane in client.data_planes()}
    if not data_plane:
        return planes
    if data_plane not in planes:
        raise NoSuchDataPlaneError(data_plane, list(planes))
    return {data_plane: planes[data_plane]}


def _adapter_names(client: Client) -> dict[str, str]:
    """`name@version` by digest."""
    return {
        version.digest: f"{adapter.name}@{version.version}"
        for adapter in client.adapters.list()
        for version in adapter.versions
    }


def _show(view: dict[str, Any], shown: PoolMap, names: dict[str, str]) -> None:
    size = output.human_bytes(view["num_pages"] * view["page_bytes"])
    print(
        f"{output.sanitized(view['data_plane_id'], one_line=True)}: {view['num_pages']} pages of "
        f"{output.human_bytes(view['page_bytes'])}, {size}; {view['num_used_pages']} in use"
    )
    output.print_styled(shown.rows, _STYLES, default="cyan")
    kinds = [f"{sign} {kind} {_count(shown, kind)}" for kind, sign in SIGNS.items()]
    kinds.insert(1, f"A-Z adapters {_count(shown, 'adapter')}")
    each = "page" if shown.pages_per_cell == 1 else f"{shown.pages_per_cell} pages"
    print(f"each character {each}: {', '.join(kinds)}")
    output.print_table(
        "adapters in the pool",
        ("", "adapter", "digest", "pages", "runs"),
        [
            [h.letter, names.get(h.digest, "?"), h.digest[:12], str(h.num_pages), str(h.num_runs)]
            for h in shown.holdings
        ],
        right=("pages", "runs"),
        empty="no adapters in the pool",
    )
    problem = output.sanitized(view["problem"], one_line=True)
    print(f"integrity: {'BROKEN: ' + problem if problem else 'every page has exactly one owner'}")


def _count(shown: PoolMap, kind: str) -> str:
    pages, owners = shown.pages.get(kind, 0), shown.owners.get(kind, 0)
    return str(pages) if kind == "free" or not owners else f"{pages} of {owners}"


def install(app: typer.Typer) -> None:
    app.command("pool")(pool)
