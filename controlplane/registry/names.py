"""What names look like: adapters, aliases, base models, and references to them."""

from __future__ import annotations

import re

from controlplane.errors import InvalidRequestError

MAX_NAME_CHARS = 128
MAX_VERSION = 2**32 - 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*", re.ASCII)
_VERSION = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
_SHOWN_CHARS = 200


def check_name(field: str, value: str) -> str:
    """`value`, when it can name an adapter, an alias or a base model.

    Raises: InvalidRequestError (NAME_INVALID).
    """
    if len(value) <= MAX_NAME_CHARS and _NAME.fullmatch(value):
        return value
    hint = ""
    if "@" in value:
        hint = "; '@' stands only in references to a version, as in 'name@3'"
    raise InvalidRequestError(
        "NAME_INVALID",
        f"{field} must be 1 to {MAX_NAME_CHARS} letters, digits, '.', '_', '-' or '/', beginning "
        f"with a letter or digit, not {value[:_SHOWN_CHARS]!r}{hint}",
        metadata={"field": field, "value": value[:_SHOWN_CHARS]},
    )


def is_odd(name: str) -> bool:
    """Whether a part between slashes is empty, "." or "..": clients and proxies rewrite URLs with
    such, so that it could not be asked for in one. Older versions took these names."""
    return not {"", ".", ".."}.isdisjoint(name.split("/"))


def odd_name(field: str, value: str) -> InvalidRequestError:
    return InvalidRequestError(
        "NAME_INVALID",
        f"{field} {value[:_SHOWN_CHARS]!r}: no part between slashes may be empty, '.' or '..'",
        metadata={"field": field, "value": value[:_SHOWN_CHARS]},
    )


def check_reference(field: str, value: str) -> str:
    """`value`, when it is a name, an alias or `name@version`.

    Raises: InvalidRequestError (NAME_INVALID, VERSION_INVALID).
    """
    name, at, version = value.partition("@")
    check_name(field, name if at else value)
    if at:
        check_version(field, int(version) if _VERSION.fullmatch(version) else 0)
    return value


def check_version(field: str, version: int) -> int:
    """Raises: InvalidRequestError (VERSION_INVALID) unless 1 to 2**32 - 1."""
    if 1 <= version <= MAX_VERSION:
        return version
    raise InvalidRequestError(
        "VERSION_INVALID",
        f"{field} must hold a version number: 1, 2, 3 … without leading zeros",
        metadata={"field": field},
    )
