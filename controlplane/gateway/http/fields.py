"""A JSON object to a model of it: every field is used, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from controlplane.gateway.http.failures import bad_request, quoted

Model = TypeVar("Model", bound=BaseModel)
Test = Callable[[object], bool]


def nothing(_: object) -> bool:
    """The test that no value passes."""
    return False


def one_of(*values: object) -> Test:
    """The test that `values` pass."""
    return lambda value: value in values


def parse_fields(
    kind: type[Model], value: Mapping[str, Any], not_served: Mapping[str, Test]
) -> Model:
    """not_served: fields that mean something that is not served here, each with the test for the
    values that ask for nothing, as null always does.

    Raises: ApiError 400 naming the first field at fault.
    """
    kept: dict[str, Any] = {}
    for name, given in value.items():
        if name in kind.model_fields:
            kept[name] = given
        elif name not in not_served:
            raise bad_request(
                quoted(name)[1:-1],
                f"unknown parameter {quoted(name)}; leave it out",
                "unknown_parameter",
            )
        elif given is not None and not not_served[name](given):
            raise bad_request(
                name,
                f"{name}={quoted(given)} is not supported here; leave it out",
                "unsupported_parameter",
            )
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        raise _first_of(error) from error


def _first_of(error: ValidationError) -> Exception:
    first = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(str(part) for part in first["loc"][:3])
    param = str(first["loc"][0])[:100]
    if first["type"] == "missing":
        return bad_request(param, f"parameter {param} is missing", "missing_required_parameter")
    return bad_request(param, f"{path[:200]}={quoted(first['input'])}: {first['msg'][:200]}")
