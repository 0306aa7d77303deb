"""The Triton kernels of LoRA under Triton's interpreter: see tests/kernels/interpreter.py.

Small tiles, so that small matrices have several blocks of everything, with tails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from kernels.lora import metadata, triton_affine, triton_expand, triton_shrink
from kernels.lora.extras import AFFINE_ROW, AffineSegment, AffineSlice, affine_row, lora_affine
from kernels.lora.metadata import LoraBatchMetadata, LoraBucket
from kernels.lora.op import lora_apply, lora_expand, lora_shrink
from kernels.lora.plan import LoraSpans, PageRun, Segment, plan_row
from kernels.lora.triton_warm_up import warm_up
from kernels.lora.tuning import AffineTile, ExpandTile, LoraTiles, Regime, ShrinkTile
from tests.kernels.lora_cases import LoraCase, Part, Shape

REGIME = Regime(16, ShrinkTile(16, 32, 64, 4, 1), ExpandTile(16, 32, 4, 1), AffineTile(32, 4))
TILES = LoraTiles(REGIME, *[REGIME._replace(block_tokens=32)] * 2)
ALIGNED = Shape(in_features=152, outs=(56, 24, 24), page_elems=208)
ODD = Shape(in_features=75, outs=(45, 17), page_elems=67)
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32

DECODE = [
    Part(1, (8, 8, 8)),
    Part(2),
    Part(1, (1, 0, 20)),
    Part(16, (3, 5, 0)),
    Part(1, (0, 0, 33)),
]
PREFILL = [
    Part(1),
    Part(70, (8, 0, 8)),
    Part(1, (16, 16, 16)),
    Part(1, (0, 2, 0)),
    Part(33, (1, 1, 40)),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "lora_tiles", lambda device: TILES)


@pytest.fixture(autouse=True)
def nan_in_new_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def applied(case: LoraCase, segments: object = None, base: torch.Tensor | None = None) -> None:
    base = case.base if base is None else base
    y = base.clone()
    lora_apply(y, case.x, case.layer_pages, case.segments if segments is None else segments)
    case.check(y, base)


@pytest.mark.parametrize(
    ("parts", "dtype"),
    [
        (DECODE, BFLOAT16),
        (DECODE, FLOAT16),
        (DECODE, FLOAT32),
        (PREFILL, BFLOAT16),
        (PREFILL, FLOAT32),
    ],
)
def test_any_mix_of_lengths_ranks_and_projections(parts: list[Part], dtype: torch.dtype) -> None:
    applied(LoraCase(ALIGNED, parts, dtype))


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1, 1], [19], [1], [2, 1]])
def test_any_skew(lengths: list[int]) -> None:
    applied(LoraCase(ALIGNED, [Part(n, (4, 4, 4)) for n in lengths], BFLOAT16, seed=1))


@pytest.mark.parametrize("ranks", [(256, 1), (1, 256)])
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_rank_256_and_1(ranks: tuple[int, int], num_tokens: int) -> None:
    shape = Shape(32, (32, 32), 1024)
    applied(LoraCase(shape, [Part(num_tokens, ranks), Part(1, (1, 1))], FLOAT32))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
@pytest.mark.parametrize("num_tokens", [1, 18])
def test_odd_sizes_and_offsets_over_narrow_pages(num_tokens: int, dtype: torch.dtype) -> None:
    """Nothing is aligned, and rows are longer than a page."""
    parts = [Part(num_tokens, (5, 17)), Part(1), Part(num_tokens, (2, 0))]
    applied(LoraCase(ODD, parts, dtype, offset=13))


@pytest.mark.parametrize("num_tokens", [1, 4])
def test_the_intermediate_stays_float32(num_tokens: int) -> None:
    """y cancels what the adapter adds, so that a rounded h would show."""
    case = LoraCase(ALIGNED, [Part(num_tokens, (16, 16, 16))], BFLOAT16)
    base = (-case.delta).to(BFLOAT16)
    y = base.clone()
    lora_apply(y, case.x, case.layer_pages, case.segments)
    residue = base.double() + case.delta
    torch.testing.assert_close(y.double(), residue, rtol=2**-7, atol=1e-4)


def test_a_captured_launch_serves_later_steps() -> None:
    """One bucket, its tensors filled with one step after another, and never moved."""
    bucket = LoraBucket(80, 4, 100, 20, max_segment_tokens=80, alignment=8)
    filled = LoraBatchMetadata(bucket, 2, 1, torch.device("cpu"))
    group = filled.group(1, 0)
    before = [t.data_ptr() for t in (filled.tiles, filled.page_indptr, filled.page_ids, group.rows)]
    y = torch.randn(3, ALIGNED.out_features)
    untouched = y.clone()
    pages = torch.full((1, ALIGNED.page_elems), float("nan"))
    lora_apply(y, torch.full((3, ALIGNED.in_features), float("nan")), pages, group)
    assert torch.equal(y, untouched)  # nothing is filled in yet
    steps = [
        [Part(40, (4, 4, 0)), Part(2, (1, 0, 0))],
        [Part(1, (0, 0, 20)), Part(3, (2, 2, 2)), Part(1, (1, 1, 1))],
    ]
    for seed, parts in enumerate(steps):
        case = LoraCase(ALIGNED, [*parts, Part(1)], FLOAT32, seed=seed)
        rows = np.array([plan_row(s.plan) for s in case.segments])
        filled.fill(
            LoraSpans.of([s[:2] for s in case.segments], [s.pages for s in case.segments]),
            np.stack([np.zeros_like(rows), rows])[:, None],
        )
        applied(case, group)
        y = case.base.clone()
        lora_apply(y, case.x, case.layer_pages, filled.group(0, 0))
        assert torch.equal(y, case.base)  # no adapter has this layer's group
    after = [t.data_ptr() for t in (filled.tiles, filled.page_indptr, filled.page_ids, group.rows)]
    assert before == after and filled.num_tiles == 6


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_shrinks_over_column_slices_add_up(num_tokens: int) -> None:
    """lm_head's way: columns of the input lie in different layers' pages."""
    wide = LoraCase(Shape(90, (40,), 256), [Part(1), Part(num_tokens, (6,))], FLOAT32, seed=3)
    narrow = LoraCase(Shape(30, (40,), 256), [Part(1), Part(num_tokens, (6,))], FLOAT32, seed=4)
    x = torch.cat((wide.x, narrow.x), dim=1)
    hidden = lora_shrink(x[:, :90], wide.layer_pages, wide.segments)
    hidden = lora_shrink(x[:, 90:], narrow.layer_pages, narrow.segments, hidden)
    y = torch.full((num_tokens + 1, 100), float("nan"))
    columns = y[:, 33:73]
    columns[:] = wide.base
    lora_expand(columns, hidden, wide.layer_pages, wide.segments)
    (segment,), (other,) = wide.segments, narrow.segments
    flat = wide.layer_pages[segment.pages.ids].view(-1)
    b = flat[6 * 90 :][: 6 * 40].view(6, 40)
    a = narrow.layer_pages[other.pages.ids].view(-1)[: 6 * 30].view(6, 30)
    wide.delta[1:] += (narrow.x[1:] @ a.T @ b).double()
    wide.check(columns, wide.base)
    assert y[:, :33].isnan().all() and y[:, 73:].isnan().all()
    with pytest.raises(ValueError, match="widest part"):
        lora_shrink(wide.x, wide.layer_pages, wide.segments, torch.empty(1, len(x), 16))


def test_a_batch_without_adapters() -> None:
    case = LoraCase(ALIGNED, [Part(3)], FLOAT32)
    applied(case)
    bucket = LoraBucket(16, 2, 40, 16, max_segment_tokens=1, alignment=8)
    filled = LoraBatchMetadata(bucket, 1, 1, torch.device("cpu"))
    before = LoraCase(ALIGNED, [Part(1, (1, 1, 1))], FLOAT32)
    rows = np.array([[[plan_row(s.plan) for s in before.segments]]])
    spans = LoraSpans.of([(0, 1)], [before.segments[0].pages])
    filled.fill(spans, rows)
    filled.fill(LoraSpans.of([], []), rows[:, :, :0])
    applied(case, filled.group(0, 0))


def test_warming_up_launches_every_variant_and_touches_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launched: set[tuple[object, ...]] = set()

    class Recorded:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def launch(*tensors: object, **constants: object) -> None:
                assert math.prod(grid) > 0
                names = ("ALIGN", "BLOCK_TOKENS", "ACCUMULATE")
                launched.add((self.kernel.__name__, *map(constants.get, names)))
                self.kernel[grid](*tensors, **constants)

            return launch

    for module, name in (
        (triton_shrink, "shrink_kernel"),
        (triton_expand, "expand_kernel"),
        (triton_affine, "affine_kernel"),
    ):
        monkeypatch.setattr(module, name, Recorded(getattr(module, name)))
    pages = torch.full((1, 256), float("nan"), dtype=BFLOAT16)
    warm_up(pages, [(64, 96), (96, 64)])
    assert pages.isnan().all()
    for align in (1, 8):
        for block in (16, 32):
            assert {
                ("shrink_kernel", align, block, False),
                ("shrink_kernel", align, block, True),
                ("expand_kernel", align, block, None),
                ("affine_kernel", align, block, None),
            } <= launched


def affine_case(
    lengths: list[int], dtype: torch.dtype
) -> tuple[torch.Tensor, list[AffineSegment], torch.Tensor, torch.Tensor]:
    """Pages, segments, y, and what y must become. Pages are narrower than a vector."""
    generator = torch.Generator().manual_seed(7)
    layer_pages = torch.full((6 * len(lengths), 40), float("nan"), dtype=dtype)
    y = torch.randn(sum(lengths) + 2, 150, generator=generator).to(dtype)
    expected, segments, start = y.double(), [], 1
    for index, length in enumerate(lengths):
        vectors = torch.randn(3, 61, generator=generator).to(dtype)
        ids = [6 * index + at for at in (5, 2, 0, 4, 1)]
        flat = torch.full((200,), float("nan"), dtype=dtype)
        flat[9 : 9 + 183] = vectors.view(-1)
        layer_pages[ids] = flat.view(5, 40)
        slices = (
            AffineSlice(9, 9 + 61, 0, 61),
            AffineSlice(9 + 122, -1, 61, 8),
            AffineSlice(-1, 9 + 130, 80, 53),
        )[: 3 - index]
        run = PageRun.of(ids)
        end = start + length
        segments.append(AffineSegment(start, end, run, slices))
        wide, (_, second, third) = vectors.double(), slices + (None,) * index
        expected[start:end, :61] += wide[0] * expected[start:end, :61] + wide[1]
        if second:
            expected[start:end, 61:69] *= 1 + wide[2, :8]
        if third:
            expected[start:end, 80:133] += wide[2, 8:]
        start = end
    return layer_pages, segments, y, expected


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32])
@pytest.mark.parametrize("lengths", [[1, 1, 3], [40, 2]])
def test_rescaling_and_shifting(lengths: list[int], dtype: torch.dtype) -> None:
    layer_pages, segments, y, expected = affine_case(lengths, dtype)
    lora_affine(y, layer_pages, segments)
    torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_rescaling_of_a_layer_that_has_none() -> None:
    layer_pages, segments, y, expected = affine_case([2, 1], FLOAT32)
    rows = np.array([affine_row(s.slices) for s in segments])
    metadata = LoraBatchMetadata.of(
        LoraSpans.of([s[:2] for s in segments], [s.pages for s in segments]),
        np.stack([np.zeros_like(rows), rows])[None],
        y.device,
        AFFINE_ROW,
    )
    base = y.clone()
    lora_affine(y, layer_pages, metadata.group(0, 0))
    assert torch.equal(y, base)
    lora_affine(y, layer_pages, metadata.group(0, 1))
    torch.testing.assert_close(y.double(), expected)


def test_what_a_launch_relies_on_is_checked() -> None:
    case = LoraCase(ALIGNED, [Part(2, (1, 1, 1))], FLOAT32)
    pages, plan = case.layer_pages, case.segments[0].plan
    group = metadata.group_metadata(case.segments, case.x)
    far = [Segment(0, 2, PageRun(np.zeros(1 << 24, dtype=np.int64), -1), plan)]
    for x, layer_pages, segments, message in (
        (case.x[:1], pages, group, "leave a batch of 1"),
        (case.x, pages.view(-1, 8), group, "page_elems is 8"),
        (case.x, pages, far, "or more in a layer"),
        (case.x[:, :-1], pages, case.segments, "the adapter 152"),
    ):
        with pytest.raises(ValueError, match=message):
            lora_shrink(x, layer_pages, segments)
