"""An OpenAI API with made-up answers. As a script it stands in for a server that takes --port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.helpers.waiting import until


class FakeOpenAI:
    """`requests` holds the bodies that came.

    with_token_ids: whether events carry token ids. error: sent in mid-stream after two tokens.
    refuse: status with which requests are refused. broken_at: token after which the stream ends.
    """

    def __init__(self, *, with_token_ids: bool = True, gap_s: float = 0.0) -> None:
        self.with_token_ids = with_token_ids
        self.gap_s = gap_s
        self.error: dict[str, Any] | None = None
        self.refuse: int | None = None
        self.broken_at: int | None = None
        self.requests: list[dict[str, Any]] = []
        self.url = ""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/completions", self._completions, methods=["POST"]),
            ]
        )

    async def _health(self, request: Request) -> Response:
        return PlainTextResponse("")

    async def _models(self, request: Request) -> Response:
        models = [{"id": "pirate", "parent": "bench"}, {"id": "bench", "parent": None}]
        return JSONResponse({"object": "list", "data": models})

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        if self.refuse:
            error = {"message": "no such model", "code": "model_not_found"}
            return JSONResponse({"error": error}, self.refuse)
        return StreamingResponse(self._events(body), media_type="text/event-stream")

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        for number in range(body["max_tokens"]):
            if self.gap_s:
                await asyncio.sleep(self.gap_s)
            if self.error and number == 2:
                yield _event({"error": self.error})
                return
            if number == self.broken_at:
                return
            # As real ones, it has tokens without text.
            choice: dict[str, Any] = {"index": 0, "text": "x" if number % 4 else ""}
            if self.with_token_ids:
                choice["token_ids"] = [number]
            yield _event({"choices": [choice], "usage": None})
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        yield _event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


@contextmanager
def serving(fake: FakeOpenAI) -> Generator[FakeOpenAI]:
    """Serves on a free port of 127.0.0.1; `url` names it, with /v1."""
    config = uvicorn.Config(fake.app(), host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, every_s=0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        fake.url = f"http://127.0.0.1:{port}/v1"
        yield fake
    finally:
        server.should_exit = True
        thread.join(60)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


if __name__ == "__main__":
    _port = int(sys.argv[sys.argv.index("--port") + 1])
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.run(FakeOpenAI().app(), host="127.0.0.1", port=_port, log_level="error")
