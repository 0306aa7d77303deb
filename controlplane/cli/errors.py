"""What the command line itself can fail with, beside the control plane's StartError.

    ControlPlaneError
    └── CliError                 a reason, a message and the exit code
        ├── UsageError           an argument that cannot be meant
        ├── NoSuchFileError      a local path that is not there
        ├── NoSuchDataPlaneError no live data plane has this id
        ├── DataPlaneSilentError a data plane does not answer where it said that it would
        ├── BlockedError         the machine is not in the state that the command needs
        │   └── PortInUseError   another process listens where `up` is to serve
        ├── NotInTimeError       an adapter was not brought where it was sent within the time
        ├── TargetUnusableError  what `bench` is to measure is not there, or not what it says
        └── PartFailedError      a part of `chorale up` keeps dying, or refuses its configuration

Calls to servers fail with `chorale.errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chorale.address import host_port
from controlplane.cli.exit_codes import ExitCode
from controlplane.errors import ControlPlaneError


class CliError(ControlPlaneError):
    exit_code: ExitCode = ExitCode.INTERNAL


class UsageError(CliError):
    exit_code = ExitCode.INVALID


class NoSuchFileError(CliError):
    exit_code = ExitCode.NOT_FOUND


class NoSuchDataPlaneError(CliError):
    exit_code = ExitCode.NOT_FOUND

    def __init__(self, data_plane_id: str, live: Sequence[str]) -> None:
        shown = ", ".join(live[:10]) or "none"
        super().__init__(
            "DATA_PLANE_NOT_FOUND",
            f"--data-plane {data_plane_id[:128]}: no live data plane has this id; live are {shown}",
            metadata={"data_plane_id": data_plane_id[:128]},
        )


class DataPlaneSilentError(CliError):
    """why: of the failed call, for people."""

    exit_code = ExitCode.UNAVAILABLE

    def __init__(self, data_plane_id: str, endpoint: str, why: str) -> None:
        super().__init__(
            "DATA_PLANE_SILENT",
            f"data plane {data_plane_id} does not answer at {endpoint} ({why}): it may be "
            "starting or gone, or out of this machine's reach",
            metadata={"data_plane_id": data_plane_id, "endpoint": endpoint},
        )


class BlockedError(CliError):
    exit_code = ExitCode.BLOCKED


class NotInTimeError(CliError):
    exit_code = ExitCode.UNAVAILABLE

    def __init__(self, adapter: str, planes: list[str], state: str, timeout_s: float) -> None:
        super().__init__(
            "NOT_IN_TIME",
            f"{adapter} is not there on {', '.join(planes)} after {timeout_s:g} s ({state}); it "
            "goes on: look with `chorale adapters show`, or wait longer with --wait-timeout",
            metadata={"adapter": adapter, "data_plane_ids": " ".join(planes), "state": state},
        )


class PortInUseError(BlockedError):
    def __init__(self, option: str, host: str, port: int) -> None:
        super().__init__(
            "PORT_IN_USE",
            f"{option} {port}: another process listens on {host_port(host, port)}; stop it, or "
            f"give another {option} (0 picks a free one)",
            metadata={"option": option, "host": host, "port": str(port)},
        )


class TargetUnusableError(CliError):
    exit_code = ExitCode.UNAVAILABLE


class PartFailedError(CliError):
    """`exit_status` is the process's own: negative is the signal that ended it.

    last_lines: the end of its log.
    """

    def __init__(
        self, name: str, exit_status: int, why: str, log_path: Path, last_lines: Sequence[str]
    ) -> None:
        super().__init__(
            "PART_FAILED",
            f"{name} {why}; its log is {log_path}",
            metadata={"part": name, "exit_status": str(exit_status), "log": str(log_path)},
        )
        self.exit_status = exit_status
        self.last_lines = tuple(last_lines)
        if exit_status == ExitCode.INVALID:  # it could not start as it was asked to
            self.exit_code = ExitCode.INVALID
