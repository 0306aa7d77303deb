"""What the exit status of every `chorale` command means."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    INTERNAL = 1
    INVALID = 2
    NOT_FOUND = 3
    BLOCKED = 4
    UNAVAILABLE = 5
    INTERRUPTED = 130


EXPLAINED: Mapping[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.INTERNAL: "a fault of Chorale's own",
    ExitCode.INVALID: "usage, or an invalid argument",
    ExitCode.NOT_FOUND: "no such adapter, version, alias, model or file",
    ExitCode.BLOCKED: "not in the state this needs: exists, in use, mismatched, not permitted",
    ExitCode.UNAVAILABLE: "unavailable, no capacity, or out of time: trying later may help",
    ExitCode.INTERRUPTED: "interrupted",
}

_BY_GRPC_CODE: Mapping[str, ExitCode] = {
    "INVALID_ARGUMENT": ExitCode.INVALID,
    "NOT_FOUND": ExitCode.NOT_FOUND,
    "FAILED_PRECONDITION": ExitCode.BLOCKED,
    "ALREADY_EXISTS": ExitCode.BLOCKED,
    "UNAUTHENTICATED": ExitCode.BLOCKED,
    "PERMISSION_DENIED": ExitCode.BLOCKED,
    "RESOURCE_EXHAUSTED": ExitCode.UNAVAILABLE,
    "UNAVAILABLE": ExitCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": ExitCode.UNAVAILABLE,
    "CANCELLED": ExitCode.INTERRUPTED,
}


def of_grpc_code(name: str) -> ExitCode:
    """The exit code for a canonical gRPC code's name; INTERNAL for all that have none."""
    return _BY_GRPC_CODE.get(name, ExitCode.INTERNAL)


def help_text() -> str:
    """The table for --help; \\b keeps its lines apart."""
    rows = [f"{code.value:>5}  {EXPLAINED[code]}" for code in ExitCode]
    return "\n".join(["\b", "Exit codes:", *rows])
