"""transformers and peft at work, in a process of their own.

Beside an engine in one process they were up to twice as slow as alone: the peer is to run at its
best. While one of them works the other only sleeps.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.errors import BenchError
from benchmarks.load.workload import FIRST_TOKEN_ID
from dataplane.channel import Adapter

_START_TIMEOUT_S = 1800.0  # peft is slow to load many adapters


class Peft:
    """A transformers model with adapters loaded by peft, greedy, never stopping early."""

    def __init__(
        self, model_dir: Path, adapters: Sequence[Adapter], *, dtype: torch.dtype, vocab_size: int
    ) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)
        first, *others = adapters
        # peft keeps adapters in float32 unless told; the peer is to run at its best.
        as_stored: dict[str, Any] = {"autocast_adapter_dtype": False}
        self._model = PeftModel.from_pretrained(
            base, first.source, adapter_name=first.name, **as_stored
        )
        for adapter in others:
            self._model.load_adapter(adapter.source, adapter_name=adapter.name, **as_stored)
        self._model.to(dtype).eval()
        self._vocab_size = vocab_size
        self._prompts = count()

    def base(self, num_rows: int, prompt_tokens: int, new_tokens: int) -> None:
        with self._model.disable_adapter():
            self._generate(num_rows, prompt_tokens, new_tokens)

    def mixed(self, names: Sequence[str], prompt_tokens: int, new_tokens: int) -> None:
        """One batch, a row for each name."""
        self._generate(len(names), prompt_tokens, new_tokens, adapter_names=list(names))

    def switching(self, names: Sequence[str], prompt_tokens: int, new_tokens: int) -> None:
        """One request after the other, each under its adapter."""
        for name in names:
            self._model.set_adapter(name)
            self._generate(1, prompt_tokens, new_tokens)

    def _generate(self, num_rows: int, prompt_tokens: int, new_tokens: int, **options: Any) -> None:
        from transformers import GenerationConfig

        exactly = GenerationConfig(
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
        )
        generator = np.random.default_rng((11, next(self._prompts)))
        shape = (num_rows, prompt_tokens)
        prompts = torch.from_numpy(generator.integers(FIRST_TOKEN_ID, self._vocab_size, shape))
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of eos and pad ids, which nothing here depends on
            made = self._model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                generation_config=exactly,
                **options,
            )
        assert made.shape == (num_rows, prompt_tokens + new_tokens), made.shape


class PeftProcess:
    """Work as `Peft` does it there; each call returns its seconds."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def base(self, num_rows: int, prompt_tokens: int, new_tokens: int) -> float:
        return self._call("base", num_rows, prompt_tokens, new_tokens)

    def mixed(self, names: Sequence[str], prompt_tokens: int, new_tokens: int) -> float:
        return self._call("mixed", list(names), prompt_tokens, new_tokens)

    def switching(self, names: Sequence[str], prompt_tokens: int, new_tokens: int) -> float:
        return self._call("switching", list(names), prompt_tokens, new_tokens)

    def _call(self, name: str, *arguments: object) -> float:
        self._connection.send((name, arguments))
        return _received(self._connection)


@contextmanager
def peft_process(
    model_dir: Path,
    adapters: Sequence[Adapter],
    *,
    dtype: torch.dtype,
    vocab_size: int,
    num_threads: int = 0,
) -> Generator[PeftProcess]:
    """num_threads: 0 for torch's default. Raises: BenchError when the process ends before its
    time."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    made = (model_dir, list(adapters), dtype, vocab_size, num_threads)
    process = context.Process(target=_serve, args=(theirs, *made), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(_START_TIMEOUT_S):
            raise BenchError("PEER_TOO_SLOW", f"peft did not load in {_START_TIMEOUT_S:g} s")
        _received(ours)
        yield PeftProcess(ours)
    finally:
        ours.close()
        process.join(5.0)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(
    connection: Connection,
    model_dir: Path,
    adapters: Sequence[Adapter],
    dtype: torch.dtype,
    vocab_size: int,
    num_threads: int,
) -> None:
    torch.set_flush_denormal(True)
    if num_threads:
        torch.set_num_threads(num_threads)
    peft = Peft(model_dir, adapters, dtype=dtype, vocab_size=vocab_size)
    connection.send(0.0)
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        started_s = time.perf_counter()
        getattr(peft, name)(*arguments)
        connection.send(time.perf_counter() - started_s)


def _received(connection: Connection) -> Any:
    try:
        return connection.recv()
    except EOFError:
        raise BenchError("PEER_FAILED", "peft's process ended; its output says why") from None
