"""What rank 0 tells, in which order, and what a worker does of it: no second process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from msgspec import structs

from dataplane.engine.batch import StepPlan
from dataplane.engine_options import EngineOptions
from dataplane.lora.layout import HostAdapter
from dataplane.models.config_json import load_config
from dataplane.models.decoder import Batch
from dataplane.models.weights import load_weights
from dataplane.parallel import ranks, worker
from dataplane.parallel.adapters import pack_shards
from dataplane.parallel.arena import SharedArena, mapped
from dataplane.parallel.messages import Clear, Copied, Install, Load, Remove
from dataplane.parallel.model import LoadedShard
from dataplane.parallel.ranks import Ranks
from dataplane.parallel.shard import Shard
from dataplane.pool.pool import PagePool, page_elems
from kernels.attention.metadata import Queries
from storage.adapter.manifest import parse_adapter
from tests.helpers.models import TARGETS, add_adapter, make_model, save_model

CPU = torch.device("cpu")
OPTIONS = EngineOptions(
    model_dir="", model_name="", tensor_parallel=2, page_tokens=8, fleet_token="secret"
)
NUM_PAGES = 40


class Adapter:
    """One that is packed for two ranks, in shared memory."""

    def __init__(self, folder: Path) -> None:
        model = make_model("llama")
        path = save_model(model, folder / "model")
        config = load_config(path)
        self.shards = [Shard(config, rank, 2) for rank in range(2)]
        base = load_weights(path, config, torch.float32, CPU, self.shards[0])
        modules = TARGETS["all-linear"]
        add_adapter(model, "a", folder / "a", rank=4, target_modules=modules, seed=1)
        parsed = parse_adapter(
            (folder / "a" / "adapter_config.json").read_bytes(),
            (folder / "a" / "adapter_model.safetensors").read_bytes(),
        )
        self.arena = SharedArena(1 << 20)
        elems = page_elems(self.shards[0].local, OPTIONS.page_tokens)
        self.host: HostAdapter = pack_shards(
            self.shards, base, parsed, self.arena, page_elems=elems, dtype=torch.float32
        )
        self.region = mapped(self.arena.descriptor, self.arena.num_bytes)
        num_bytes = self.host.pages.nbytes
        start = self.host.shared_offset + num_bytes
        second = self.region[start : start + num_bytes].view(torch.float32)
        self.second = second.view(self.host.pages.shape)  # the other rank's part
        self.page_ids = list(range(3, 3 + self.host.pages.shape[1]))

    def install(self, copy: int) -> Install:
        host = self.host
        return Install(copy, host.digest, host.layout, self.page_ids, host.shared_offset)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    made = Adapter(tmp_path_factory.mktemp("adapter"))
    yield made
    made.arena.close()


def plan_of(digest: str) -> StepPlan:
    spans = [(digest, 0, 2)]
    integers = np.array([0, 1], dtype=np.int64)
    queries = [Queries(0, 2, 2, [0])]
    return StepPlan(integers, integers, integers * 0, integers[1:], queries, spans, spans)


class Follower:
    """A worker's, of rank 1, whose forward pass only waits for layers and looks at the pool."""

    def __init__(self, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[Any] = []
        self.seen: list[torch.Tensor] = []
        monkeypatch.setattr(worker, "RankGroup", lambda *_: None)
        monkeypatch.setattr(worker, "pickled", self.told.append)
        monkeypatch.setattr(LoadedShard, "make_decoder", lambda *_: self)
        shard = LoadedShard(OPTIONS, adapter.shards[1], CPU, torch.float32, cast("Any", None))
        self.pool: PagePool = shard.make_pool(NUM_PAGES)
        self._pages = adapter.page_ids
        connection = cast("Any", self)
        self.follower = worker._Follower(
            connection, shard, self.pool, Path("none"), 64, adapter.region
        )

    def send_bytes(self, _data: object) -> None: ...

    def forward(self, batch: Batch, pool: torch.Tensor, _page_tokens: int) -> None:
        for layer in range(len(pool)):
            if batch.wait is not None:
                batch.wait(layer)
            self.seen.append(pool[layer, self._pages].clone())

    def ran(self) -> None:
        while self.follower._flights:
            self.follower._flights.popleft().wait()


def test_a_worker_waits_for_its_own_copy_of_its_own_part(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Follower(adapter, monkeypatch)
    made.follower._take(adapter.install(1))
    made.follower._take(plan_of(adapter.host.digest))
    made.ran()
    assert torch.equal(torch.stack(made.seen), adapter.second)
    assert not torch.equal(adapter.second, adapter.host.pages)
    assert made.follower._adapters.progress() == [Copied(1, len(made.seen), 0)]
    assert made.follower._adapters.progress() == []


def test_a_copy_that_is_removed_ends_and_says_so(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Follower(adapter, monkeypatch)
    made.follower._take(adapter.install(7))
    assert [each.remaining_bytes > 0 for each in made.follower._adapters.progress()] == [True]
    made.follower._take(Remove(7, adapter.host.digest))
    made.follower._adapters.advance(1.0)
    assert not made.pool.data.any()
    assert [each.remaining_bytes for each in made.follower._adapters.progress()] == [0]
    made.follower._take(adapter.install(8))  # it may come back
    assert made.follower._adapters.held(adapter.host.digest).page_ids == adapter.page_ids


def test_a_page_that_is_taken_for_keys_and_values_is_zeroed(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Follower(adapter, monkeypatch)
    made.pool.data.fill_(float("nan"))
    made.follower._take(Clear([5, 9]))
    is_zero = (made.pool.data == 0).all(dim=2).all(dim=0)
    assert is_zero.nonzero().flatten().tolist() == [5, 9]


class ToldWorker:
    """In a worker's place: keeps what it is sent."""

    told: list[Any]

    def __init__(self, rank: int, _arena: int) -> None:
        self.rank = rank
        ToldWorker.told = []

    def send(self, data: Any) -> None:
        self.told.append(data)


def test_pages_are_zeroed_before_anything_else_may_come_there(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_Worker", ToldWorker)
    monkeypatch.setattr(ranks, "pickled", lambda message: message)
    first = Ranks(OPTIONS, -1, 0, lambda _why: None)
    pool = PagePool(
        adapter.shards[0].local,
        page_tokens=OPTIONS.page_tokens,
        num_pages=NUM_PAGES,
        dtype=torch.float32,
        device=CPU,
    )
    pool.mirror = first
    page = pool.take_block("somebody")
    first.install(adapter.host, adapter.page_ids)
    plan = plan_of(adapter.host.digest)
    first.step(plan)
    other = pool.take_block("somebody")
    first.step(plan)
    load, *told = ToldWorker.told
    assert isinstance(load, Load) and load.options == structs.replace(OPTIONS, fleet_token="")
    step = replace(plan, logit_spans=())  # heads are rank 0's
    assert told == [Clear([page or 0]), adapter.install(1), step, Clear([other or 0]), step]
    assert pool.num_bytes == 2 * pool.data.nbytes
    first._workers.clear()
    first.close()
