"""`chorale pool`: who owns which pages of a data plane's pool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controlplane.cli import output, views
from controlplane.cli.data_plane import asked
from controlplane.cli.errors import NoSuchDataPlaneError
from controlplane.cli.failures import reported
from controlplane.cli.fleet_token import find_token
from controlplane.cli.options import DEFAULT_ADDRESS, Address, AsJson, Timeout
from controlplane.cli.pool_map import SIGNS, PoolMap, pool_map
from controlplane.cli.supervisor.data_dir import FLEET_TOKEN_NAME, default_data_dir

if TYPE_CHECKING:
    from chorale.client import Client

_STYLES = {".": "dim", "#": "yellow", "+": "green", "?": "red"}


def pool(
    data_plane: Annotated[
        str, typer.Option(help="Id of the data plane; left out, all of them.")
    ] = "",
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="CHORALE_DATA_DIR",
            help="Of the `chorale up` whose fleet token to use when CHORALE_FLEET_TOKEN is not "
            "set. Left out: $XDG_STATE_HOME/chorale.",
        ),
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 10.0,
    as_json: AsJson = False,
) -> None:
    """Show the owner of each page of the pool: adapters, sequences, cached prefixes.

    The data planes are found through the gateway and asked directly; the fleet token goes to the
    addresses that the gateway names.
    """
    with reported(as_json=as_json, address=address):
        from chorale.client import Client

        token = find_token((data_dir or default_data_dir()) / FLEET_TOKEN_NAME)
        names: dict[str, str] = {}
        with Client(address, timeout=timeout) as client:
            planes = _endpoints(client, data_plane)
            if not as_json:
                names = _adapter_names(client)
        pools: list[dict[str, Any]] = []
        for plane, endpoint in planes.items():
            with asked(plane, endpoint), Client(endpoint, timeout=timeout) as client:
                pools.append(views.pool(client.pool(token)))
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
