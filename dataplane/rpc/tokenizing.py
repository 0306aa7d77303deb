"""Tokenize of a data plane."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from chorale.errors import DeadlineExceededError, InvalidArgumentError, ResourceExhaustedError
from chorale.token_spans import MAX_TEXT_CHARACTERS
from chorale.v1 import inference_pb2 as pb
from dataplane.text.limits import MAX_SPANS, SHORT_CHARACTERS
from dataplane.text.tokenizer import Tokenizer, TooManyTokensError

# Telling tokens takes some times what finding them does: this much is done in less than 1 ms.
_SHORT_CHARACTERS = SHORT_CHARACTERS // 4
_MAX_CHARACTERS = 4 * MAX_TEXT_CHARACTERS


class Tokenizing:
    """Cuts texts. All but short ones have a thread of their own, so that no generation's prompt
    waits behind them. As callers need no ticket, what is there or waits is bounded, together:
    `_MAX_CHARACTERS`, some seconds' work."""

    def __init__(self, tokenizer: Tokenizer, *, max_context_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = min(max_context_tokens, MAX_SPANS)
        self._num_characters = 0
        self._thread = ThreadPoolExecutor(1, "tokenize-alone")

    async def tokenize(
        self, request: pb.TokenizeRequest, deadline_s: float | None
    ) -> pb.TokenizeResponse:
        """deadline_s: on the event loop's clock.

        Raises: InvalidArgumentError, ResourceExhaustedError, DeadlineExceededError.
        """
        length = len(request.text)
        if length > MAX_TEXT_CHARACTERS:
            raise _too_long(f"{length} characters", f"{MAX_TEXT_CHARACTERS} characters")
        if length <= _SHORT_CHARACTERS:
            return self._cut(request)
        if self._num_characters + length > _MAX_CHARACTERS:
            raise ResourceExhaustedError(
                "TOO_MANY_TEXTS",
                f"this data plane has {self._num_characters} characters to cut into tokens and "
                f"takes {_MAX_CHARACTERS} at once; try again later",
                metadata={"limit": str(_MAX_CHARACTERS)},
                retry_after_s=1.0,
            )
        self._num_characters += length
        try:
            async with asyncio.timeout_at(deadline_s):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._thread, self._cut, request)
        except TimeoutError:
            raise DeadlineExceededError(
                "DEADLINE_EXCEEDED", "the call's deadline passed; allow it more time"
            ) from None
        finally:
            self._num_characters -= length

    def close(self) -> None:
        """Lets the thread go; texts that wait for it are dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _cut(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        add = request.add_special_tokens if request.HasField("add_special_tokens") else True
        try:
            spans = self._tokenizer.spans(
                request.text, max_tokens=self._max_tokens, add_special_tokens=add
            )
        except TooManyTokensError as error:
            raise _too_long(error.length, f"{self._max_tokens} tokens") from None
        return pb.TokenizeResponse(tokens=(pb.TokenSpan(**span._asdict()) for span in spans))


def _too_long(length: str, limit: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "TEXT_TOO_LONG",
        f"text has {length}; at most {limit} are taken here: send it in parts",
        metadata={"field": "text", "length": length, "limit": limit},
    )
