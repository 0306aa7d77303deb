"""How a constraint is refused."""

from __future__ import annotations

from chorale.errors import InvalidArgumentError

_MAX_SAID = 300


def refused(field: str, what: str) -> InvalidArgumentError:
    """field: of sampling.constraint, or `tools…` of the chat. what: that is wrong, and the way
    out."""
    return told("CONSTRAINT_INVALID", field, what)


def too_complex(field: str, what: str) -> InvalidArgumentError:
    return told("CONSTRAINT_TOO_COMPLEX", field, f"{what}; make it simpler")


def shortened(text: str) -> str:
    """On one line, of bounded length."""
    text = " ".join(text.split())
    return text if len(text) <= _MAX_SAID else f"{text[:_MAX_SAID]}…"


def told(reason: str, field: str, what: str) -> InvalidArgumentError:
    """As the trial found it."""
    if field.startswith("tools"):
        path = f"chat.{field}"
    else:
        path = f"sampling.constraint.{field}" if field else "sampling.constraint"
    return InvalidArgumentError(reason, f"{path} {what}", metadata={"field": path})
