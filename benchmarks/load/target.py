"""An endpoint that generates tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from benchmarks.errors import TargetError


class Chunk(NamedTuple):
    """What one message of a stream brought. The server's own times are in seconds."""

    num_tokens: int
    queue_s: float | None = None
    adapter_load_s: float | None = None
    done: bool = False


@dataclass(frozen=True)
class TargetInfo:
    """vocab_size, num_threads and the like are None where the endpoint does not say."""

    base_model: str
    vocab_size: int | None
    details: Mapping[str, object] = field(default_factory=dict[str, object])


class Target(Protocol):
    @property
    def url(self) -> str: ...

    async def describe(self) -> TargetInfo:
        """Raises: TargetError when nothing that can be benchmarked answers."""
        ...

    async def register(self, sources: Mapping[str, str]) -> None:
        """Makes the PEFT directories (name -> path) known. Raises: TargetError."""
        ...

    def stream(
        self, adapter: str, prompt: Sequence[int], num_output_tokens: int
    ) -> AsyncIterator[Chunk]:
        """Greedy, exactly `num_output_tokens` unless the server ends early. The last chunk is
        `done`. Raises: RequestFailed."""
        ...

    async def close(self) -> None: ...


def open_target(
    url: str,
    *,
    model: str = "",
    extensions: bool = True,
    api_key: str = "",
    tls_ca_file: Path | None = None,
) -> Target:
    """The target at grpc(s)://HOST:PORT or http(s)://HOST:PORT/v1; made inside the event loop.

    model: what the base model is called there; empty asks the endpoint.
    extensions: send ignore_eos and return_token_ids, which vLLM and Chorale know and OpenAI's API
    does not have.
    Raises: TargetError.
    """
    parts = urlsplit(url)
    if parts.scheme in ("grpc", "grpcs") and parts.netloc and parts.path in ("", "/"):
        from benchmarks.load.grpc_target import GrpcTarget

        address = f"{parts.scheme}://{parts.netloc}"
        return GrpcTarget(address, model=model, api_key=api_key, tls_ca_file=tls_ca_file)
    if parts.scheme in ("http", "https") and parts.netloc:
        from benchmarks.load.openai_target import OpenAITarget

        return OpenAITarget(
            url, model=model, extensions=extensions, api_key=api_key, tls_ca_file=tls_ca_file
        )
    raise TargetError(
        "TARGET_INVALID",
        f"target {url[:200]!r}: give grpc://HOST:PORT, or http://HOST:PORT/v1 for an OpenAI API",
        metadata={"target": url[:200]},
    )
