"""A target inside this process, with scripted behaviour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from benchmarks.errors import RequestFailed
from benchmarks.load.target import Chunk, TargetInfo


class FakeTarget:
    """first_s, gap_s: seconds to the first token and between tokens.

    failing: adapter -> reason. hanging: adapters whose requests never end.
    """

    url = "fake://"

    def __init__(self, *, first_s: float = 0.0, gap_s: float = 0.0) -> None:
        self.first_s = first_s
        self.gap_s = gap_s
        self.failing: dict[str, str] = {}
        self.hanging: set[str] = set()
        self.num_open = 0
        self.max_open = 0
        self.num_cancelled = 0
        self.seen: list[tuple[str, int, int]] = []
        self.prompts: list[Sequence[int]] = []

    async def describe(self) -> TargetInfo:
        return TargetInfo("fake", 300)

    async def register(self, sources: Mapping[str, str]) -> None:
        raise AssertionError("nothing to register")

    async def close(self) -> None:
        pass

    async def stream(
        self, adapter: str, prompt: Sequence[int], num_output_tokens: int
    ) -> AsyncIterator[Chunk]:
        self.seen.append((adapter, len(prompt), num_output_tokens))
        self.prompts.append(prompt)
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        try:
            await asyncio.sleep(self.first_s)
            if adapter in self.hanging:
                await asyncio.Event().wait()
            for number in range(num_output_tokens):
                if number:
                    await asyncio.sleep(self.gap_s)
                if number == 1 and adapter in self.failing:
                    raise RequestFailed(self.failing[adapter], "as scripted")
                yield Chunk(1)
            yield Chunk(0, queue_s=0.25, adapter_load_s=0.125, done=True)
        except (asyncio.CancelledError, GeneratorExit):
            self.num_cancelled += 1
            raise
        finally:
            self.num_open -= 1
