"""LoRAX's POST /tokenize."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from chorale.token_spans import MAX_TEXT_CHARACTERS
from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.body import Bodies
from controlplane.gateway.http.disconnect import while_connected
from controlplane.gateway.http.fields import parse_fields
from controlplane.gateway.http.lorax import failing_as_lorax
from controlplane.gateway.http.serving import tracing_metadata
from controlplane.gateway.tokenizing import Tokenizing

_MANY = 1024
_encode = msgspec.json.Encoder().encode


class TokenizeBody(BaseModel):
    """`adapter_id` is ours: LoRAX serves one base model only."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
    add_special_tokens: bool | None = None
    adapter_id: Annotated[str, Field(max_length=512)] | None = None


class LoraxTokens:
    """The handler. Failures leave in LoRAX's shape."""

    def __init__(self, tokenizing: Tokenizing, bodies: Bodies, timeout_s: float) -> None:
        self._tokenizing = tokenizing
        self._bodies = bodies
        self._timeout_s = timeout_s

    async def tokenize(self, request: Request) -> Response:
        """A list of tokens."""
        return await failing_as_lorax(self._answer(request))

    async def _answer(self, request: Request) -> Response:
        body = parse_fields(TokenizeBody, await self._bodies.read_object(request), {})
        asked = pb.TokenizeRequest(
            text=body.inputs,
            model=body.adapter_id or "",
            add_special_tokens=body.add_special_tokens,
        )
        metadata = tracing_metadata(request.headers)
        asking = self._tokenizing.tokenize(asked, timeout_s=self._timeout_s, metadata=metadata)
        tokens = (await while_connected(request.receive, asking)).tokens
        # Streams go on meanwhile: a hundred thousand tokens take a good part of a second.
        shown = _shown(tokens) if len(tokens) <= _MANY else await asyncio.to_thread(_shown, tokens)
        return Response(shown, media_type="application/json")


def _shown(tokens: Sequence[pb.TokenSpan]) -> bytes:
    return b"[%b]" % b",".join(
        _encode(
            {
                "id": token.token_id,
                "text": token.piece,
                "start": token.start,
                "stop": token.stop,
            }
        )
        for token in tokens
    )
