"""Which sizes are captured, and which of them a step is replayed in."""

from __future__ import annotations

from dataplane.engine.graph_buckets import GraphBuckets, Variant


def test_sizes_go_up_to_the_largest_batch() -> None:
    def sizes(max_running: int) -> tuple[int, ...]:
        return GraphBuckets.of(max_running, 2048, 16, 512).sizes

    assert sizes(1) == (1,) and sizes(3) == (1, 2, 3) and sizes(4) == (1, 2, 4)
    assert sizes(20) == (1, 2, 4, 8, 16, 20)
    assert sizes(256) == (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
    assert sizes(400)[-4:] == (256, 320, 384, 400)


def test_the_least_bucket_that_holds_a_step_is_taken() -> None:
    buckets = GraphBuckets.of(8, 10_000, 16, 8)
    assert buckets.num_blocks == (512, 625) and buckets.ranks == (16, 64, 256)
    assert GraphBuckets.of(8, 8000, 16, 512).num_blocks == (500,)
    assert buckets.variant(3, 512) == Variant(4, 512)
    assert buckets.variant(8, 513, 16, 3) == Variant(8, 625, 16, 8)
    assert buckets.variant(1, 1, 17, 1) == Variant(1, 512, 64, 1)
    for beyond in ((9, 1), (1, 626), (1, 1, 257, 1), (4, 1, 16, 5)):
        assert buckets.variant(*beyond) is None
    sizes = [each.size for each in buckets.variants]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(buckets.variants)) == len(sizes) == 4 * 2 * 4
    assert {each.rank for each in buckets.variants} == {0, 16, 64, 256}


def test_rows_beyond_the_most_sequences_are_for_prompts() -> None:
    buckets = GraphBuckets.of(8, 10_000, 16, 512)
    assert buckets.prompt_sizes == (16, 32, 64, 128, 192) and buckets.most_rows == 192
    assert buckets.contexts == (128, 512, 625)
    assert buckets.variant(8, 600) == Variant(8, 625)
    assert buckets.variant(9, 128) == Variant(16, 128)
    assert buckets.variant(9, 129) is None and buckets.variant(193, 1) is None
    one, many = (buckets.variant(100, 1, 8, count) for count in (1, 8))
    assert one == Variant(128, 128, 16, 1) and one.is_shared
    assert many == Variant(128, 128, 16, 8)
    assert {one, many} <= set(buckets.variants)
    sizes = [each.size for each in buckets.variants]
    assert sizes == sorted(sizes, reverse=True) and len(set(buckets.variants)) == len(sizes)
    # Where so many tokens never meet in a step there are no graphs for them.
    assert GraphBuckets.of(64, 100, 16, 512).prompt_sizes == (128, 192, 256)
    assert GraphBuckets.of(64, 100, 16, 130).prompt_sizes == (128,)
    assert GraphBuckets.of(64, 100, 16, 64).prompt_sizes == ()
    assert GraphBuckets.of(1, 100, 16, 512).variants[0] == Variant(192, 7, 256, 1)


def test_few_adapters_of_many_rows_have_graphs_of_their_own() -> None:
    buckets = GraphBuckets.of(32, 100, 16, 32)
    one, few, many = (buckets.variant(30, 1, 8, count) for count in (1, 8, 9))
    assert one == Variant(32, 7, 16, 1) and one.is_shared
    assert few == Variant(32, 7, 16, 8) and not few.is_shared
    assert many == Variant(32, 7, 16, 32) and not many.is_shared
    small = buckets.variant(8, 1, 8, 1)
    assert small == Variant(8, 7, 16, 8) and not small.is_shared
    assert {one, few, many, small} <= set(buckets.variants)
    assert not any(each.is_shared for each in buckets.variants if not each.rank)
