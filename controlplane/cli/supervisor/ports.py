"""Ports to serve on."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Collection

from chorale.address import bare_host, host_port
from controlplane.cli.errors import BlockedError, PortInUseError

# Below the range that kernels take outgoing connections' ports from, so that a port that is free
# when looked at is most likely free when the child binds it.
FREE_PORTS = range(20_000, 32_000)
TRIES = 200


def claim(option: str, host: str, port: int, taken: Collection[int] = ()) -> int:
    """`port` itself when nothing listens there; a free one for 0, none of `taken`.

    Raises: PortInUseError, or BlockedError when the port cannot be bound for another reason.
    """
    if port == 0:
        return free_port(host, taken)
    try:
        _bind(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(option, host, port) from error
        raise BlockedError(
            "CANNOT_LISTEN",
            f"{option} {port}: cannot listen on {host_port(host, port)} ({error.strerror}); give "
            f"another {option}, or as --host an address of this machine",
            metadata={"option": option, "host": host, "port": str(port)},
        ) from error
    return port


def free_port(host: str, taken: Collection[int] = ()) -> int:
    for port in random.sample(FREE_PORTS, TRIES):
        if port in taken:
            continue
        try:
            _bind(host, port)
        except OSError:
            continue
        return port
    raise BlockedError(
        "NO_FREE_PORT",
        f"none of {TRIES} ports tried on {host} can be bound; is {host!r} an address of this "
        "machine? (--host)",
        metadata={"host": host},
    )


def _bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((bare_host(host), port))
        # Linux lets two sockets with SO_REUSEADDR share a port until one of them listens.
        probe.listen(1)
