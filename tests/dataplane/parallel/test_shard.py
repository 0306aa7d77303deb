"""What each rank holds: all parts together are the whole, and what cannot be cut is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dataplane.errors import AdapterRefusedError, DataPlaneError, UnsupportedModelError
from dataplane.lora.layout import HostAdapter
from dataplane.models.config import ModelConfig
from dataplane.models.config_json import load_config
from dataplane.models.shapes import layer_groups
from dataplane.models.weights import ModelWeights, load_weights
from dataplane.parallel.adapters import pack_shards
from dataplane.parallel.arena import SharedArena, mapped
from dataplane.parallel.shard import Shard
from storage.adapter.manifest import ParsedAdapter, parse_adapter
from storage.errors import TierError
from tests.helpers.models import (
    FUSED_TARGETS,
    TARGETS,
    VOCAB,
    add_adapter,
    make_model,
    read_config,
    save_model,
)

CPU = torch.device("cpu")


def shards_of(config: ModelConfig, size: int) -> list[Shard]:
    return [Shard(config, rank, size) for rank in range(size)]


def loaded(path: Path, config: ModelConfig, shard: Shard | None = None) -> ModelWeights:
    return load_weights(path, config, torch.float32, CPU, shard)


@pytest.fixture
def arena() -> Iterator[SharedArena]:
    made = SharedArena(1 << 20)
    yield made
    made.close()


def parsed(path: Path) -> ParsedAdapter:
    return parse_adapter(
        (path / "adapter_config.json").read_bytes(),
        (path / "adapter_model.safetensors").read_bytes(),
    )


def test_norms_over_all_heads_are_refused(tmp_path: Path) -> None:
    config = load_config(save_model(make_model("olmo2"), tmp_path / "model"))
    Shard(config, 0, 1)
    with pytest.raises(UnsupportedModelError, match="norms of the model's q and k") as error:
        Shard(config, 0, 2)
    assert error.value.reason == "TENSOR_PARALLEL_NORMS"


@pytest.mark.parametrize(
    ("field", "changes", "size"),
    [
        ("num_key_value_heads", {}, 4),
        ("num_attention_heads", {"num_heads": 6, "num_kv_heads": 4}, 4),
        ("intermediate_size", {"intermediate_size": 111}, 2),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused(
    field: str, changes: dict[str, int], size: int, tmp_path: Path
) -> None:
    config = load_config(save_model(make_model("llama"), tmp_path / "model"))
    with pytest.raises(UnsupportedModelError, match=field) as caught:
        Shard(replace(config, **changes), 0, size)  # pyright: ignore[reportArgumentType]
    assert caught.value.reason == "TENSOR_PARALLEL_MISFIT"
    assert caught.value.metadata["field"] == field
    assert caught.value.metadata["tensor_parallel"] == str(size)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "glm", "phi", "cohere"])
def test_shards_together_compute_what_the_whole_does(architecture: str, tmp_path: Path) -> None:
    """phi3: each of q, k, v, gate and up is cut within one fused module; phi: no gate, and a bias
    of the head; cohere: norms of each head."""
    biases = {"attention_bias": True, "mlp_bias": True} if architecture == "llama" else {}
    model = make_model(architecture, vocab_size=VOCAB + 1, num_key_value_heads=4, **biases)
    path = save_model(model, tmp_path / "model")
    config = load_config(path)
    whole = loaded(path, config)
    x = torch.randn(3, config.hidden_size)
    attended = torch.randn(3, config.q_size)
    channels = torch.randn(3, config.intermediate_size)
    heads: list[torch.Tensor] = []
    parts = [(shard, loaded(path, config, shard)) for shard in shards_of(config, 4)]
    for index, layer in enumerate(whole.layers):
        for name, sizes, rows in (
            ("qkv", (config.q_size, config.kv_size, config.kv_size), x),
            ("gate_up", (config.intermediate_size,) * (2 - (architecture == "phi")), x),
        ):
            weight, bias = layer.group(name)
            expected = torch.nn.functional.linear(rows, weight, bias).split(sizes, dim=1)
            computed = []
            for _, weights in parts:
                mine, mine_bias = weights.layers[index].group(name)
                out = torch.nn.functional.linear(rows, mine, mine_bias)
                computed.append(out.split([each // 4 for each in sizes], dim=1))
            for block, pieces in zip(expected, zip(*computed, strict=True), strict=True):
                torch.testing.assert_close(torch.cat(pieces, dim=1), block)
        for name, rows in (("o", attended), ("down", channels)):
            weight, bias = layer.group(name)
            total = torch.zeros(3, config.hidden_size)
            for (_, weights), columns in zip(parts, rows.chunk(4, dim=1), strict=True):
                total += torch.nn.functional.linear(columns, *weights.layers[index].group(name))
            torch.testing.assert_close(total, torch.nn.functional.linear(rows, weight, bias))
        for name in ("q_norm", "k_norm"):
            norm = getattr(layer, name)
            if norm is not None:
                cut = [getattr(weights.layers[index], name) for _, weights in parts]
                assert torch.equal(torch.cat(cut), norm)
    for shard, weights in parts:
        has_bias = architecture == "phi" and shard.is_first  # which has all logits
        assert (weights.head_bias is not None) == has_bias
        if whole.head_bias is not None and weights.head_bias is not None:
            assert torch.equal(weights.head_bias, whole.head_bias)
        heads.append(weights.head)
        assert torch.equal(weights.embed, whole.embed)
        assert torch.equal(weights.lm_head, whole.lm_head)  # what adapters are held against
        assert len(weights.head) == shard.head_rows
    together = torch.cat(heads)
    assert torch.equal(together[: config.vocab_size], whole.lm_head)
    assert not together[config.vocab_size :].any()


def test_more_ranks_than_the_vocabulary_fills(tmp_path: Path) -> None:
    config = load_config(save_model(make_model("llama"), tmp_path / "model"))
    config = replace(config, vocab_size=5, num_heads=4, num_kv_heads=4)
    rows = [shard.vocabulary for shard in shards_of(config, 4)]
    assert [list(range(5))[each] for each in rows] == [[0, 1], [2, 3], [4], []]


def applied(
    host: HostAdapter, pages: torch.Tensor, layer: int, group: str, x: torch.Tensor, width: int
) -> torch.Tensor:
    """What these pages add to the group's output."""
    y = torch.zeros(len(x), width)
    flat = pages[layer].reshape(-1)
    plan = host.layout.layers[layer].get(group)
    if plan is not None:
        a = flat[plan.a_offset :][: plan.total_rank * plan.in_features]
        h = x @ a.view(plan.total_rank, plan.in_features).t()
        for part in plan.slices:
            b = flat[part.b_offset :][: part.rank * part.out_features].view(part.rank, -1)
            mine = h[:, part.rank_start : part.rank_start + part.rank] @ b
            y[:, part.out_start : part.out_start + part.out_features] += mine
    return y


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_an_adapters_shards_together_add_what_it_adds(
    architecture: str, arena: SharedArena, tmp_path: Path
) -> None:
    model = make_model(architecture)
    path = save_model(model, tmp_path / "model")
    targets = FUSED_TARGETS if architecture == "phi3" else TARGETS
    targets = {"target_modules": targets["all-linear"], "rank": 5, "seed": 1}
    add_adapter(model, "a", tmp_path / "a", **targets)  # pyright: ignore[reportArgumentType]
    config, adapter = load_config(path), parsed(tmp_path / "a")
    shards = shards_of(config, 2)
    other_ranks_view = mapped(arena.descriptor, arena.num_bytes)
    base = loaded(path, config, shards[0])
    host = pack_shards(shards, base, adapter, arena, page_elems=256, dtype=torch.float32)
    whole = pack_shards(
        [Shard(config, 0, 1)], base, adapter, arena, page_elems=512, dtype=torch.float32
    )
    num_bytes = host.pages.nbytes
    pages = [
        other_ranks_view[host.shared_offset + rank * num_bytes :][:num_bytes]
        .view(torch.float32)
        .view(host.pages.shape)
        for rank in range(2)
    ]
    assert host.nbytes == 2 * num_bytes <= host.host_bytes
    groups = layer_groups(config, 0)
    blocks = {
        "qkv": (config.q_size, config.kv_size, config.kv_size),
        "gate_up": (config.intermediate_size,) * 2,
    }
    for layer in range(config.num_layers):
        for name, group in groups.items():
            x = torch.randn(3, group.in_features)
            expected = applied(whole, whole.pages, layer, name, x, group.out_features)
            assert expected.any()
            if name in blocks:
                outs = [
                    applied(host, each, layer, name, x, group.out_features // 2).split(
                        [width // 2 for width in blocks[name]], dim=1
                    )
                    for each in pages
                ]
                actual = torch.cat([part for pair in zip(*outs, strict=True) for part in pair], 1)
            else:
                actual = sum(
                    applied(host, each, layer, name, columns, group.out_features)
                    for each, columns in zip(pages, x.chunk(2, dim=1), strict=True)
                )
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("field", "changes"), [("use_dora", {"use_dora": True}), ("lora_bias", {"lora_bias": True})]
)
def test_what_cannot_be_cut_of_an_adapter_is_refused(
    field: str, changes: dict[str, bool], arena: SharedArena, tmp_path: Path
) -> None:
    model = make_model("llama")
    path = save_model(model, tmp_path / "model")
    add_adapter(model, "a", tmp_path / "a", rank=2, target_modules=["q_proj"], seed=1, **changes)
    assert read_config(tmp_path / "a")[field]
    config = load_config(path)
    shards = shards_of(config, 2)
    with pytest.raises(AdapterRefusedError, match=f"{field}.*--tensor-parallel 2") as caught:
        pack_shards(
            shards,
            loaded(path, config, shards[0]),
            parsed(tmp_path / "a"),
            arena,
            page_elems=256,
            dtype=torch.float32,
        )
    assert caught.value.metadata["field"] == field


def test_shared_memory_is_reused_and_its_end_is_told() -> None:
    arena = SharedArena(3 * 4096)
    kept = arena.block((4096,), torch.uint8).values
    for _ in range(10):
        block = arena.block((2 * 4096,), torch.uint8).values
        assert arena.offset_of(block) == 4096
        del block
    with pytest.raises(TierError) as caught:
        arena.block((3 * 4096,), torch.uint8)
    assert caught.value.reason == "HOST_MEMORY_FULL"
    assert arena.offset_of(kept) == 0
    arena.close()


def test_captured_steps_on_several_devices_are_refused() -> None:
    from dataplane.engine.graph_setup import graph_setup
    from dataplane.engine_options import EngineOptions

    options = EngineOptions(model_dir="", model_name="", tensor_parallel=2)
    cuda = torch.device("cuda")
    assert graph_setup(options, cuda, 64) is None
    asked = EngineOptions(model_dir="", model_name="", tensor_parallel=2, cuda_graphs=True)
    with pytest.raises(DataPlaneError, match="--tensor-parallel 2"):
        graph_setup(asked, cuda, 64)
