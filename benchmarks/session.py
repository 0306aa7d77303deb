"""An engine in this process, driven to the end of what it was given, and where its time went."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
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
    EngineOptions,
    Outputs,
    Sampling,
    Submit,
    decode_to_engine,
    encode,
)
from dataplane.engine.engine import StepResult
from dataplane.engine.setup import build_engine
from storage.adapter.manifest import digest_of

_LOAD_POLL_S = 0.0005


@dataclass
class Times:
    """Of one closed loop, in seconds. steps: pairs (whole step, of which the model's forward pass);
    full_steps: whole steps in which every stream got a token. channel_s: encoding, sending and
    decoding what goes between frontend and engine."""

    elapsed_s: float = 0.0
    num_tokens: int = 0
    steps: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    full_steps: list[float] = field(default_factory=list[float])
    channel_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.elapsed_s

    @property
    def full_step_s(self) -> float | None:
        return statistics.median(self.full_steps) if self.full_steps else None

    @property
    def overhead_share(self) -> float:
        """Of the step time with its share of the channel: all that is not the forward pass, which
        is scheduling, building the batch, sampling, bookkeeping and the channel."""
        whole = sum(step for step, _ in self.steps) + self.channel_s
        forward = sum(forward for _, forward in self.steps)
        return (whole - forward) / whole if whole else 0.0


class Session:
    """Owns an engine; `stop` must be called. Every closed loop ends with the pool proven."""

    def __init__(self, options: EngineOptions, *, vocab_size: int) -> None:
        self.parts = build_engine(options, on_loaded=lambda: None)
        self.parts.loader.start()
        self._vocab_size = vocab_size
        self._handles = count()
        self._forward_s = 0.0
        self._channel = _Channel()
        self._time_forward(self.parts.engine)

    def stop(self) -> None:
        self.parts.loader.stop()
        self._channel.close()

    def closed_loop(
        self, adapters: Sequence[Adapter | None], *, prompt_tokens: int, new_tokens: int
    ) -> Times:
        """One request for each of `adapters`, all at once, to the end. Prompts are random and new
        each time, so that no cache knows them.

        Raises: BenchError when a request fails or the pool's books are wrong.
        """
        engine, times = self.parts.engine, Times()
        submits = [
            self._submit(each, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
            for each in adapters
        ]
        started_s = time.perf_counter()
        for submit in submits:
            times.channel_s += self._channel.receive(submit, engine.submit)
        while engine.has_work:
            self._step(times, len(adapters))
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

    def _step(self, times: Times, num_streams: int) -> None:
        engine = self.parts.engine
        self._forward_s = 0.0
        before_s = time.perf_counter()
        result = engine.step()
        step_s = time.perf_counter() - before_s
        _check(result)
        if not self._forward_s and not result.outputs:
            if engine.is_waiting_for_loads:
                time.sleep(_LOAD_POLL_S)
            return
        times.steps.append((step_s, self._forward_s))
        num_tokens = sum(len(output.token_ids) for output in result.outputs)
        times.num_tokens += num_tokens
        if num_tokens == num_streams:
            times.full_steps.append(step_s)
        times.channel_s += self._channel.send(Outputs(result.outputs))

    def _submit(self, adapter: Adapter | None, *, prompt_tokens: int, new_tokens: int) -> Submit:
        handle = next(self._handles)
        ids = np.random.default_rng((7, handle)).integers(
            FIRST_TOKEN_ID, self._vocab_size, size=prompt_tokens
        )
        return Submit(
            handle=handle,
            prompt=ids.tolist(),
            sampling=Sampling(max_tokens=new_tokens, ignore_eos=True),
            adapter=adapter,
            arrival_s=time.monotonic(),
        )

    def _time_forward(self, engine: Any) -> None:
        """Times the forward passes of this one engine, its device's work included."""
        decoder = engine._decoder
        forward: Callable[..., torch.Tensor] = decoder.forward
        synchronize = (
            torch.cuda.synchronize if self.parts.ready.device.startswith("cuda") else lambda: None
        )

        def timed(*arguments: Any, **options: Any) -> torch.Tensor:
            before_s = time.perf_counter()
            logits = forward(*arguments, **options)
            synchronize()
            self._forward_s += time.perf_counter() - before_s
            return logits

        decoder.forward = timed


class _Channel:
    """The frontend's socket pair, both ends here: what the engine's side of it costs."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._ends = [self._context.socket(zmq.PAIR) for _ in range(2)]
        for end in self._ends:
            end.set_hwm(HIGH_WATER_MARK)
            end.setsockopt(zmq.LINGER, 0)
        port = self._ends[0].bind_to_random_port("tcp://127.0.0.1")
        self._ends[1].connect(f"tcp://127.0.0.1:{port}")

    def send(self, message: object) -> float:
        """Seconds that encoding and sending took; taking it out again is the other side's."""
        before_s = time.perf_counter()
        self._ends[0].send(encode(message))
        elapsed_s = time.perf_counter() - before_s
        self._ends[1].recv()
        return elapsed_s

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
