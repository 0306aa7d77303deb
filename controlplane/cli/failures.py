"""How every command fails: one line on stderr, an object on stdout with --json, an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, cast

import typer

from controlplane.cli.errors import CliError, PartFailedError
from controlplane.cli.exit_codes import ExitCode, of_grpc_code
from controlplane.cli.output import print_json, sanitized
from controlplane.errors import (
    ControlPlaneError,
    DataDirLockedError,
    OptionError,
    RedisMissingError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from chorale.errors import ChoraleError

TRACEBACK_VARIABLE = "CHORALE_TRACEBACK"


@contextmanager
def reported(
    *, as_json: bool = False, address: str | None = None, with_traceback: bool = False
) -> Generator[None]:
    """Turns what fails inside into the report, and typer.Exit with the code that goes with it.

    address: the server that the command calls; named when nothing answers there.
    with_traceback: show where faults of our own come from, as $CHORALE_TRACEBACK does.
    """
    try:
        yield
    except ControlPlaneError as error:
        _show_last_lines(error)
        _fail(_code_of(error), error.reason, error.message, error.metadata, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        if _is_chorale_error(error):
            known = cast("ChoraleError", error)
            reason, message = known.reason, known.message
            if reason == "UNTYPED" and address is not None:  # of the call, not of a server
                reason, message = _of_the_call(known, address)
            code = of_grpc_code(known.code.name)
            _fail(code, reason, message, known.metadata, known.retry_after_s, as_json=as_json)
        if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
            # Python keeps the bytes of arguments that are no UTF-8 as lone surrogates.
            message = f"an argument or a variable is not UTF-8: {error.object[:200]!a}"
            _fail(ExitCode.INVALID, "ARGUMENT_NOT_UTF8", message, {}, as_json=as_json)
        if with_traceback or os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        message = f"{type(error).__name__}: {error} (a fault of Chorale's own; "
        message += f"{TRACEBACK_VARIABLE}=1 shows where)"
        _fail(ExitCode.INTERNAL, "INTERNAL", message, {}, as_json=as_json)


def _fail(
    code: ExitCode,
    reason: str,
    message: str,
    metadata: dict[str, str],
    retry_after_s: float | None = None,
    *,
    as_json: bool,
) -> NoReturn:
    if as_json:
        failure: dict[str, Any] = {"reason": reason, "message": message, "metadata": metadata}
        failure |= {"retry_after_s": retry_after_s, "exit_code": int(code)}
        print_json({"error": failure})
    hint = "" if retry_after_s is None else f" (try again in {retry_after_s:g} s)"
    print(f"error: {reason}: {sanitized(message, one_line=True)}{hint}", file=sys.stderr)
    raise typer.Exit(code)


def _show_last_lines(error: ControlPlaneError) -> None:
    if isinstance(error, PartFailedError):
        for line in error.last_lines:
            print(f"  | {line}", file=sys.stderr)


def _code_of(error: ControlPlaneError) -> ExitCode:
    match error:
        case CliError():
            return error.exit_code
        case DataDirLockedError() | RedisMissingError():
            return ExitCode.BLOCKED
        case OptionError():
            return ExitCode.INVALID
        case StoreUnavailableError():
            return ExitCode.UNAVAILABLE
        case _:
            return ExitCode.INTERNAL


def _is_chorale_error(error: Exception) -> bool:
    """Without importing chorale.errors, and so grpc, where no call was made."""
    errors = sys.modules.get("chorale.errors")
    return errors is not None and isinstance(error, errors.ChoraleError)


def _of_the_call(error: ChoraleError, address: str) -> tuple[str, str]:
    """Reason and message for a failure that no server of ours gave a reason for."""
    match error.code.name:
        case "UNAVAILABLE" if address.startswith("fleet://"):
            from chorale.fleet_tls import way_out

            hint = way_out(error.message)
            return "NO_SERVER", f"nothing serves at {address} ({error.message[:200]}){hint}"
        case "UNAVAILABLE" if "certificate_verify_failed" in error.message.lower():
            return "CERTIFICATE_NOT_TRUSTED", (
                f"the certificate of {address} is by no trusted authority, or for another name: "
                "name its authority with `chorale --tls-ca-file FILE …`"
            )
        case "UNAVAILABLE":
            return "NO_SERVER", (
                f"nothing serves at {address} ({error.message[:200]}); start it with `chorale up`, "
                "or name another address with --address"
            )
        case "DEADLINE_EXCEEDED":
            return "DEADLINE_EXCEEDED", (
                f"{address} gave no answer in the time that --timeout allows"
            )
        case _:
            return error.reason, error.message
