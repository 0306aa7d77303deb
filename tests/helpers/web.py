"""A web server on 127.0.0.1 that serves bytes as well or as badly as a test wants."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Request:
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Page:
    """One file. etag: sent as it is. token: who must be the bearer. cut_at: bytes after which each
    of the first `cuts` answers breaks off. busy: answers of status 503 that come first. hang:
    waited for before anything is said. pause_s: after each `piece_bytes`. honest_length: whether
    Content-Length is sent. ranges: whether ranges are served. location: redirect there.
    head_status: of every HEAD. login: where those without the token are sent. content_range: sent
    with status 206. chunk_bytes: of each chunk, sent without a length. flood: sent instead of an
    answer, without end."""

    data: bytes = b""
    etag: str = '"1"'
    token: str = ""
    cut_at: int | None = None
    cuts: int = 0
    busy: int = 0
    busy_headers: Mapping[str, str] = field(default_factory=dict[str, str])
    hang: threading.Event | None = None
    pause_s: float = 0.0
    piece_bytes: int = 1 << 16
    length: int | None = -1  # -1: the right one; None: not sent
    ranges: bool = True
    location: str = ""
    encoding: str = ""
    head_status: int = 0
    login: str = ""
    content_range: str = ""
    chunk_bytes: int = 0
    flood: bytes = b""


@dataclass
class Web:
    url: str
    pages: dict[str, Page]
    requests: list[Request]
    on_request: Callable[[Request], None] | None = None

    def put(self, path: str, data: bytes, **fields: object) -> Page:
        self.pages[path] = page = Page(data, **fields)  # type: ignore[arg-type]
        return page

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def seen(self, path: str, method: str = "GET") -> list[Request]:
        return [r for r in self.requests if r.path.partition("?")[0] == path and r.method == method]


@contextlib.contextmanager
def serving() -> Generator[Web]:
    web = Web("", {}, [])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            request = Request(self.command, self.path, dict(self.headers.items()))
            web.requests.append(request)
            if web.on_request is not None:
                web.on_request(request)
            page = web.pages.get(self.path.partition("?")[0])
            try:
                self._serve(page, with_body=with_body)
            except OSError:
                self.close_connection = True

        def _serve(self, page: Page | None, *, with_body: bool) -> None:
            if page is None:
                return self._status(404)
            if page.hang is not None:
                page.hang.wait(600)
            if page.busy > 0:
                page.busy -= 1
                return self._status(503, page.busy_headers)
            if page.head_status and not with_body:
                return self._status(page.head_status)
            if page.token and self.headers.get("Authorization") != f"Bearer {page.token}":
                return (
                    self._status(302, {"Location": page.login}) if page.login else self._status(401)
                )
            while page.flood:
                self.wfile.write(page.flood)
            if page.location:
                return self._status(302, {"Location": page.location})
            start, status = 0, 200
            asked = self.headers.get("Range", "")
            if page.ranges and asked and self.headers.get("If-Range") in (None, page.etag):
                start = int(asked.removeprefix("bytes=").partition("-")[0])
                status = 206
                if start >= len(page.data):
                    return self._status(416)
            body = page.data[start:]
            if page.content_range:
                status = 206
            self.send_response(status)
            if page.etag:
                self.send_header("ETag", page.etag)
            if page.encoding:
                self.send_header("Content-Encoding", page.encoding)
            if status == 206:
                last = len(page.data) - 1
                sent = page.content_range or f"bytes {start}-{last}/{len(page.data)}"
                self.send_header("Content-Range", sent)
            if page.chunk_bytes:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                pieces = (
                    body[at : at + page.chunk_bytes] for at in range(0, len(body), page.chunk_bytes)
                )
                self.wfile.write(b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces))
                self.wfile.write(b"0\r\n\r\n")
                return None
            length = len(body) if page.length == -1 else page.length
            if length is not None:
                self.send_header("Content-Length", str(length))
            else:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            if with_body:
                self._send(page, body)

        def _send(self, page: Page, body: bytes) -> None:
            cut = None
            if page.cuts > 0 and page.cut_at is not None:
                page.cuts -= 1
                cut, body = True, body[: page.cut_at]
            for begin in range(0, len(body), page.piece_bytes):
                self.wfile.write(body[begin : begin + page.piece_bytes])
                self.wfile.flush()
                if page.pause_s:
                    time.sleep(page.pause_s)
            if cut or page.length != -1:
                self.close_connection = True

        def _status(self, status: int, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield web
    finally:
        for page in web.pages.values():
            if page.hang is not None:
                page.hang.set()
        server.shutdown()
        server.server_close()
        thread.join()
