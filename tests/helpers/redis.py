"""A real Redis for tests: one server for the session, emptied for each test."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from controlplane.store.embedded import EmbeddedRedis


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """URL of an empty database."""
    assert send(redis_server, "FLUSHALL") == b"+OK\r\n"
    return redis_server.url


def send(server: EmbeddedRedis, command: str, *, before: str = "") -> bytes:
    """One inline command over a connection of its own, after `before`."""
    path = Path(server.url.removeprefix("unix://").partition("?")[0])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        with connection.makefile("rb") as replies:
            if before:
                connection.sendall(f"{before}\r\n".encode())
                _reply(replies)
            connection.sendall(f"{command}\r\n".encode())
            return _reply(replies)


def _reply(replies: BinaryIO) -> bytes:
    """One whole reply, in however many pieces it comes."""
    line = replies.readline()
    kind, rest = line[:1], line[1:].strip()
    if kind == b"$" and int(rest) >= 0:
        return line + replies.read(int(rest) + 2)
    if kind == b"*":
        return line + b"".join(_reply(replies) for _ in range(int(rest)))
    return line
