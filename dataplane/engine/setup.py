"""Building an engine from its options: model, pool, adapter tiers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from dataplane.channel import ModuleShape, Ready
from dataplane.engine.device_options import (
    cuda_pool_bytes,
    pick_device,
    pick_dtype,
)
from dataplane.engine.engine import Engine
from dataplane.engine.graph_setup import GraphSetup, graph_setup
from dataplane.engine.graphs import StepGraphs
from dataplane.engine.memory_sizes import MemorySizes, memory_sizes
from dataplane.engine.pipeline import DEPTH
from dataplane.engine.warm_up import compile_adapter_kernels
from dataplane.engine.warm_up import warm_up as warm_up_forward
from dataplane.engine_options import MAX_SPECULATIVE_TOKENS, EngineOptions
from dataplane.errors import DataPlaneError
from dataplane.lora.layout import HostAdapter, pack
from dataplane.lora.loader import AdapterLoader, ThreadedLoader
from dataplane.lora.pinned_arena import HostBlock, PinnedArena, arena_bytes, pinned_block
from dataplane.models.config import ModelConfig
from dataplane.models.config_json import load_config
from dataplane.models.decoder import Decoder
from dataplane.models.shapes import layer_modules, mixture_modules, module_layers, outer_modules
from dataplane.models.weights import ModelWeights, fingerprint, load_weights
from dataplane.parallel.first import FirstRank
from dataplane.parallel.group import RankGroup
from dataplane.pool.pool import PagePool, page_elems, pages_in
from kernels.cpu.warm_up import warm_up
from kernels.gpu.side_stream import SideStream
from storage.adapter.manifest import ParsedAdapter
from storage.adapter.match import check_base
from storage.base_model import BaseModelSpec
from storage.limits import AdapterLimits
from storage.machine import num_cores
from storage.pace import Pace
from storage.sources import SourceOptions

log = logging.getLogger(__name__)

_LOAD_SHARE = 0.06  # of a core, for a thread that loads adapters while steps need all cores


@dataclass
class EngineParts:
    engine: Engine
    ready: Ready
    loader: ThreadedLoader
    ranks: FirstRank | None = None  # to be closed after the engine

    def close(self) -> None:
        """Waits for what the engine launched, and ends all else. `loader` has been started."""
        self.engine.close()
        self.loader.stop()
        if self.ranks is not None:
            self.ranks.close()


def build_engine(
    options: EngineOptions,
    on_loaded: Callable[[], None],
    *,
    pipeline_depth: int = DEPTH,
    lora_stream: bool = True,
    on_rank_lost: Callable[[str], None] = log.error,
) -> EngineParts:
    """on_loaded: called from another thread when an adapter has reached host memory, or a grammar
    was compiled. lora_stream: as `make_engine` takes it. on_rank_lost: called from another thread
    when one of the ranks that share the model has ended: the engine is of no use then.

    Raises: ModelError, PoolTooSmallError, DataPlaneError for options that cannot work.
    """
    with ExitStack() as undo:
        parts = _build(options, on_loaded, pipeline_depth, lora_stream, on_rank_lost, undo)
        undo.pop_all()
        return parts


def _build(
    options: EngineOptions,
    on_loaded: Callable[[], None],
    pipeline_depth: int,
    lora_stream: bool,
    on_rank_lost: Callable[[str], None],
    undo: ExitStack,
) -> EngineParts:
    size = options.tensor_parallel
    device = pick_device(options.device, 0, size)
    model = config = load_config(Path(options.model_dir))
    dtype = pick_dtype(options.dtype, config, device)
    max_context = _max_context(options, config)
    sizes = memory_sizes(options, config, dtype, device)
    ranks = None
    if size > 1:
        ranks = FirstRank(options, sizes, model, device, on_rank_lost)
        undo.callback(ranks.kill)
        config = ranks.shard.local
    else:
        # torch does not know of a container's share of the processors.
        most = min(torch.get_num_threads(), num_cores())
        torch.set_num_threads(options.num_threads or most)
    if device.type == "cpu":
        warm_up(
            dtype,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            has_experts=config.experts is not None,
        )
    shard = ranks.shard if ranks is not None else None
    weights = load_weights(Path(options.model_dir), model, dtype, device, shard)
    graphs = graph_setup(options, device, max_context)
    pool_bytes = sizes.pool_bytes
    if not pool_bytes:
        taken = graphs.reserved_bytes(config, options.page_tokens, dtype) if graphs else 0
        pool_bytes = cuda_pool_bytes(device, taken)
    if ranks is not None:
        pool_bytes = ranks.pool_bytes(options, pool_bytes)
    pool = PagePool(
        config,
        page_tokens=options.page_tokens,
        num_pages=pages_in(model, pool_bytes, options.page_tokens, dtype, max_context),
        dtype=dtype,
        device=device,
        padding_page=graphs is not None,
    )
    if device.type == "cuda":
        compile_adapter_kernels(pool, config)
    group = ranks.meet(pool, max_context) if ranks else None
    pace = None
    if device.type == "cpu" and torch.get_num_threads() * size >= num_cores():
        pace = Pace(_LOAD_SHARE, lambda: False)
    block = pinned_block
    if device.type == "cuda" and ranks is None:
        with torch.cuda.device(device):
            block = PinnedArena(arena_bytes(sizes.host_bytes)).empty
    build = adapter_builder(options.model_name, model, weights, pool, block, ranks)
    loader = _loader(options, sizes, build, on_loaded, pace)
    engine = make_engine(
        options,
        config,
        weights,
        pool,
        loader,
        max_context,
        pipeline_depth=pipeline_depth,
        graphs=graphs,
        lora_stream=lora_stream,
        on_grammar=on_loaded,
        group=group,
    )
    if pace is not None:
        pace.is_needed = lambda: engine.is_running
    ready = _ready(options, model, pool, device, max_context)
    return EngineParts(engine, ready, loader, ranks)


def _loader(
    options: EngineOptions,
    sizes: MemorySizes,
    build: Callable[[ParsedAdapter], HostAdapter],
    on_loaded: Callable[[], None],
    pace: Pace | None,
) -> ThreadedLoader:
    return ThreadedLoader(
        build,
        sources=SourceOptions(
            roots=[Path(root) for root in options.adapter_roots],
            allowed=options.allowed_sources,
            private_hosts=options.private_hosts,
        ),
        limits=AdapterLimits(max_weights_bytes=options.max_adapter_bytes),
        control_plane=options.control_plane,
        fleet_token=options.fleet_token,
        fleet_tls=options.fleet_tls,
        host_bytes=sizes.host_bytes,
        disk_bytes=options.disk_cache_bytes,
        disk_dir=options.disk_cache_dir,
        on_result=on_loaded,
        pace=pace,
    )


def _ready(
    options: EngineOptions,
    model: ModelConfig,
    pool: PagePool,
    device: torch.device,
    max_context: int,
) -> Ready:
    """model: the whole one, also where `pool` is of one rank of several."""
    some_layers = module_layers(model)
    dtype = pool.data.dtype
    return Ready(
        model_name=options.model_name,
        fingerprint=fingerprint(model),
        num_layers=model.num_layers,
        layer_modules=[
            ModuleShape(name, wide, high, some_layers.get(name, ()))
            for name, (wide, high) in layer_modules(model).items()
        ],
        outer_modules=[ModuleShape(n, i, o) for n, (i, o) in outer_modules(model).items()],
        mixture_modules=[
            ModuleShape(name, each.in_features, each.out_features, each.layers, each.num_experts)
            for name, each in mixture_modules(model).items()
        ],
        vocab_size=model.vocab_size,
        max_context_tokens=max_context,
        eos_token_ids=list(model.eos_token_ids),
        num_pages=pool.num_pages,
        page_bytes=model.num_layers * page_elems(model, options.page_tokens) * dtype.itemsize,
        max_running=options.max_running,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
    )


def make_engine(
    options: EngineOptions,
    config: ModelConfig,
    weights: ModelWeights,
    pool: PagePool,
    loader: AdapterLoader,
    max_context: int,
    *,
    pipeline_depth: int = DEPTH,
    graphs: GraphSetup | None = None,
    lora_stream: bool = True,
    on_grammar: Callable[[], None] = lambda: None,
    group: RankGroup | None = None,
) -> Engine:
    """graphs: captured here; the pool must have a padding page then. lora_stream: a GPU runs
    adapters' products on a stream of their own, beside the base model's; only benchmarks turn it
    off. on_grammar: as Engine takes it. group: of ranks, this being the first; `config`, `weights`
    and `pool` are a shard's then.

    Raises: DataPlaneError for a scheduling option that is out of range.
    """
    if not options.priority_ageing_s > 0:
        raise _out_of_range("priority_ageing_s", options.priority_ageing_s, "above 0 s")
    if not options.max_cluster_delay_s >= 0:
        raise _out_of_range("max_cluster_delay_s", options.max_cluster_delay_s, "at least 0 s")
    if not 0 <= options.speculative_tokens <= MAX_SPECULATIVE_TOKENS:
        limits = f"0 to {MAX_SPECULATIVE_TOKENS}"
        raise _out_of_range("speculative_tokens", options.speculative_tokens, limits)
    has_stream = lora_stream and pool.device.type == "cuda" and group is None
    side = SideStream(pool.device) if has_stream else None
    decoder = Decoder(config, weights, max_context, side, group)
    if pool.device.type == "cuda":
        warm_up_forward(decoder, pool)
    captured = None
    if graphs is not None:
        captured = StepGraphs(decoder, pool, graphs.buckets, graphs.capture, options.max_running)
        captured.capture_all()
    return Engine(
        decoder,
        pool,
        loader,
        eos_token_ids=frozenset(config.eos_token_ids),
        max_context=max_context,
        max_running=options.max_running,
        max_batch_tokens=max(options.max_batch_tokens, options.max_running),
        max_waiting=options.max_waiting,
        speculative_tokens=options.speculative_tokens,
        prefix_cache=options.prefix_cache,
        max_cluster_delay_s=options.max_cluster_delay_s,
        priority_ageing_s=options.priority_ageing_s,
        pipeline_depth=pipeline_depth,
        graphs=captured,
        on_grammar=on_grammar,
    )


def adapter_builder(
    model_name: str,
    config: ModelConfig,
    weights: ModelWeights,
    pool: PagePool,
    block: Callable[[tuple[int, ...], torch.dtype], HostBlock] = pinned_block,
    ranks: FirstRank | None = None,
) -> Callable[[ParsedAdapter], HostAdapter]:
    """Checks an adapter against this very model once more, then packs it. block: where, with a
    GPU. ranks: packed for all of them, in memory that they share; `config` is the whole model's,
    weights and pool are this rank's."""
    spec = BaseModelSpec(
        model_name,
        config.num_layers,
        layer_modules(config),
        outer_modules(config),
        module_layers(config),
        mixture_modules(config),
    )

    # What DoRA and frozen copies are held against is read from the device: on the stream of steps
    # those would wait for it, a gigabyte for a head.
    stream = None
    if pool.data.is_cuda:
        stream = torch.cuda.Stream(pool.device)
        stream.wait_stream(torch.cuda.current_stream(pool.device))  # the weights are there

    def build(adapter: ParsedAdapter) -> HostAdapter:
        # Whether the name fits was decided at registration; shapes must fit here.
        check_base(adapter.manifest, spec, explicit_base=True)
        with torch.cuda.stream(stream):  # None: as it is
            if ranks is not None:
                return ranks.pack(weights, adapter, pool)
            return pack(
                config,
                weights,
                adapter,
                page_elems=pool.page_elems,
                dtype=pool.data.dtype,
                pool_pages=pool.num_pages,
                block=block if pool.data.is_cuda else None,
            )

    return build


def _max_context(options: EngineOptions, config: ModelConfig) -> int:
    limit = config.max_position_embeddings
    wanted = options.max_context_tokens or limit
    if not 2 <= wanted <= limit:
        raise DataPlaneError(
            "CONTEXT_OUT_OF_RANGE",
            f"--max-context-tokens {wanted}: the model takes 2 to {limit}",
            {"max_context_tokens": str(wanted), "limit": str(limit)},
        )
    return wanted


def _out_of_range(name: str, value: float, limits: str) -> DataPlaneError:
    return DataPlaneError(
        "OPTION_OUT_OF_RANGE",
        f"{name} is {value}; it must be {limits}",
        {"field": name, "value": str(value)},
    )
