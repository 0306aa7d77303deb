"""How long a request's prompt is, as far as that can be told without a tokenizer."""

from __future__ import annotations

from chorale.v1 import admission_pb2
from chorale.v1 import inference_pb2 as pb


def prompt_size(request: pb.GenerateRequest) -> admission_pb2.PromptSize:
    """Tokens where the request has them, else characters; a request without input has neither."""
    size = admission_pb2.PromptSize(num_generated_tokens=len(request.generated_token_ids))
    match request.WhichOneof("input"):
        case "prompt_token_ids":
            size.num_tokens = len(request.prompt_token_ids.ids)
        case "prompt":
            size.num_characters = len(request.prompt)
        case "chat":
            size.num_characters = sum(map(len, request.chat.tools)) + sum(
                len(each.content) + sum(len(call.arguments) for call in each.tool_calls)
                for each in request.chat.messages
            )
        case _:
            pass
    return size
