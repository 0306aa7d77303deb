"""The tokens of a text, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from chorale.errors import InvalidArgumentError
from chorale.v1 import inference_pb2 as pb

MAX_TEXT_CHARACTERS = 1 << 20
"""As TokenizeRequest.text allows."""


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A token and the part of the text that it stands for.

    piece: as the vocabulary has it. start, stop: the part is `text[start:stop]`; tokens that share
    a character have both its span, and one that was added (BOS) has none: 0 and 0.
    """

    token_id: int
    piece: str
    start: int
    stop: int


def tokenize_request(text: str, model: str, add_special_tokens: bool) -> pb.TokenizeRequest:
    """Raises: InvalidArgumentError for an argument that does not fit."""
    try:
        if not isinstance(text, str):  # None would be taken for an empty text
            raise TypeError("text is no text")
        return pb.TokenizeRequest(text=text, model=model, add_special_tokens=add_special_tokens)
    except (TypeError, ValueError) as error:
        message = f"an argument is invalid: {error}"
        raise InvalidArgumentError("ARGUMENT_INVALID", message) from error


def token_spans(response: pb.TokenizeResponse) -> list[TokenSpan]:
    return [
        TokenSpan(token.token_id, token.piece, token.start, token.stop) for token in response.tokens
    ]
