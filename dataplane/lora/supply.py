"""From "a request wants this adapter" to pages in the pool."""

from __future__ import annotations

from dataplane.channel import Adapter
from dataplane.errors import PoolTooSmallError
from dataplane.lora.layout import HostAdapter
from dataplane.lora.loader import AdapterLoader
from dataplane.lora.resident import ResidentAdapter, ResidentAdapters


class AdapterSupply:
    """Tracks each wanted digest: absent → loading → in host memory → resident.

    Never blocks. What a caller asks for and is not there yet, is asked for again each step.
    """

    def __init__(self, resident: ResidentAdapters, loader: AdapterLoader, num_pages: int) -> None:
        self.resident = resident
        self._loader = loader
        self._num_pages = num_pages
        self._loading: set[str] = set()
        self._arrived: dict[str, HostAdapter] = {}

    def poll(self) -> list[tuple[str, Exception]]:
        """Takes in what the loader has ended. Returns the digests that failed, and why."""
        failures: list[tuple[str, Exception]] = []
        for digest, adapter, error in self._loader.results():
            self._loading.discard(digest)
            if adapter is None:
                assert error is not None
                failures.append((digest, error))
            elif (pages := adapter.pages.shape[1]) >= self._num_pages:
                failures.append((digest, self._too_large(digest, pages)))
            else:
                self._arrived[digest] = adapter
        return failures

    def want(self, adapter: Adapter) -> None:
        """Starts loading unless it is there or on its way."""
        digest = adapter.digest
        if digest in self._loading or digest in self._arrived or self.resident.get(digest):
            return
        self._loading.add(digest)
        self._loader.request(adapter)

    def pages_missing(self, digest: str) -> int | None:
        """Pages that must be free to make it resident: 0 when it is, None while it loads."""
        if self.resident.get(digest):
            return 0
        arrived = self._arrived.get(digest)
        return arrived.pages.shape[1] if arrived else None

    def size_pages(self, digest: str) -> int:
        """Pages of an adapter that is resident or has arrived."""
        resident = self.resident.get(digest)
        return len(resident.page_ids) if resident else self._arrived[digest].pages.shape[1]

    def acquire(self, digest: str, now_s: float) -> ResidentAdapter | None:
        """Makes an arrived adapter resident if need be, and holds it. None when its pages are
        not free."""
        if self.resident.get(digest) is None:
            if self.resident.install(self._arrived[digest], now_s) is None:
                return None
            del self._arrived[digest]
        return self.resident.acquire(digest, now_s)

    def drop_unwanted(self, wanted: set[str]) -> None:
        """Lets go of arrived adapters that no waiting request names; the host tier may keep
        them."""
        for digest in [each for each in self._arrived if each not in wanted]:
            del self._arrived[digest]

    def _too_large(self, digest: str, pages: int) -> PoolTooSmallError:
        return PoolTooSmallError(
            "POOL_TOO_SMALL",
            f"the adapter takes {pages} of the pool's {self._num_pages} pages, which leaves none"
            " for a sequence: start the data plane with a larger --pool-bytes",
            {"digest": digest, "pages": str(pages), "num_pages": str(self._num_pages)},
        )
