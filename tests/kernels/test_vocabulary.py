"""Adapters' own rows of the embedding and the head, against dense matrices: on CPU, on a GPU, and
in Triton's interpreter (test_interpreted.py). What may not be read is NaN."""

from __future__ import annotations

import pytest
import torch

from kernels.lora.plan import PageRun
from kernels.vocabulary.op import adapt_embeddings, adapt_logits
from kernels.vocabulary.plan import (
    AdapterPages,
    EmbeddingSegment,
    HeadSegment,
    RowTable,
    TokenRows,
)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")
LAYERS, PAGES, PAGE_ELEMS = 3, 40, 48
VOCAB, HIDDEN, RANK = 31, 20, 3
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
WANTED = [0, 4, 9, 17, 30]
NAN = float("nan")
RUNS = {
    "consecutive": list(range(5, 30)),
    "scattered": [7, 3, 38, *range(10, 20), 1, *range(25, 36)],
}


class Laid:
    """A pool of NaN in which one adapter's tables lie end to end."""

    def __init__(self, page_ids: list[int], device: str, dtype: torch.dtype) -> None:
        self.pool = torch.full((LAYERS, PAGES, PAGE_ELEMS), NAN, dtype=dtype, device=device)
        ids = torch.tensor(page_ids, device=device)
        self.pages = AdapterPages(PageRun.of(page_ids), ids)
        self._generator = torch.Generator().manual_seed(len(page_ids))
        self._page_ids = page_ids
        self._offset = 7  # nothing is aligned

    def table(self, num_rows: int, width: int) -> tuple[RowTable, torch.Tensor]:
        """And its values, float32."""
        table = RowTable.spread(num_rows, width, LAYERS, self._offset)
        self._offset = table.end + 1
        values = torch.randn(num_rows, width, generator=self._generator).to(self.pool.dtype)
        for row in range(num_rows):
            layer, within = divmod(row, table.rows_per_layer)
            for column in range(width):
                page, at = divmod(table.offset + within * width + column, PAGE_ELEMS)
                self.pool[layer, self._page_ids[page], at] = values[row, column]
        return table, values.float().to(self.pool.device)

    def random(self, *shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=self._generator)
        return values.to(self.pool.device, self.pool.dtype)

    def wanted(self) -> torch.Tensor:
        return torch.tensor(WANTED, device=self.pool.device)


@pytest.fixture(params=RUNS)
def laid(request: pytest.FixtureRequest, device: str) -> Laid:
    return Laid(RUNS[request.param], device, torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("has_whole", [False, True])
def test_embeddings(has_whole: bool, kind: str, dtype: torch.dtype, device: str) -> None:
    laid = Laid(RUNS[kind], device, dtype)
    whole, whole_rows = laid.table(VOCAB, HIDDEN)
    some, some_rows = laid.table(len(WANTED), HIDDEN)
    a, a_rows = laid.table(VOCAB, RANK)
    b, b_rows = laid.table(RANK, HIDDEN)
    token_ids = torch.tensor([5, 0, 30, 4, 18, 17, 29, 9, 0], device=device)
    wide = torch.full((len(token_ids), HIDDEN + 3), NAN, dtype=dtype, device=device)
    x = wide[:, :HIDDEN]
    x.copy_(laid.random(*x.shape))
    expected = x.float()
    for row, token in enumerate(token_ids.tolist()):
        if 1 <= row < 5:
            if has_whole:
                expected[row] = whole_rows[token]
            if token in WANTED:
                expected[row] = some_rows[WANTED.index(token)]
        if row >= 6:
            expected[row] += a_rows[token] @ b_rows
    tokens = TokenRows(laid.wanted(), some)
    segments = [
        EmbeddingSegment(1, 5, laid.pages, whole if has_whole else None, tokens),
        EmbeddingSegment(6, 9, laid.pages, lora=(a, b)),
    ]
    adapt_embeddings(x, token_ids, laid.pool, segments)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(x.float(), expected, rtol=tolerance, atol=tolerance)
    assert bool(wide[:, HIDDEN:].isnan().all())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", RUNS)
def test_logits(kind: str, dtype: torch.dtype, device: str) -> None:
    laid = Laid(RUNS[kind], device, dtype)
    whole, whole_rows = laid.table(VOCAB, HIDDEN)
    some, some_rows = laid.table(len(WANTED), HIDDEN)
    x, logits = laid.random(7, HIDDEN), laid.random(7, VOCAB)
    expected = logits.float()
    expected[1:3] = x[1:3].float() @ whole_rows.T
    expected[4:7, WANTED] = x[4:7].float() @ some_rows.T
    tokens = TokenRows(laid.wanted(), some)
    segments = [
        HeadSegment(1, 3, laid.pages, whole),
        HeadSegment(4, 7, laid.pages, tokens=tokens),
    ]
    adapt_logits(logits, x, laid.pool, segments)
    tolerance = 10 * TOLERANCES[dtype]
    torch.testing.assert_close(logits.float(), expected, rtol=tolerance, atol=tolerance)
    again = logits.clone()
    adapt_logits(again, x, laid.pool, [HeadSegment(0, 7, laid.pages, whole, tokens)])
    assert not torch.equal(again[0], logits[0])
    torch.testing.assert_close(again[4:7, WANTED], logits[4:7, WANTED])


def test_tables_lie_over_layers_that_they_do_not_fill() -> None:
    assert list(RowTable.spread(7, 2, 3, 0).parts()) == [(0, 0, 3), (1, 3, 6), (2, 6, 7)]
    assert list(RowTable.spread(1, 2, 3, 0).parts()) == [(0, 0, 1)]
    assert list(RowTable.spread(4, 2, 3, 0).parts()) == [(0, 0, 2), (1, 2, 4)]
    assert RowTable.spread(4, 5, 3, 11).end == 11 + 2 * 5


def test_what_does_not_fit_together_is_refused(laid: Laid) -> None:
    whole, _ = laid.table(VOCAB, HIDDEN)
    narrow, _ = laid.table(VOCAB, HIDDEN - 1)
    small, _ = laid.table(VOCAB - 1, HIDDEN)
    x, logits = laid.random(4, HIDDEN), laid.random(4, VOCAB)
    ids = torch.zeros(4, dtype=torch.int64, device=x.device)

    def embed(segment: EmbeddingSegment, **changes: torch.Tensor) -> None:
        adapt_embeddings(
            **{"x": x, "token_ids": ids, "pool": laid.pool, **changes}, segments=[segment]
        )

    def head(segment: HeadSegment, **changes: torch.Tensor) -> None:
        adapt_logits(**{"logits": logits, "x": x, "pool": laid.pool, **changes}, segments=[segment])

    good, good_head = (
        EmbeddingSegment(0, 4, laid.pages, whole),
        HeadSegment(0, 4, laid.pages, whole),
    )
    embed(good)
    head(good_head)
    for call, text in (
        (lambda: embed(EmbeddingSegment(0, 5, laid.pages, whole)), "leaves the batch"),
        (
            lambda: embed(EmbeddingSegment(0, 4, laid.pages, narrow)),
            "19 elements for a model of 20",
        ),
        (lambda: embed(EmbeddingSegment(0, 4, laid.pages, lora=(small, whole))), "of rank"),
        (lambda: embed(good, token_ids=ids[:3]), "token_ids"),
        (lambda: embed(good, x=x.half()), "dtypes differ"),
        (lambda: embed(good, x=x.t().contiguous().t()), "columns contiguous"),
        (lambda: embed(good, pool=laid.pool[:, ::2]), "not a contiguous"),
        (lambda: head(HeadSegment(0, 4, laid.pages, small)), "30 rows, 31 logits"),
        (lambda: head(HeadSegment(0, 4, laid.pages, narrow)), "19 elements"),
        (lambda: head(good_head, logits=logits[:3]), "logits"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
