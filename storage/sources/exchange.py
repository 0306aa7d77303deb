"""One HTTP exchange: redirections checked one by one, failures told apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import cast
from urllib.parse import urljoin

import httpcore2

from storage.errors import (
    SourceAccessError,
    SourceNotFoundError,
    SourceUnreadableError,
    excerpt,
)
from storage.sources.access import Access
from storage.sources.guard import GuardedStream
from storage.sources.retry import Patience, TransientError

_MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
NETWORK_ERRORS = (
    httpcore2.NetworkError,
    httpcore2.TimeoutException,
    httpcore2.ProtocolError,
    OSError,
)

CheckUrl = Callable[[str], None]
"""Raises what keeps a URL from being fetched; called for the first and for every redirection."""


class Response:
    """Status and headers of an answer whose body has not been read."""

    def __init__(self, response: httpcore2.Response, url: str) -> None:
        self.response = response
        self.url = url
        self.status = response.status
        self.headers = {
            key.decode("latin-1").lower(): value.decode("latin-1")
            for key, value in response.headers
        }


class Exchange:
    """`async with` a request whose redirections were followed; the token goes to the first origin
    alone. Raises: SourceError, TransientError; httpcore2's errors."""

    def __init__(
        self,
        pool: httpcore2.AsyncConnectionPool,
        patience: Patience,
        method: str,
        url: str,
        headers: Mapping[str, str],
        access: Access,
        check: CheckUrl,
    ) -> None:
        self._pool = pool
        self._patience = patience
        self._method = method
        self._url = url
        self._headers = {**headers, "Accept-Encoding": "identity", "User-Agent": "chorale"}
        self._access = access
        self._check = check
        self._response: httpcore2.Response | None = None

    async def __aenter__(self) -> Response:
        url, target = self._url, httpcore2.URL(self._url)
        first = target.origin
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(url)
            response = await self._send(target, with_token=target.origin == first)
            found = Response(response, url)
            if found.status not in REDIRECTS or "location" not in found.headers:
                self._response = response
                _begin_body(response)
                return found
            await response.aclose()
            url, target = _redirected(url, found.headers["location"])
        raise SourceUnreadableError(
            f"{excerpt(self._url)} redirects more than {_MAX_REDIRECTS} times"
        )

    async def __aexit__(self, *_: object) -> None:
        if self._response is not None:
            await self._response.aclose()

    async def _send(self, url: httpcore2.URL, *, with_token: bool) -> httpcore2.Response:
        headers = dict(self._headers)
        if with_token and self._access.token:
            headers["Authorization"] = f"Bearer {self._access.token}"
        patience = self._patience
        timeouts = {
            "connect": patience.connect_s,
            "pool": patience.attempt_s,
            "read": patience.stall_s,
            "write": patience.stall_s,
        }
        host = url.host.decode("ascii")
        port = f":{url.port}" if url.port is not None else ""
        request = httpcore2.Request(
            self._method,
            url,
            headers=[("Host", f"{host}{port}"), *headers.items()],
            extensions={"timeout": timeouts},
        )
        try:
            return await self._pool.handle_async_request(request)
        except NETWORK_ERRORS as error:
            raise TransientError(words(error)) from None


def _redirected(url: str, location: str) -> tuple[str, httpcore2.URL]:
    """Where an answer at `url` leads. Raises: SourceUnreadableError for what is no address."""
    try:
        there = urljoin(url, location)
        target = httpcore2.URL(there)
        if not target.host or target.port == 0:
            raise ValueError("it names no host or port 0")
    except (ValueError, TypeError) as problem:  # TypeError: characters beyond ASCII
        raise SourceUnreadableError(
            f"{excerpt(url.partition('?')[0])} redirects to {excerpt(location)}, which is no "
            f"address: {problem}"
        ) from None
    return there, target


def _begin_body(response: httpcore2.Response) -> None:
    extensions = cast("Mapping[str, object]", response.extensions)
    stream = extensions.get("network_stream")
    if isinstance(stream, GuardedStream):
        stream.begin_body()


def refuse(status: int, url: str) -> None:
    """Raises: SourceAccessError, SourceNotFoundError for the statuses that mean these."""
    if status in (401, 403):
        raise SourceAccessError(
            f"{excerpt(url)} answers {status}: it is private, and the token of this call does not "
            "open it (metadata x-chorale-source-token; --source-token of the CLI)",
            metadata={"status": str(status)},
        )
    if status in (404, 410):
        raise SourceNotFoundError(f"{excerpt(url)} does not exist (status {status})")


def busy(response: Response) -> TransientError:
    asked = response.headers.get("retry-after", "")
    after_s = integer(asked)
    if after_s is None and asked:
        try:
            after_s = max(0, int(parsedate_to_datetime(asked).timestamp() - time.time()))
        except ValueError:
            after_s = None
    return TransientError(
        f"status {response.status}", retry_after_s=None if after_s is None else float(after_s)
    )


def integer(text: str | None) -> int | None:
    return int(text) if text and len(text) <= 18 and text.isascii() and text.isdigit() else None


def words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ")
