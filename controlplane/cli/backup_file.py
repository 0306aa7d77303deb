"""What a file of `chorale adapters export` holds: a line that says what it is, then one for each
adapter and each alias."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from controlplane.cli.errors import NoSuchFileError, UsageError
from controlplane.registry.names import MAX_VERSION

if TYPE_CHECKING:
    from chorale.v1 import adapter_registry_pb2 as registry_pb

FORMAT, FORMAT_VERSION = "chorale-adapters", 1
MAX_LINE_BYTES = 16 << 20

# What the API's fields can hold; what of it is good is for the control plane to say.
Version = Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_VERSION)]


class _Line(msgspec.Struct, forbid_unknown_fields=True, tag_field="kind", kw_only=True):
    pass


class HeadLine(_Line, tag="file"):
    format: str
    version: Number


class VersionEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    version: Version
    digest: str
    source: str
    base_model: str
    labels: dict[str, str] = {}
    private: bool = False


class AdapterLine(_Line, tag="adapter"):
    """versions: by their numbers, ascending."""

    name: str
    current: Version
    versions: Annotated[list[VersionEntry], msgspec.Meta(min_length=1)]


class TargetEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    adapter: str
    version: Number = 0
    weight: Number = 1


class AliasLine(_Line, tag="alias"):
    name: str
    targets: Annotated[list[TargetEntry], msgspec.Meta(min_length=1)]


_decoder = msgspec.json.Decoder(HeadLine | AdapterLine | AliasLine)


def written(adapters: Iterable[registry_pb.Adapter]) -> Iterator[bytes]:
    """The file's lines; an alias of several adapters once."""
    yield _encoded(HeadLine(format=FORMAT, version=FORMAT_VERSION))
    for adapter in adapters:
        yield _encoded(_adapter_line(adapter))
        for alias in adapter.aliases:
            if alias.adapter == adapter.name:
                yield _encoded(_alias_line(alias))


def read_lines(file: Path) -> tuple[list[AdapterLine], list[AliasLine]]:
    """All of it, so that nothing is imported from a file that is cut off or foreign.

    Raises: NoSuchFileError, UsageError (FILE_MALFORMED) naming the line.
    """
    adapters: list[AdapterLine] = []
    aliases: list[AliasLine] = []
    has_head = False
    for number, text in enumerate(_lines(file), 1):
        if not text.endswith(b"\n"):
            raise _malformed(number, "is too long" if len(text) >= MAX_LINE_BYTES else "is cut off")
        try:
            line = _decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _malformed(number, f"is none of an export: {str(error)[:200]}") from error
        if isinstance(line, HeadLine):
            if (line.format, line.version) != (FORMAT, FORMAT_VERSION) or number != 1:
                raise _malformed(number, f"is of {line.format[:80]!r} version {line.version}")
            has_head = True
        elif not has_head:
            raise _malformed(1, "does not say that this is an export")
        elif isinstance(line, AdapterLine):
            line.versions.sort(key=lambda entry: entry.version)
            _check_once(number, [entry.version for entry in line.versions], "version")
            adapters.append(line)
        else:
            _check_once(number, [(each.adapter, each.version) for each in line.targets], "target")
            aliases.append(line)
    if not has_head:
        raise _malformed(1, "is missing")
    names = [line.name for line in (*adapters, *aliases)]
    if len(set(names)) < len(names):
        raise UsageError("FILE_MALFORMED", "a name stands there twice; export anew")
    return adapters, aliases


def _lines(file: Path) -> Iterator[bytes]:
    try:
        opened = sys.stdin.buffer if str(file) == "-" else file.open("rb")
        with opened:
            while line := opened.readline(MAX_LINE_BYTES):
                yield line
    except OSError as error:
        raise NoSuchFileError(
            "FILE_UNREADABLE",
            f"cannot read {str(file)[:200]!r}: {error.strerror}",
            metadata={"path": str(file)},
        ) from error


def _adapter_line(adapter: registry_pb.Adapter) -> AdapterLine:
    return AdapterLine(
        name=adapter.name,
        current=adapter.current_version,
        versions=[
            VersionEntry(
                version=each.version,
                digest=each.digest,
                source=each.source,
                base_model=each.base_model,
                labels=dict(sorted(each.labels.items())),
                private=each.private,
            )
            for each in sorted(adapter.versions, key=lambda version: version.version)
        ],
    )


def _alias_line(alias: registry_pb.Alias) -> AliasLine:
    several = [
        TargetEntry(adapter=each.adapter, version=each.version, weight=each.weight)
        for each in alias.targets
    ]
    single = TargetEntry(adapter=alias.adapter, version=alias.version)
    return AliasLine(name=alias.name, targets=several or [single])


def _check_once(number: int, entries: Sequence[Hashable], what: str) -> None:
    if len(set(entries)) < len(entries):
        raise _malformed(number, f"names a {what} twice")


def _encoded(line: HeadLine | AdapterLine | AliasLine) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _malformed(number: int, problem: str) -> UsageError:
    return UsageError("FILE_MALFORMED", f"line {number} {problem}", metadata={"line": str(number)})
