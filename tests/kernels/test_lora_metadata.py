"""Segments as the Triton kernels read them: cut into tiles, and refused where they do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kernels.lora.bucket import AdapterRows, LoraBucket, max_tiles, row_alignment, tile_map
from kernels.lora.extras import AFFINE_ROW, AffineSlice, affine_row
from kernels.lora.metadata import LoraBatchMetadata
from kernels.lora.plan import (
    PLAN_ROW,
    ExpandSlice,
    GroupPlan,
    LoraSpans,
    PageRun,
    plan_row,
)
from kernels.lora.read_back import segments_of
from kernels.lora.tuning import TABLE, parse_tiles, tile_width, tiles_of

CPU = torch.device("cpu")
BUCKET = LoraBucket(64, 4, 8, 32, max_segment_tokens=32, alignment=8)


def spans_of(*spans: tuple[int, int]) -> LoraSpans:
    runs = [PageRun.of([3 * at, 3 * at + 1]) for at in range(len(spans))]
    return LoraSpans.of(list(spans), runs)


def rows_of(n: int, rank: int = 8, offset: int = 0) -> np.ndarray:
    plan = GroupPlan(rank, 64, offset, (ExpandSlice(0, rank, offset + 64 * rank, 0, 64),))
    return np.array([[[plan_row(plan)] * n]])


@pytest.mark.parametrize("block", [1, 16, 64])
def test_tiles_cover_each_token_of_a_segment_once(block: int) -> None:
    generator = np.random.default_rng(block)
    for _ in range(20):
        edges = np.sort(generator.choice(400, size=2 * generator.integers(1, 12), replace=False))
        spans = edges.reshape(-1, 2)
        tiles = tile_map(spans, block)
        owner = np.full(400, -1)
        for segment, first, count, _ in tiles:
            assert 0 < count <= block
            assert (owner[first : first + count] == -1).all()
            owner[first : first + count] = segment
        for segment, (start, end) in enumerate(spans):
            assert (owner[start:end] == segment).all()
        assert (owner >= 0).sum() == (spans[:, 1] - spans[:, 0]).sum()
        bucket = BUCKET._replace(max_tokens=int(edges[-1]), max_segments=len(spans))
        assert len(tiles) <= max_tiles(bucket, block)


def test_alignment_is_that_of_all_offsets_and_columns_but_not_of_ranks() -> None:
    assert row_alignment(rows_of(3, rank=7), PLAN_ROW) == 8
    assert row_alignment(rows_of(3, offset=4), PLAN_ROW) == 1
    mixed = np.concatenate((rows_of(3), rows_of(1, offset=1)), axis=2)
    assert row_alignment(mixed, PLAN_ROW) == 1
    for part, alignment in (
        (AffineSlice(-1, 16, 0, 8), 8),
        (AffineSlice(16, -1, 8, 24), 8),
        (AffineSlice(-1, 17, 0, 8), 1),
        (AffineSlice(-1, 16, 0, 7), 1),
    ):
        assert row_alignment(np.array([[[affine_row([part])]]]), AFFINE_ROW) == alignment


def test_only_whole_vectors_of_an_aligned_batch_are_read_at_once() -> None:
    aligned = LoraBatchMetadata.of(spans_of((0, 1)), rows_of(1), CPU)
    assert [aligned.alignment_for(64, size, 512) for size in (2, 4)] == [8, 4]
    assert aligned.alignment_for(68, 2, 512) == 1
    assert aligned.alignment_for(64, 2, 516) == 1
    odd = LoraBatchMetadata.of(spans_of((0, 1)), rows_of(1, offset=2), CPU)
    assert odd.alignment_for(64, 2, 512) == 1


@pytest.mark.parametrize(
    ("name", "spans", "rows"),
    [
        ("max_tokens", spans_of((60, 65)), rows_of(1)),
        ("max_segments", spans_of(*((at, at + 1) for at in range(5))), rows_of(5)),
        ("max_total_rank", spans_of((0, 1)), rows_of(1, rank=33)),
        ("max_segment_tokens", spans_of((0, 33)), rows_of(1)),
        ("alignment", spans_of((0, 1)), rows_of(1, offset=1)),
    ],
)
def test_a_step_that_its_bucket_cannot_hold_is_refused(
    name: str, spans: LoraSpans, rows: np.ndarray
) -> None:
    metadata = LoraBatchMetadata(BUCKET, 1, 1, CPU)
    metadata.fill(spans_of((0, 32), (32, 64)), rows_of(2, rank=32))
    with pytest.raises(ValueError, match=f"step's {name} is"):
        metadata.fill(spans, rows)
    with pytest.raises(ValueError, match="max_pages is 10, the bucket's 8"):
        LoraBatchMetadata(BUCKET._replace(max_segments=5), 1, 1, CPU).fill(
            spans_of(*((at, at + 1) for at in range(5))), rows_of(5)
        )


@pytest.mark.parametrize("spans", [[(0, 2), (1, 3)], [(2, 3), (0, 1)], [(1, 1)], [(-1, 1)]])
def test_bad_spans_are_refused(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="overlaps or leaves"):
        LoraBatchMetadata(BUCKET, 1, 1, CPU).fill(spans_of(*spans), rows_of(len(spans)))


def test_the_table_is_whole_and_its_tiles_fit_together() -> None:
    table = json.loads(TABLE.read_text())
    assert {"default", "sm_80", "sm_90", "gfx942"} <= table.keys()
    for entry in table.values():
        assert entry["from"]
        tiles = parse_tiles(entry["tiles"])
        assert tiles.regime(1) is tiles.decode
        assert tiles.regime(tiles.decode.block_tokens) is tiles.decode
        assert tiles.regime(tiles.decode.block_tokens + 1) is tiles.shared
        assert tiles.regime(tiles.shared.block_tokens + 1) is tiles.prefill
        for regime in tiles:
            shrink, expand = regime.shrink, regime.expand
            sizes = [regime.block_tokens, shrink.block_rank, shrink.block_k, expand.block_rank]
            sizes += [expand.block_out, regime.affine.block_out]
            # Powers of two that a product on tensor cores takes, after tile_width's halving too.
            assert all(size & (size - 1) == 0 and size >= 16 for size in sizes)
            assert min(shrink.block_k, expand.block_out) >= 32
            assert shrink.k_per_split % shrink.block_k == 0
    assert tiles_of("sm_123") == tiles_of("default")


@pytest.mark.parametrize(
    ("itemsize", "page_elems", "align", "width"),
    [(2, 4096, 8, 256), (4, 4096, 4, 128), (2, 4096, 1, 128), (2, 208, 8, 128), (2, 67, 1, 64)],
)
def test_a_tile_is_no_wider_than_a_page(
    itemsize: int, page_elems: int, align: int, width: int
) -> None:
    assert tile_width(256, itemsize, page_elems, align) == width


def held(metadata: LoraBatchMetadata) -> torch.Tensor:
    return metadata._buffer.clone()


def test_rows_made_once_fill_as_arrays_do() -> None:
    rows = np.concatenate([rows_of(1, rank=rank) for rank in (3, 8)], axis=2)
    spans = spans_of((0, 2), (5, 6))
    by_array, by_adapter = (LoraBatchMetadata(BUCKET, 1, 1, CPU) for _ in range(2))
    by_array.fill(spans, rows)
    adapters = [AdapterRows.of(rows[:, :, at], PLAN_ROW) for at in range(2)]
    assert [(each.alignment, each.max_total_rank) for each in adapters] == [(8, 3), (8, 8)]
    by_adapter.fill(spans, adapters)
    assert torch.equal(held(by_array), held(by_adapter))
    group = by_adapter.group(0, 0)
    assert group.rows[:2].tolist() == rows[0, 0].tolist()
    assert by_adapter.page_indptr[:2].tolist() == [0, 2]
    assert by_adapter.page_ids[:4].tolist() == [0, 1, 3, 4]


def test_a_step_is_sent_only_when_something_changed() -> None:
    metadata = LoraBatchMetadata(BUCKET, 1, 1, CPU)
    adapters = [AdapterRows.of(rows_of(1, rank=rank)[:, :, 0], PLAN_ROW) for rank in (3, 8)]
    spans = spans_of((0, 2), (5, 6))
    metadata.fill(spans, adapters)
    filled = held(metadata)
    metadata._buffer.fill_(-7)

    def sends(spans: LoraSpans, adapters: list[AdapterRows]) -> bool:
        metadata.fill(spans, adapters)
        sent = bool((metadata._buffer != -7).any())
        metadata._buffer.fill_(-7)
        return sent

    assert not sends(spans, list(adapters))
    same = LoraSpans.of([(0, 2), (5, 6)], list(spans.runs))
    assert not sends(same, adapters)
    assert sends(LoraSpans.of([(0, 2), (4, 6)], list(spans.runs)), adapters)
    assert sends(same, adapters[::-1])
    assert sends(LoraSpans.of([(0, 2), (5, 6)], list(spans.runs[::-1])), adapters[::-1])
    assert sends(LoraSpans.of([(0, 2)], [spans.runs[0]]), adapters[:1])
    metadata.fill(spans, adapters)
    step = filled != -1
    assert torch.equal(held(metadata)[step], filled[step])


def test_a_narrower_grid_reads_the_same_buffer() -> None:
    bucket = BUCKET._replace(max_segments=64, max_segment_tokens=64)
    metadata = LoraBatchMetadata(bucket, 2, 3, CPU, regime=tiles_of("default").decode)
    assert metadata.regime is tiles_of("default").decode
    narrow = metadata.narrowed(max_tokens=6, max_total_rank=17)
    assert (narrow.num_tiles, narrow.max_total_rank) == (6, 32)
    assert narrow.tiles.data_ptr() == metadata.tiles.data_ptr()
    rows = np.zeros((2, 3, 1, PLAN_ROW.num_fields), dtype=np.int64)
    rows[1, 2] = rows_of(1, rank=5)[0, 0]
    metadata.fill(spans_of((1, 4)), rows)
    assert narrow.tiles[:2].tolist() == [[0, 1, 3, 0], [-1, -1, -1, -1]]
    for layer, at in [(0, 0), (1, 1), (1, 2)]:
        assert narrow.group(layer, at).rows[0].tolist() == rows[layer, at, 0].tolist()
    (segment,) = segments_of(narrow.group(1, 2), 64)
    assert segment[:2] == (1, 4) and segment.pages.ids[:2].tolist() == [0, 1]
    assert segment.plan == GroupPlan(5, 64, 0, (ExpandSlice(0, 5, 320, 0, 64),))
    assert segments_of(narrow.group(0, 0), 64) == []
