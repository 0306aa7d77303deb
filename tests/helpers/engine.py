"""An engine in this process, without threads: adapters load at once, logits are recorded."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from dataplane.channel import Adapter, Sampling, Submit, TokenLogprobs
from dataplane.engine.engine import Engine
from dataplane.engine.graph_setup import GraphSetup
from dataplane.engine.memory_sizes import MemorySizes
from dataplane.engine.pipeline import DEPTH
from dataplane.engine.setup import adapter_builder, make_engine
from dataplane.engine_options import EngineOptions
from dataplane.lora.layout import HostAdapter
from dataplane.lora.loader import LoadResult
from dataplane.models.config_json import load_config
from dataplane.models.weights import load_weights
from dataplane.parallel.first import FirstRank
from dataplane.parallel.group import RankGroup
from dataplane.pool.pool import PagePool
from dataplane.text.invocation import last_place
from storage.adapter.manifest import parse_adapter
from storage.errors import SourceUnreadableError
from storage.loader import Residency

MAX_WAIT_S = 300.0


class InlineLoader:
    """Loads when asked. With `hold`, results wait until `release` is called."""

    def __init__(self, build, *, hold: bool = False) -> None:
        self._build = build
        self._results: list[LoadResult] = []
        self.hold = hold
        self.requests: list[str] = []
        self.failing: set[str] = set()  # sources that cannot be read now
        self.cancelled: list[str] = []
        self.pinned: set[str] = set()
        self.discarded: list[str] = []

    host_bytes = 1 << 30

    def request(
        self, adapter: Adapter, *, priority: float = 0.0, speculative: bool = False
    ) -> None:
        self.requests.append(adapter.digest)
        try:
            self._results.append(LoadResult(adapter.digest, self.load(adapter.source), None))
        except Exception as error:
            self._results.append(LoadResult(adapter.digest, None, error))

    def load(self, source: str) -> HostAdapter:
        if source in self.failing:
            raise SourceUnreadableError(f"{source} cannot be read")
        path = Path(source)
        return self._build(
            parse_adapter(
                (path / "adapter_config.json").read_bytes(),
                (path / "adapter_model.safetensors").read_bytes(),
            )
        )

    def results(self) -> list[LoadResult]:
        if self.hold:
            return []
        ended, self._results = self._results, []
        return ended

    def cancel(self, digest: str) -> None:
        self.cancelled.append(digest)

    def pin(self, digest: str) -> None:
        self.pinned.add(digest)

    def unpin(self, digest: str) -> None:
        self.pinned.discard(digest)

    def discard(self, digest: str) -> None:
        self.unpin(digest)
        self.discarded.append(digest)

    def residency(self) -> Residency:
        return Residency(frozenset(), frozenset())


class Rig:
    """An engine over a saved model. `logits[handle]`: one float32 row per generated token."""

    def __init__(
        self,
        model_dir: Path,
        *,
        num_pages: int = 512,
        page_tokens: int = 8,
        max_running: int = 64,
        max_batch_tokens: int = 96,
        max_waiting: int = 4096,
        max_context: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        pipeline_depth: int = DEPTH,
        graphs: GraphSetup | None = None,
        lora_stream: bool = False,
        tensor_parallel: int = 1,
        speculative_tokens: int = 0,
        prefix_cache: bool = True,
    ) -> None:
        """tensor_parallel: with more than 1, `close` at the end; one thread each."""
        model = config = load_config(model_dir)
        place = torch.device(device)
        options = EngineOptions(
            model_dir=str(model_dir),
            model_name="tiny",
            device=device,
            dtype=str(dtype).removeprefix("torch."),
            page_tokens=page_tokens,
            max_running=max_running,
            max_batch_tokens=max_batch_tokens,
            max_waiting=max_waiting,
            tensor_parallel=tensor_parallel,
            speculative_tokens=speculative_tokens,
            prefix_cache=prefix_cache,
            num_threads=tensor_parallel,
        )
        self.lost: list[str] = []
        self.ranks: FirstRank | None = None
        self._num_threads = torch.get_num_threads()
        if tensor_parallel > 1:
            self.ranks = FirstRank(
                options,
                MemorySizes(pool_bytes=1 << 30, host_bytes=1 << 30),
                model,
                place,
                self.lost.append,
            )
            config = self.ranks.shard.local
        shard = self.ranks.shard if self.ranks else None
        weights = load_weights(model_dir, model, dtype, place, shard)
        self.pool = PagePool(
            config,
            page_tokens=page_tokens,
            num_pages=num_pages,
            dtype=dtype,
            device=place,
            padding_page=graphs is not None,
        )
        self.loader = InlineLoader(
            adapter_builder("tiny", model, weights, self.pool, ranks=self.ranks)
        )
        context = max_context or config.max_position_embeddings
        self.engine: Engine = make_engine(
            options,
            config,
            weights,
            self.pool,
            self.loader,
            context,
            pipeline_depth=pipeline_depth,
            graphs=graphs,
            lora_stream=lora_stream,
            group=self._meet(options, context),
        )
        self.logits: dict[int, list[torch.Tensor]] = {}
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[TokenLogprobs]] = {}
        self.prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        self.finished: dict[int, str] = {}
        self.failed: dict[int, Exception] = {}
        self._record()

    def _meet(self, options: EngineOptions, context: int) -> RankGroup | None:
        if self.ranks is None:
            return None
        self.ranks.pool_bytes(options, 0)
        return self.ranks.meet(self.pool, context)

    def close(self) -> None:
        self.engine.close()
        if self.ranks is not None:
            self.ranks.close()
            torch.set_num_threads(self._num_threads)

    def submit(
        self,
        handle: int,
        prompt: list[int],
        adapter: Path | None = None,
        *,
        generated: list[int] | None = None,
        arrival_s: float = 0.0,
        deadline_s: float | None = None,
        cache_scope: str = "",
        **sampling: object,
    ) -> None:
        sampling.setdefault("max_tokens", 16)
        found = adapter_of(adapter) if adapter else None
        self.engine.submit(
            Submit(
                handle=handle,
                prompt=prompt,
                generated=generated or [],
                sampling=Sampling(**sampling),  # pyright: ignore[reportArgumentType]
                adapter=found,
                active_from=start_of(found, prompt),
                arrival_s=arrival_s,
                deadline_s=deadline_s,
                cache_scope=cache_scope,
            )
        )

    def step(self) -> None:
        result = self.engine.step()
        self.engine.check_integrity()
        for output in result.outputs:
            self.tokens.setdefault(output.handle, []).extend(output.token_ids)
            self.logprobs.setdefault(output.handle, []).extend(output.logprobs)
            self.prompt_logprobs.setdefault(output.handle, []).extend(output.prompt_logprobs)
            if output.finish:
                self.finished[output.handle] = output.finish
        for handle, error in result.failures:
            self.failed[handle] = error

    def run(self, max_steps: int = 5000) -> None:
        """Steps until nothing is left; then no page may be in use."""
        num_steps, end_s = 0, time.monotonic() + MAX_WAIT_S
        while self.engine.has_work and num_steps < max_steps and time.monotonic() < end_s:
            self.step()
            if self.engine.is_waiting_for_loads:
                time.sleep(0.001)  # grammars are compiled by another thread
            else:
                num_steps += 1
        assert not self.engine.has_work
        assert self.engine.stats().num_used_pages == 0
        for handle, rows in self.logits.items():  # a token may have been computed beyond the end
            del rows[len(self.tokens.get(handle, ())) :]

    def _record(self) -> None:
        """Keeps each step's logits by request."""
        decoder, batches = self.engine._decoder, self.engine._batches
        build, forward = batches.build, decoder.forward
        # By the batch: whose token each row is followed by, and the how manieth; the next one is
        # built meanwhile.
        handles: dict[int, list[tuple[int, int] | None]] = {}
        starts: dict[int, int] = {}

        def recording_build(chunks):
            batch = build(chunks)
            owners = handles[id(batch)] = []
            for chunk in chunks:
                handle, end = chunk.sequence.handle, chunk.end
                owners += [None] * chunk.num_scored
                first = starts.setdefault(handle, end - 1) if chunk.samples else 0
                owners += [(handle, at - first) for at in range(end - chunk.num_sampled, end)]
            return batch

        def recording_forward(batch, pool, page_tokens):
            logits = forward(batch, pool, page_tokens)
            for owner, row in zip(handles.pop(id(batch)), logits, strict=True):
                if owner is None:  # of a token of a prompt that is scored
                    continue
                rows = self.logits.setdefault(owner[0], [])
                del rows[owner[1] :]  # of drafts that were none
                rows.append(row.float().cpu())
            return logits

        batches.build = recording_build  # pyright: ignore[reportAttributeAccessIssue]
        decoder.forward = recording_forward  # pyright: ignore[reportAttributeAccessIssue]


def adapter_of(path: Path) -> Adapter:
    parsed = parse_adapter(
        (path / "adapter_config.json").read_bytes(),
        (path / "adapter_model.safetensors").read_bytes(),
    )
    manifest = parsed.manifest
    invocation = manifest.config.invocation_tokens
    return Adapter(manifest.digest, str(path), path.name, invocation_tokens=invocation)


def start_of(adapter: Adapter | None, prompt: list[int]) -> int:
    """From which position on it applies, as a frontend finds it."""
    if adapter is None or not adapter.invocation_tokens:
        return 0
    place = last_place(prompt, adapter.invocation_tokens)
    assert place >= 0
    return place
