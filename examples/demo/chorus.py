"""The demo's voices at work: all adapters and the base answer one prompt at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chorale.aio import AsyncClient
from chorale.events import Finished, Tokens

MAX_TOKENS = 96


@dataclass
class Voice:
    """One row: what is registered, and what it has answered so far. Times in seconds."""

    name: str
    adapter: str  # "" is the base model
    rank: int = 0
    targets: str = "the base model"
    text: str = ""
    num_tokens: int = 0
    time_to_first_token_s: float | None = None
    adapter_load_s: float = 0.0
    decode_s: float = 0.0
    done: bool = False

    @property
    def tokens_per_s(self) -> float | None:
        """By the data plane's clock; the first token, which the prompt's pass makes, left out."""
        return (self.num_tokens - 1) / self.decode_s if self.decode_s > 0 else None


async def register(address: str, adapters: Path) -> list[Voice]:
    """Registers every PEFT directory in `adapters` under its name; the base model comes first."""
    async with AsyncClient(address) as client:
        (base,) = await client.base_models()
        sources = sorted(path.parent for path in adapters.glob("*/adapter_config.json"))
        made = await asyncio.gather(
            *(client.adapters.register(one.name, str(one.absolute())) for one in sources)
        )
    voices = [Voice(f"({base.name})", "")]
    for response in made:
        version = response.version
        targets = " ".join(
            module.rpartition(".")[2].removesuffix("_proj") for module in version.target_modules
        )
        name = response.adapter.name
        voices.append(Voice(name, name, version.rank, targets))
    return voices


async def answer_all(
    address: str, voices: Sequence[Voice], prompt: str, changed: Callable[[Voice], None]
) -> float:
    """Streams the prompt through all voices at once; the seconds that all of it took."""
    async with AsyncClient(address) as client:
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for voice in voices:
                group.create_task(_answer(client, voice, prompt, changed))
        return time.monotonic() - started_s


async def _answer(
    client: AsyncClient, voice: Voice, prompt: str, changed: Callable[[Voice], None]
) -> None:
    started_s = time.monotonic()
    stream = client.generate(prompt, model=voice.adapter, max_tokens=MAX_TOKENS)
    async with stream as events:
        async for event in events:
            voice.text += event.text
            if isinstance(event, Tokens):
                if voice.time_to_first_token_s is None:
                    voice.time_to_first_token_s = time.monotonic() - started_s
                voice.num_tokens += len(event.token_ids)
            elif isinstance(event, Finished):
                timings = event.timings
                voice.adapter_load_s = timings.adapter_load_s
                voice.decode_s = timings.total_s - timings.time_to_first_token_s
                voice.done = True
            changed(voice)
