"""What the process that tries constraints out says, and how: frames of four bytes' length and
msgpack. Whoever asks it does without llguidance."""

from __future__ import annotations

import struct
from typing import BinaryIO

import msgspec

_LENGTH = struct.Struct("<I")


class Verdict(msgspec.Struct, frozen=True):
    """reason: "" for a grammar that can be followed. cpu_s: that finding out took."""

    reason: str = ""
    message: str = ""
    cpu_s: float = 0.0


def read_frame(stream: BinaryIO) -> bytes | None:
    """None at the end."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    data = stream.read(size)
    return data if len(data) == size else None


def write_frame(stream: BinaryIO, data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()
