"""One request's output on its way from the engine to its handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dataplane.channel import Output

_MAX_BATCH = 1024  # with log-probabilities, about a megabyte: messages have a limit


class EngineStream:
    """Async iterator over batches of Outputs: each step returns what piled up since the last, or
    the first 1,024 of it.

    What piles up is bounded by the request's max_tokens. Iteration ends after the Output that
    finishes the request, or raises the error that ended it. One consumer.
    """

    def __init__(self, handle: int, abort: Callable[[EngineStream], None]) -> None:
        self.handle = handle
        self._abort = abort
        self._outputs: list[Output] = []
        self._error: Exception | None = None
        self._ended = False
        self._news = asyncio.Event()

    def __aiter__(self) -> EngineStream:
        return self

    async def __anext__(self) -> list[Output]:
        """Raises: as `next_batch`, StopAsyncIteration after the end."""
        outputs = await self.next_batch()
        if outputs is None:
            raise StopAsyncIteration
        return outputs

    async def next_batch(self) -> list[Output] | None:
        """None after the end. Raises: ChoraleError when the request failed."""
        while not self._outputs:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        outputs = self._outputs[:_MAX_BATCH]
        del self._outputs[:_MAX_BATCH]
        return outputs

    def close(self) -> None:
        """Frees what the engine holds for the request, unless it has ended. Idempotent."""
        if not self._ended:
            self._ended = True
            self._news.set()
            self._abort(self)

    def expire(self, error: Exception) -> None:
        """As `close`, but iteration raises `error`, after the outputs that came before it."""
        if not self._ended:
            self.fail(error)
            self._abort(self)

    def add(self, output: Output) -> None:
        """From the engine: new tokens. Nothing is added to a stream that has ended."""
        if self._ended:
            return
        self._outputs.append(output)
        self._ended = bool(output.finish)
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Ends the stream with `error`, after the outputs that came before it."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._news.set()
