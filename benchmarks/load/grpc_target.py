"""A Chorale gateway over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import grpc

from benchmarks.errors import RequestFailed, TargetError
from benchmarks.load.target import Chunk, TargetInfo
from chorale.aio import AsyncClient
from chorale.errors import ChoraleError
from chorale.events import Finished, Tokens


class GrpcTarget:
    """address: HOST:PORT, grpc://HOST:PORT, or grpcs://HOST:PORT for TLS."""

    def __init__(
        self, address: str, *, model: str = "", api_key: str = "", tls_ca_file: Path | None = None
    ) -> None:
        self.url = address if "://" in address else f"grpc://{address}"
        trusted = None
        if tls_ca_file is not None:
            trusted = grpc.ssl_channel_credentials(tls_ca_file.read_bytes())
        self._client = AsyncClient(address, api_key=api_key, credentials=trusted)
        self._model = model

    async def describe(self) -> TargetInfo:
        try:
            models = await self._client.base_models()
            data_planes = await self._client.data_planes()
        except ChoraleError as error:
            raise TargetError(
                error.reason, f"{self.url} does not answer: {error.message[:200]}"
            ) from error
        found = [one for one in models if self._model in ("", one.name)]
        if len(found) != 1:
            names = ", ".join(one.name for one in models)[:200] or "none"
            raise TargetError(
                "BASE_MODEL_AMBIGUOUS",
                f"{self.url} serves {names}: name one of them with --model",
                metadata={"model": self._model[:200]},
            )
        self._model = found[0].name
        serving = [plane for plane in data_planes if plane.base_model == self._model]
        return TargetInfo(
            base_model=self._model,
            vocab_size=found[0].vocab_size,
            details={
                "fingerprint": found[0].fingerprint,
                "num_layers": found[0].num_layers,
                "max_context_tokens": found[0].max_context_tokens,
                "num_data_planes": len(serving),
                "num_pages": sum(plane.load.num_pages for plane in serving),
                "max_running": sum(plane.load.max_running for plane in serving),
            },
        )

    async def register(self, sources: Mapping[str, str]) -> None:
        for name, source in sources.items():
            try:
                await self._client.adapters.register(name, source, base_model=self._model)
            except ChoraleError as error:
                raise TargetError(
                    error.reason, f"adapter {name!r} was refused: {error.message[:500]}"
                ) from error

    async def stream(
        self, adapter: str, prompt: Sequence[int], num_output_tokens: int
    ) -> AsyncIterator[Chunk]:
        stream = self._client.generate(
            prompt_token_ids=prompt,
            model=adapter or self._model,
            max_tokens=num_output_tokens,
            temperature=0.0,
            ignore_eos=True,
        )
        try:
            async with stream as events:
                async for event in events:
                    if isinstance(event, Tokens):
                        yield Chunk(len(event.token_ids))
                    elif isinstance(event, Finished):
                        timings = event.timings
                        yield Chunk(0, timings.queue_s, timings.adapter_load_s, done=True)
        except ChoraleError as error:
            raise RequestFailed(error.reason, error.message) from error

    async def close(self) -> None:
        await self._client.close()
