"""`chorale up` hands options on: it takes what its parts take."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pytest
from typer.models import OptionInfo

from controlplane.cli.roles import control_plane, gateway
from controlplane.cli.up import up
from dataplane.main import data_plane


class Values(NamedTuple):
    choices: tuple[str, ...]
    most: float | None


def values_of(command: Callable[..., None]) -> dict[str, Values]:
    """By variable."""
    found: dict[str, Values] = {}
    for hint in get_type_hints(command, include_extras=True).values():
        kind, *notes = get_args(hint) or (hint,)
        for note in notes:
            if isinstance(note, OptionInfo) and isinstance(note.envvar, str):
                found[note.envvar] = Values(choices_of(kind), note.max)
    return found


def choices_of(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is Literal:
        return get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(each.value for each in kind)
    return ()


@pytest.mark.parametrize("part", [control_plane, gateway, data_plane])
def test_values(part: Callable[..., None]) -> None:
    of_up, of_part = values_of(up), values_of(part)
    shared = of_up.keys() & of_part.keys()
    assert len(shared) > 4
    assert {each: of_up[each] for each in shared} == {each: of_part[each] for each in shared}
    if part is data_plane:
        assert of_up["CHORALE_TOOL_CALL_FORMAT"].choices[0] == "auto"
        assert of_up["CHORALE_SPECULATIVE_TOKENS"].most == 8
