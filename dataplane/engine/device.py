"""Where steps run: in order, one after the other, while the host goes on.

On CUDA the device is a stream. On CPU it is one thread, the only one that runs forward passes and
sampling; torch and our kernels hold no interpreter lock while they compute.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch


class Result(Protocol):
    """What a piece of work leaves on the device."""

    def to_host(self: _R) -> _R: ...


_R = TypeVar("_R", bound=Result)
_R_co = TypeVar("_R_co", bound=Result, covariant=True)


class DeviceTime(NamedTuple):
    """Of one piece of work, on the device's clock: how long it ran, and how long the device had
    nothing to do since the end of the work before (0 for the first)."""

    work_s: float
    idle_s: float


class Launched(Protocol[_R_co]):
    """A piece of work that was given to the device."""

    @property
    def result(self) -> _R_co:
        """As it is on the device; only for work that is launched later."""
        ...

    def is_done(self) -> bool:
        """Whether it has run."""
        ...

    def wait(self) -> tuple[_R_co, DeviceTime]:
        """Until it has run: the result in host memory. Raises: what the work raised."""
        ...


class Device(Protocol):
    """work: may use `result` of what was launched before."""

    def launch(self, work: Callable[[], _R]) -> Launched[_R]: ...


def device_for(device: torch.device) -> Device:
    return CudaDevice(device) if device.type == "cuda" else CpuDevice()


class CpuDevice:
    """Computes with as many threads as whoever makes it would."""

    def __init__(self) -> None:
        self._num_threads = torch.get_num_threads()
        self._last_end_s: float | None = None  # the thread's

    def launch(self, work: Callable[[], _R]) -> Launched[_R]:
        return _Task(_cpu_thread().submit(self._timed, work))

    def _timed(self, work: Callable[[], _R]) -> tuple[_R, DeviceTime]:
        if torch.get_num_threads() != self._num_threads:  # each thread has a number of its own
            torch.set_num_threads(self._num_threads)
        begin_s = time.perf_counter()
        idle_s = begin_s - (self._last_end_s or begin_s)
        result = work()
        self._last_end_s = time.perf_counter()
        return result, DeviceTime(self._last_end_s - begin_s, idle_s)


class _Task(Generic[_R]):
    def __init__(self, future: Future[tuple[_R, DeviceTime]]) -> None:
        self._future = future

    @property
    def result(self) -> _R:
        return self._future.result()[0]

    def is_done(self) -> bool:
        return self._future.done()

    def wait(self) -> tuple[_R, DeviceTime]:
        return self._future.result()


@functools.cache
def _cpu_thread() -> ThreadPoolExecutor:
    """One for the process, however many engines there are in it: kernels keep scratch memory that
    one thread may use at a time. It inherits the floating-point mode of whoever starts it."""
    return ThreadPoolExecutor(1, thread_name_prefix="device")


class CudaDevice:
    """The current stream of the thread that launches."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last_end: torch.cuda.Event | None = None

    def launch(self, work: Callable[[], _R]) -> Launched[_R]:
        with torch.cuda.device(self._device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            result = work()
            end.record()
            copy = result.to_host()
            copied = torch.cuda.Event()
            copied.record()
        before, self._last_end = self._last_end, end
        return _Enqueued(result, copy, copied, _Interval(before, begin, end))


class _Interval(NamedTuple):
    before: torch.cuda.Event | None
    begin: torch.cuda.Event
    end: torch.cuda.Event

    def time(self) -> DeviceTime:
        """All three must have been reached."""
        idle_s = self.before.elapsed_time(self.begin) / 1e3 if self.before else 0.0
        return DeviceTime(self.begin.elapsed_time(self.end) / 1e3, idle_s)


class _Enqueued(Generic[_R]):
    def __init__(self, result: _R, copy: _R, copied: torch.cuda.Event, interval: _Interval) -> None:
        self.result = result
        self._copy = copy
        self._copied = copied
        self._interval = interval

    def is_done(self) -> bool:
        return self._copied.query()

    def wait(self) -> tuple[_R, DeviceTime]:
        self._copied.synchronize()
        return self._copy, self._interval.time()
