"""Runs the generations of one HTTP request side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from chorale.errors import InternalError
from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.generation import Generation

# Events of all choices that may wait for a client that reads slowly; behind them, gRPC's flow
# control holds the data plane back.
_MAX_WAITING_EVENTS = 32

Numbered = tuple["Choice", pb.GenerateResponse]


@dataclass(slots=True)
class Choice:
    """One completion under way.

    prompt: which prompt of the request it continues. echo: text that its own is to follow.
    is_prompt_only: what is generated is not to be shown. prompt_lists: log-probabilities of the
    prompt in the shape of the answer, of one that is shown as a whole.
    """

    index: int
    prompt: int
    generation: Generation
    echo: str = ""
    is_prompt_only: bool = False
    accepted: pb.Accepted | None = None
    finished: pb.Finished | None = None
    logprobs_offset: int = 0  # where the last token ended whose logprobs were shown
    num_prompt_shown: int = 0  # of the prompt's tokens
    num_prompt_characters: int = 0  # that its own text follows, when the prompt was shown
    texts: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[pb.TokenLogprobs] = field(default_factory=list[pb.TokenLogprobs])
    prompt_lists: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])

    def add(self, response: pb.GenerateResponse) -> None:
        """Adds an event to the whole."""
        if response.HasField("tokens"):
            if self.is_prompt_only:
                return
            self.texts.append(response.tokens.text)
            self.token_ids.extend(response.tokens.token_ids)
            self.logprobs.extend(response.tokens.logprobs)
        elif response.HasField("finished") and not self.is_prompt_only:
            self.texts.append(response.finished.text)

    def note(self, response: pb.GenerateResponse) -> None:
        """Notes what is needed of an event whether or not its text is collected."""
        if response.HasField("accepted"):
            self.accepted = response.accepted
        elif response.HasField("finished"):
            self.finished = response.finished

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt's tokens, if they were asked for."""
        return list(self.accepted.prompt_token_ids) if self.accepted is not None else []

    @property
    def num_completion_tokens(self) -> int:
        """That are shown. Raises: as `end`."""
        return 0 if self.is_prompt_only else self.end.usage.num_completion_tokens

    @property
    def stop_reason(self) -> str | int | None:
        finished = self.finished
        match finished.WhichOneof("stop_match") if finished is not None else None:
            case "stop_string":
                return self.end.stop_string
            case "stop_token_id":
                return self.end.stop_token_id
            case _:
                return None

    @property
    def end(self) -> pb.Finished:
        """The last event. Raises: InternalError when there was none."""
        if self.finished is None:
            raise InternalError("STREAM_INCOMPLETE", f"choice {self.index} has no end; try again")
        return self.finished


class Choices:
    """All choices of one request. Close it to end what still runs."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        self.choices = choices
        self._streams = [choice.generation.events() for choice in choices]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Waits until every choice is accepted, so that failures of the request as such come
        before its first byte. Raises: the first failure."""
        firsts = [asyncio.create_task(self._first(i)) for i in range(len(self.choices))]
        try:
            await asyncio.gather(*firsts)
        except BaseException:
            await _cancel(firsts)
            raise

    async def events(self) -> AsyncGenerator[Numbered]:
        """The events after `accepted` of all choices as they come. Raises: the first failure."""
        if len(self.choices) == 1:  # nothing to interleave: a task would be woken for each token
            async with aclosing(self._streams[0]) as stream:
                async for response in stream:
                    self.choices[0].note(response)
                    yield self.choices[0], response
            return
        waiting: asyncio.Queue[Numbered | BaseException | None] = asyncio.Queue(_MAX_WAITING_EVENTS)
        self._tasks = [
            asyncio.create_task(self._pump(i, waiting)) for i in range(len(self.choices))
        ]
        running = len(self._tasks)
        while running:
            item = await waiting.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                item[0].note(item[1])
                yield item

    async def close(self) -> None:
        """Ends every choice that still runs. Closing twice is no error."""
        for choice in self.choices:
            choice.generation.end()
        await _cancel(self._tasks)
        for stream in self._streams:
            await stream.aclose()

    async def _first(self, i: int) -> None:
        response = await anext(self._streams[i], None)
        if response is not None:
            self.choices[i].note(response)

    async def _pump(self, i: int, waiting: asyncio.Queue[Numbered | BaseException | None]) -> None:
        try:
            async with aclosing(self._streams[i]) as stream:
                async for response in stream:
                    await waiting.put((self.choices[i], response))
        except Exception as error:
            await waiting.put(error)
        else:
            await waiting.put(None)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
