"""How long a prompt is, about, before anyone has tokenized it."""

from __future__ import annotations

from collections.abc import Iterable

from chorale.v1 import inference_pb2 as pb

# Of ordinary text in ordinary vocabularies.
_CHARACTERS_PER_TOKEN = 4


def prompt_tokens_estimate(request: pb.GenerateRequest) -> int:
    """Tokens in the prompt and what was generated, about."""
    match request.WhichOneof("input"):
        case "prompt":
            num_prompt_tokens = _tokens_in((request.prompt,))
        case "prompt_token_ids":
            num_prompt_tokens = len(request.prompt_token_ids.ids)
        case "chat":
            num_prompt_tokens = _tokens_in(m.content for m in request.chat.messages)
        case _:
            num_prompt_tokens = 0
    return num_prompt_tokens + len(request.generated_token_ids)


def _tokens_in(texts: Iterable[str]) -> int:
    return sum(len(text) // _CHARACTERS_PER_TOKEN + 1 for text in texts)
