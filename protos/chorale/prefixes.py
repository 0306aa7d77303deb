"""Hashes of a prompt's beginnings, by which admission finds where they were computed before.

Semantics:
    pieces  = 256 characters of a text, or 64 token ids, whole ones only; of a chat, its tools, then
              each message's role and content and its calls, in pieces of 256 characters, the last
              one as long as there are
    hash_i  = BLAKE2b over the kind of input, the request's cache_salt where it has one, and the
              pieces 1 … i, 8 bytes
    told    = those of `marks(number of pieces)`, of pieces 1 … 1024
A conversation's next turn has the pieces of the one before, up to the end of its last message. Two
prompts that have c pieces in common, and at most g more each, both tell a hash of at least
c - min(c / 4, 2 g / 3) of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from itertools import islice

from chorale.v1 import admission_pb2
from chorale.v1 import inference_pb2 as pb

MAX_PREFIXES = 64
"""As PromptPrefixes has it."""
PIECE_CHARACTERS = 256
PIECE_TOKENS = 64
MAX_PIECES = 1024
_MIN_SHARE = 2  # of a piece: shorter beginnings, as of a chat's first words, are not worth telling
_HASH_BYTES = 8


def prompt_prefixes(request: pb.GenerateRequest) -> admission_pb2.PromptPrefixes | None:
    """Of the request's input; None where that is too short to have any."""
    match request.WhichOneof("input"):
        case "prompt":
            kind, pieces = b"text", _text_pieces(request.prompt)
            least = PIECE_CHARACTERS
        case "prompt_token_ids":
            kind, pieces = b"ids", _id_pieces(request.prompt_token_ids)
            least = PIECE_TOKENS
        case "chat":
            kind, pieces = b"chat", _chat_pieces(request.chat)
            least = PIECE_CHARACTERS // _MIN_SHARE
        case _:
            return None
    found = admission_pb2.PromptPrefixes()
    cut = list(islice(pieces, MAX_PIECES))
    told = marks(len(cut))
    salt = _with_length(request.cache_salt) if request.cache_salt else b""
    running, length = blake2b(kind + salt, digest_size=_HASH_BYTES), 0
    for index, (piece, size) in enumerate(cut, 1):
        running.update(piece)
        length += size
        if index in told and length >= least:
            found.hashes.append(int.from_bytes(running.digest(), "little"))
            found.lengths.append(length)
    return found if found.hashes else None


@lru_cache(maxsize=MAX_PIECES + 1)
def marks(num_pieces: int) -> frozenset[int]:
    """Of 1 … num_pieces: four in each octave, and of the multiples of each power of two the last
    four."""
    found = {each for each in range(1, num_pieces + 1) if each % max(1, _octave(each) // 4) == 0}
    step = 1
    while step <= num_pieces:
        last = num_pieces - num_pieces % step
        found.update(each for each in range(last, last - 4 * step, -step) if each > 0)
        step *= 2
    return frozenset(found)


def _octave(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def _text_pieces(text: str) -> Iterator[tuple[bytes, int]]:
    """Pieces and their lengths, as the next two have them."""
    for start in range(0, len(text) - PIECE_CHARACTERS + 1, PIECE_CHARACTERS):
        yield text[start : start + PIECE_CHARACTERS].encode(), PIECE_CHARACTERS


def _id_pieces(tokens: pb.TokenIds) -> Iterator[tuple[bytes, int]]:
    packed = struct.Struct(f"<{PIECE_TOKENS}I")
    for start in range(0, len(tokens.ids) - PIECE_TOKENS + 1, PIECE_TOKENS):
        yield packed.pack(*tokens.ids[start : start + PIECE_TOKENS]), PIECE_TOKENS


def _chat_pieces(chat: pb.Chat) -> Iterator[tuple[bytes, int]]:
    for tool in chat.tools:  # templates show them first
        yield from _cut(_TOOL, (), tool)
    for message in chat.messages:
        of_tool = (message.tool_call_id, message.name)
        kind = _TOOL_MESSAGE if any(of_tool) else _MESSAGE
        yield from _cut(kind, (message.role, *(of_tool if any(of_tool) else ())), message.content)
        for call in message.tool_calls:
            yield from _cut(_CALL, (call.id, call.name), call.arguments)


# What a piece is of: 0 goes on with the one before.
_MESSAGE, _TOOL, _CALL, _TOOL_MESSAGE = range(1, 5)


def _cut(kind: int, heads: tuple[str, ...], text: str) -> Iterator[tuple[bytes, int]]:
    # Lengths go before texts, so that no text can imitate where another ends.
    head = b"".join(map(_with_length, heads))
    for start in range(0, max(1, len(text)), PIECE_CHARACTERS):
        piece = text[start : start + PIECE_CHARACTERS]
        yield bytes((0 if start else kind,)) + head + _with_length(piece), len(piece)
        head = b""


def _with_length(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data
