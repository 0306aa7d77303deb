"""An engine in this process, driven to the end of what it was given, and where its time went."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq

from benchmarks.errors import BenchError
from benchmarks.load.workload import FIRST_TOKEN_ID
from dataplane.channel import (
    HIGH_WATER_MARK,
    Adapter,
    Outputs,
    Sampling,
    Submit,
    decode_to_engine,
    encode,
)
from dataplane.engine.device import DeviceTime
from dataplane.engine.pipeline import DEPTH
from dataplane.engine.setup import build_engine
from dataplane.engine.step_result import StepResult
from dataplane.engine_options import EngineOptions
from storage.adapter.manifest import digest_of

_LOAD_POLL_S = 0.0005


@dataclass
class Times:
    """Of one closed loop, in seconds. device: what it did in each step, and how long it had nothing
    to do before it. full_steps: from one step's tokens to the next one's, where every stream got
    one. receive_s: receiving and decoding the requests, before the device had any."""

    elapsed_s: float = 0.0
    num_tokens: int = 0
    device: list[DeviceTime] = field(default_factory=list[DeviceTime])
    full_steps: list[float] = field(default_factory=list[float])
    receive_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.elapsed_s

    @property
    def full_step_s(self) -> float | None:
        return statistics.median(self.full_steps) if self.full_steps else None

    @property
    def idle_share(self) -> float:
        """Of the whole time, that in which the device waited for the host: for scheduling, building
        a batch, bookkeeping or the channel, as far as they did not fit beside a step. What they
        take from a step that runs on the same cores is part of that step."""
        idle = sum(each.idle_s for each in self.device) + self.receive_s
        whole = sum(each.work_s for each in self.device) + idle
        return idle / whole if whole else 0.0


class Session:
    """Owns an engine; `stop` must be called. Every closed loop ends with the pool proven."""

    def __init__(
        self, options: EngineOptions, *, vocab_size: int, pipeline_depth: int = DEPTH
    ) -> None:
        self.parts = build_engine(options, on_loaded=lambda: None, pipeline_depth=pipeline_depth)
        self.parts.loader.start()
        self._vocab_size = vocab_size
        self._handles = count()
        self._channel = _Channel()

    def stop(self) -> None:
        self.parts.close()
        self._channel.close()

    def closed_loop(
        self,
        adapters: Sequence[Adapter | None],
        *,
        prompt_tokens: int,
        new_tokens: int,
        sampling: Mapping[str, Any] | None = None,
        on_full_step: Callable[[int], None] | None = None,
        prompt_of: Callable[[int], list[int]] | None = None,
    ) -> Times:
        """One request for each of `adapters`, all at once, to the end. Prompts are random and new
        each time, so that no cache knows them.

        prompt_of: a prompt of another kind, by a number that is new each time. sampling: of all of
        them, beside the number of tokens. on_full_step: told after each step that gave every stream
        a token how many there were.

        Raises: BenchError when a request fails or the pool's books are wrong.
        """
        engine, times = self.parts.engine, Times()
        asked = {"max_tokens": new_tokens, **(sampling or {})}
        submits = [
            self._submit(each, prompt_of or self._random(prompt_tokens), asked) for each in adapters
        ]
        started_s = time.perf_counter()
        for submit in submits:
            times.receive_s += self._channel.receive(submit, engine.submit)
        self._run(times, len(adapters), on_full_step)
        times.elapsed_s = time.perf_counter() - started_s
        self.check_empty()
        return times

    def check_empty(self) -> None:
        """Raises: BenchError unless no page is in use and every page has one owner."""
        report = self.parts.engine.inspect(0)
        if report.problem or report.num_used_pages:
            raise BenchError(
                "PAGES_LEFT",
                f"after the run {report.num_used_pages} pages are in use: {report.problem[:300]}",
                metadata={"num_used_pages": str(report.num_used_pages)},
            )

    def _run(
        self, times: Times, num_streams: int, on_full_step: Callable[[int], None] | None
    ) -> None:
        engine = self.parts.engine
        last_s = time.perf_counter()
        while engine.has_work:
            result = engine.step()
            _check(result)
            if not result.times and engine.is_waiting_for_loads:
                time.sleep(_LOAD_POLL_S)
            if not result.times:
                continue
            if not times.device:  # since the loop before, there was nothing to do
                result.times[0] = result.times[0]._replace(idle_s=0.0)
            times.device += result.times
            now_s = time.perf_counter()
            num_tokens = sum(len(output.token_ids) for output in result.outputs)
            times.num_tokens += num_tokens
            if num_tokens == num_streams:
                times.full_steps.append(now_s - last_s)
            last_s = now_s
            self._channel.send(Outputs(result.outputs))
            if on_full_step is not None and num_tokens == num_streams:
                on_full_step(len(times.full_steps))

    def _random(self, num_tokens: int) -> Callable[[int], list[int]]:
        def prompt_of(number: int) -> list[int]:
            ids = np.random.default_rng((7, number))
            return ids.integers(FIRST_TOKEN_ID, self._vocab_size, size=num_tokens).tolist()

        return prompt_of

    def _submit(
        self,
        adapter: Adapter | None,
        prompt_of: Callable[[int], list[int]],
        sampling: Mapping[str, Any],
    ) -> Submit:
        handle = next(self._handles)
        return Submit(
            handle=handle,
            prompt=prompt_of(handle),
            sampling=Sampling(ignore_eos=True, seed=handle, **sampling),
            adapter=adapter,
            arrival_s=time.monotonic(),
        )


class _Channel:
    """The frontend's socket pair, both ends here."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._ends = [self._context.socket(zmq.PAIR) for _ in range(2)]
        for end in self._ends:
            end.set_hwm(HIGH_WATER_MARK)
            end.setsockopt(zmq.LINGER, 0)
        port = self._ends[0].bind_to_random_port("tcp://127.0.0.1")
        self._ends[1].connect(f"tcp://127.0.0.1:{port}")

    def send(self, message: object) -> None:
        self._ends[0].send(encode(message))
        self._ends[1].recv()

    def receive(self, message: Submit, use: Callable[[Any], None]) -> float:
        """Seconds that receiving and decoding took; `use` gets the decoded message."""
        self._ends[1].send(encode(message))
        self._ends[0].poll()
        before_s = time.perf_counter()
        decoded = decode_to_engine(self._ends[0].recv())
        elapsed_s = time.perf_counter() - before_s
        use(decoded)
        return elapsed_s

    def close(self) -> None:
        for end in self._ends:
            end.close()
        self._context.term()


def adapter_at(directory: Path) -> Adapter:
    """The channel's name for a PEFT directory."""
    digest = digest_of(
        (directory / "adapter_config.json").read_bytes(),
        (directory / "adapter_model.safetensors").read_bytes(),
    )
    return Adapter(digest, str(directory), directory.name)


def device_name(device_type: str) -> str:
    if device_type.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"


def _check(result: StepResult) -> None:
    if result.failures:
        handle, error = result.failures[0]
        raise BenchError("REQUEST_FAILED", f"request {handle} failed: {str(error)[:500]}")
