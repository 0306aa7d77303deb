"""From a GenerateRequest's input to prompt token ids, with every bound checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from chorale.errors import InvalidArgumentError
from chorale.v1 import inference_pb2
from dataplane.rpc.chat import messages_of
from dataplane.text.tokenizer import Tokenizer, TooManyTokensError


def prompt_token_ids(
    request: inference_pb2.GenerateRequest,
    tokenizer: Tokenizer,
    *,
    max_context_tokens: int,
    vocab_size: int,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """The prompt as the model sees it: 1 to max_context_tokens - 1 token ids below vocab_size.

    tools: of a chat, as chat templates take them.

    Blocks while it tokenizes: call it in a worker thread.
    Raises: InvalidArgumentError; FailedPreconditionError when there is no chat template, or none
    that shows tools.
    """
    field = request.WhichOneof("input")
    if field is None:
        raise InvalidArgumentError(
            "PROMPT_MISSING",
            "input is not set; give one of prompt, prompt_token_ids and chat",
            metadata={"field": "input"},
        )
    max_tokens = max_context_tokens - 1
    try:
        if field == "prompt":
            text = request.prompt
            ids = tokenizer.encode(text, max_tokens=max_tokens) if text else []
        elif field == "prompt_token_ids":
            ids = _within(request.prompt_token_ids.ids, max_tokens)
        else:
            ids = _chat_token_ids(request.chat, tokenizer, max_tokens, tools)
    except TooManyTokensError as error:
        raise _too_long(field, error.length, max_context_tokens) from None
    if not ids:
        raise InvalidArgumentError(
            "PROMPT_EMPTY",
            f"{field} holds no token; give it one at least",
            metadata={"field": field},
        )
    check_token_ids(field, ids, vocab_size)
    return ids


def check_token_ids(field: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raises: InvalidArgumentError naming the first id outside the vocabulary."""
    if ids and max(ids) >= vocab_size:
        index = next(index for index, token_id in enumerate(ids) if token_id >= vocab_size)
        raise InvalidArgumentError(
            "TOKEN_OUT_OF_VOCABULARY",
            f"{field}: token {index} has the id {ids[index]}; "
            f"the base model's ids go from 0 to {vocab_size - 1}",
            metadata={
                "field": field,
                "index": str(index),
                "token_id": str(ids[index]),
                "vocab_size": str(vocab_size),
            },
        )


def _within(ids: Sequence[int], max_tokens: int) -> list[int]:
    if len(ids) > max_tokens:
        raise TooManyTokensError(f"{len(ids)} tokens")
    return list(ids)


def _chat_token_ids(
    chat: inference_pb2.Chat,
    tokenizer: Tokenizer,
    max_tokens: int,
    tools: Sequence[Mapping[str, Any]],
) -> list[int]:
    # A message takes a token at least, so that no more than these can fit: checked here as the
    # template's time grows with them.
    if len(chat.messages) > max_tokens:
        raise TooManyTokensError(f"{len(chat.messages)} messages")
    if not chat.messages:
        return []
    return tokenizer.encode_chat(messages_of(chat), max_tokens=max_tokens, tools=tools)


def _too_long(field: str, length: str, max_context_tokens: int) -> InvalidArgumentError:
    return InvalidArgumentError(
        "PROMPT_TOO_LONG",
        f"{field} has {length}; the base model's context has {max_context_tokens} tokens, one of "
        f"which must be left to generate: shorten it to {max_context_tokens - 1} tokens at most",
        metadata={
            "field": field,
            "length": length,
            "max_context_tokens": str(max_context_tokens),
        },
    )
