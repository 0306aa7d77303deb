"""`chorale adapters`: what an operator does with the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controlplane.cli import (
    add_all,
    backup,
    directives,
    merging,
    output,
    registered,
    views,
    waiting,
    whereabouts,
)
from controlplane.cli.aliases import aliases, meaning
from controlplane.cli.connection import connected
from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.fleet_token import find_token
from controlplane.cli.labels import Labels, labels_of
from controlplane.cli.options import (
    DEFAULT_ADDRESS,
    AdapterName,
    AdapterReference,
    Address,
    AsJson,
    DataDir,
    KeepCurrent,
    New,
    SourceToken,
    Timeout,
    Wait,
    WaitTimeout,
)
from controlplane.cli.uploading import shown_progress, uploaded
from controlplane.registry.names import MAX_VERSION

if TYPE_CHECKING:
    from chorale.v1 import adapter_registry_pb2 as registry_pb

adapters = typer.Typer(no_args_is_help=True, help="Register, promote, roll back, remove adapters.")
adapters.add_typer(aliases, name="alias")
add_all.install(adapters)
backup.install(adapters)
directives.install(adapters)
merging.install(adapters)


@adapters.command("add")
def add(
    name: AdapterName,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A PEFT directory that the servers see, or a file://, hf://, https://, s3:// or "
            "gs:// URI of one, blob:DIGEST, or the merge: URI of a merge.",
        ),
    ],
    upload: Annotated[
        bool, typer.Option("--upload", help="Send the directory SOURCE of this machine.")
    ] = False,
    source_token: SourceToken = "",
    base_model: Annotated[
        str, typer.Option(help="Base model to bind to; else the one that the adapter names.")
    ] = "",
    label: Labels = None,
    new: New = False,
    keep_current: KeepCurrent = False,
    wait: Wait = False,
    wait_timeout: WaitTimeout = 600.0,
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 600.0,
    as_json: AsJson = False,
) -> None:
    """Register the adapter at SOURCE as the newest, and current, version of NAME.

    With --keep-current only NAME@VERSION and aliases lead to it until it is promoted.
    With --wait it is also brought to host memory of all data planes that serve its base model.
    """
    with connected(address, timeout, as_json=as_json) as client:
        labels = labels_of(label or [])  # wrong ones are told before a long upload begins
        token = find_token(data_dir) if wait else ""
        registry = client.adapters
        with shown_progress() as on_progress:
            response = registry.register(
                name,
                uploaded(registry, source, on_progress) if upload else _absolute(source),
                base_model=base_model,
                labels=labels,
                source_token=source_token,
                must_be_new=new,
                keep_current=keep_current,
                on_progress=on_progress,
            )
        if not as_json:
            print(registered.sentence(response), flush=True)
        if wait:
            version = f"{name}@{response.version.version}"
            said = waiting.brought(client, version, token, wait_timeout, quiet=as_json)
            if not as_json:
                print(said)
        if as_json:
            output.print_json(views.registered(response))


@adapters.command("list")
def list_(
    base_model: Annotated[str, typer.Option(help="Only adapters of this base model.")] = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """List all adapters with their current version."""
    with connected(address, timeout, as_json=as_json) as client:
        found = list(client.adapters.list(base_model=base_model))
        if as_json:
            output.print_json({"adapters": [views.adapter(one) for one in found]})
            return
        output.print_table(
            f"{len(found)} adapters",
            ("name", "version", "rank", "targets", "size", "base model", "aliases", "digest"),
            [_row(one) for one in found],
            right=("version", "rank", "size"),
            empty="no adapters; add one with `chorale adapters add NAME SOURCE`",
        )


@adapters.command("show")
def show(
    name: AdapterReference,
    data_dir: DataDir = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Show one adapter with all its versions and aliases, and where they are now.

    What loads are under way, and what loading took, is asked of the data planes themselves, when
    there is a fleet token.
    """
    with connected(address, timeout, as_json=as_json) as client:
        response = client.adapters.get(name)
        planes = client.data_planes()
        digests = {version.digest: version.version for version in response.adapter.versions}
        where = whereabouts.residency(planes, digests)
        inside = whereabouts.inside(planes, digests, data_dir, timeout)
        if as_json:
            view: dict[str, Any] = {"resolved_version": response.resolved_version}
            view |= {"adapter": views.adapter(response.adapter), "residency": where, **inside}
            output.print_json(view)
        else:
            _print_adapter(response.adapter)
            whereabouts.print_whereabouts(where, inside, len(planes))


@adapters.command("promote")
def promote(
    name: AdapterName,
    version: Annotated[
        int,
        typer.Argument(
            metavar="VERSION", min=1, max=MAX_VERSION, help="The version to make current."
        ),
    ],
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Make an existing VERSION the one that the bare NAME means."""
    with connected(address, timeout, as_json=as_json) as client:
        _tell_current(client.adapters.promote(name, version), as_json)


@adapters.command("rollback")
def rollback(
    name: AdapterName,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Make the version current again that was so before the present one."""
    with connected(address, timeout, as_json=as_json) as client:
        _tell_current(client.adapters.rollback(name), as_json)


@adapters.command("remove")
def remove(
    name: AdapterName,
    version: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_VERSION, help="One version, not the current; 0 removes the adapter."
        ),
    ] = 0,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Remove an adapter with its versions and aliases, or one version. Running requests finish."""
    with connected(address, timeout, as_json=as_json) as client:
        client.adapters.remove(name, version=version)
        if as_json:
            output.print_json({"removed": name, "version": version})
        else:
            print(f"removed {name}@{version}" if version else f"removed {name}")


@adapters.command("verify")
def verify(
    name: AdapterReference,
    source_token: SourceToken = "",
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """Read the source again; exit 4 when it is not any more what was registered."""
    with connected(address, timeout, as_json=as_json) as client:
        found = client.adapters.verify(name, source_token=source_token)
        if as_json:
            view = {"matches": found.matches, "registered_digest": found.registered_digest}
            output.print_json({**view, "found_digest": found.found_digest})
        elif found.matches:
            print(f"{name} is unchanged: {found.registered_digest}")
        else:
            print(f"{name} has changed: {found.registered_digest} is now {found.found_digest}")
        if not found.matches:
            raise typer.Exit(ExitCode.BLOCKED)


def _absolute(source: str) -> str:
    """The server has another working directory: what exists here is sent as an absolute path."""
    if not source or "://" in source or not Path(source).exists():
        return source  # an empty one is refused there; here it would be the current directory
    return str(Path(source).absolute())


def _tell_current(adapter: registry_pb.Adapter, as_json: bool) -> None:
    if as_json:
        output.print_json({"adapter": views.adapter(adapter)})
    else:
        print(f"{adapter.name} is now version {adapter.current_version}")


def _row(adapter: registry_pb.Adapter) -> list[str]:
    current = next(one for one in adapter.versions if one.version == adapter.current_version)
    return [
        adapter.name,
        str(current.version),
        str(current.rank),
        " ".join(module.rpartition(".")[2] for module in current.target_modules),
        output.human_bytes(current.size_bytes),
        current.base_model,
        " ".join(alias.name for alias in adapter.aliases),
        current.digest[:12],
    ]


def _alias_target(alias: registry_pb.Alias) -> str:
    if alias.targets:
        return meaning(alias)
    return str(alias.version or "the current version")


def _origin(version: registry_pb.AdapterVersion) -> list[tuple[str, str]]:
    if version.HasField("merge"):
        return merging.described(version.merge)
    return [("source", f"{version.source}{' (private)' if version.private else ''}")]


def _activation(version: registry_pb.AdapterVersion) -> list[tuple[str, str]]:
    if not version.invocation_tokens:
        return []
    tokens = " ".join(map(str, version.invocation_tokens))
    return [("activated", f"from the last tokens {tokens} of the prompt on")]


def _print_adapter(adapter: registry_pb.Adapter) -> None:
    print(f"{adapter.name}, current version {adapter.current_version}")
    for alias in adapter.aliases:
        print(f"alias {alias.name} -> {_alias_target(alias)}")
    for version in adapter.versions:
        print()
        output.print_fields(
            [
                ("version", str(version.version)),
                ("digest", version.digest),
                *_origin(version),
                ("base model", version.base_model),
                ("rank", str(version.rank)),
                ("targets", " ".join(version.target_modules)),
                *_activation(version),
                ("size", output.human_bytes(version.size_bytes)),
                ("created", version.created_at.ToJsonString()),
                *((f"label {key}", value) for key, value in sorted(version.labels.items())),
            ]
        )
