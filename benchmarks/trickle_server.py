"""A web server whose files come evenly over a time, in a process of its own.

    python -m benchmarks.trickle_server FOLDER SECONDS

It prints its port. What is asked for with the name of a weights file takes SECONDS, others none.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PIECES_PER_S = 20


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, seconds: float, *arguments: object) -> None:
        self._folder = folder
        self._seconds = seconds
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        path = (self._folder / self.path.lstrip("/")).resolve()
        if not path.is_relative_to(self._folder) or not path.is_file():
            self.send_error(404)
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.flush()
            count = int(self._seconds * _PIECES_PER_S) if path.suffix == ".safetensors" else 1
            self._send(file.fileno(), size, max(count, 1))

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _send(self, file: int, size: int, count: int) -> None:
        started_s = time.monotonic()
        sent = 0
        for number in range(1, count + 1):
            if count > 1:
                time.sleep(max(0.0, started_s + self._seconds * number / count - time.monotonic()))
            while sent < size * number // count:
                wanted = size * number // count - sent
                sent += os.sendfile(self.connection.fileno(), file, sent, wanted)


def main() -> None:
    folder, seconds = Path(sys.argv[1]).resolve(), float(sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folder, seconds))
    print(server.server_address[1], flush=True)
    server.serve_forever()


@contextmanager
def trickling(folder: Path, seconds: float) -> Generator[str]:
    """The address of a server over `folder`, while the context lasts."""
    command = [sys.executable, "-m", "benchmarks.trickle_server", str(folder), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
