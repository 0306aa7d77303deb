"""An OpenAI API: POST /completions with token ids as the prompt, streamed."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from benchmarks.errors import RequestFailed, TargetError
from benchmarks.load.target import Chunk, TargetInfo

_CONNECT_TIMEOUT_S = 10.0
_DATA = "data: "
_MAX_ANSWER_BYTES = 1 << 20


class OpenAITarget:
    """Tokens are counted by `token_ids` where the server sends them, else by the usage at the end,
    the events with text standing for the times."""

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        extensions: bool = True,
        api_key: str = "",
        tls_ca_file: Path | None = None,
    ) -> None:
        parts = urlsplit(url)
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._model = model
        self._extensions = extensions
        self._client = httpx2.AsyncClient(
            base_url=url.rstrip("/"),
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            verify=True if tls_ca_file is None else ssl.create_default_context(cafile=tls_ca_file),
            # How long a request may take is the driver's business.
            timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def describe(self) -> TargetInfo:
        try:
            response = await self._client.get("/models")
            response.raise_for_status()
            models: list[dict[str, Any]] = response.json()["data"]
            bases = [str(one["id"]) for one in models if not one.get("parent")]
        except (httpx2.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TargetError(
                "NO_OPENAI_API",
                f"{self.url}/models does not answer as OpenAI's API does:"
                f" {type(error).__name__}: {str(error)[:200]}",
                metadata={"target": self.url},
            ) from error
        if not self._model:
            if not bases:
                raise TargetError(
                    "BASE_MODEL_AMBIGUOUS", f"{self.url} lists no base model: name it with --model"
                )
            self._model = bases[0]
        return TargetInfo(self._model, None, {"num_models": len(models)})

    async def register(self, sources: Mapping[str, str]) -> None:
        raise TargetError(
            "REGISTER_UNSUPPORTED",
            f"{self.url}: adapters are registered over gRPC only; start the server with them and"
            " give their names",
            metadata={"num_adapters": str(len(sources))},
        )

    async def stream(
        self, adapter: str, prompt: Sequence[int], num_output_tokens: int
    ) -> AsyncIterator[Chunk]:
        body: dict[str, Any] = {
            "model": adapter or self._model,
            "prompt": list(prompt),
            "max_tokens": num_output_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._extensions:
            body |= {"ignore_eos": True, "return_token_ids": True}
        try:
            async with self._client.stream("POST", "/completions", json=body) as response:
                if response.status_code != 200:
                    raise _refused(response.status_code, await _start_of(response))
                async for chunk in _chunks(response):
                    yield chunk
        except httpx2.HTTPError as error:
            raise RequestFailed(type(error).__name__, str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestFailed(
                "ANSWER_MALFORMED", f"{type(error).__name__}: {str(error)[:150]}"
            ) from error

    async def close(self) -> None:
        await self._client.aclose()


async def _chunks(response: httpx2.Response) -> AsyncIterator[Chunk]:
    counted, completion_tokens, done = 0, None, False
    async for line in response.aiter_lines():
        if not line.startswith(_DATA):
            continue
        data = line.removeprefix(_DATA)
        if data == "[DONE]":
            done = True
            break
        event = json.loads(data)
        if "error" in event:
            raise _failed(event["error"])
        usage = event.get("usage")
        if usage:
            completion_tokens = int(usage["completion_tokens"])
        for choice in event.get("choices", ()):
            token_ids = choice.get("token_ids")
            num_tokens = len(token_ids) if token_ids is not None else bool(choice.get("text"))
            if num_tokens:
                counted += num_tokens
                yield Chunk(int(num_tokens))
    if not done:
        raise RequestFailed("STREAM_INCOMPLETE", "the stream ended without [DONE]")
    # What no event stood for: tokens without text of a server that sends no token ids.
    yield Chunk(max(0, (completion_tokens or 0) - counted), done=True)


async def _start_of(response: httpx2.Response) -> bytes:
    start = b""
    async for part in response.aiter_bytes():
        start += part
        if len(start) > _MAX_ANSWER_BYTES:
            break
    return start


def _refused(status: int, answer: bytes) -> RequestFailed:
    try:
        error = json.loads(answer)["error"]
        return _failed(error, f"HTTP_{status}")
    except (ValueError, KeyError, TypeError):
        return RequestFailed(f"HTTP_{status}", answer[:200].decode(errors="replace"))


def _failed(error: Any, default: str = "STREAM_ERROR") -> RequestFailed:
    if not isinstance(error, dict):
        return RequestFailed(default, str(error))
    reason = error.get("code") if isinstance(error.get("code"), str) else default
    return RequestFailed(str(reason)[:100], str(error.get("message", "")))
