"""Which cached blocks an adapter finds that is activated in mid-prompt; no model."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.channel import Adapter, Sampling, Submit
from dataplane.engine.batch import adapter_spans
from dataplane.engine.chunk import Chunk
from dataplane.engine.prefix_cache import Lineage
from dataplane.engine.sequence import Sequence
from tests.helpers.scheduling import Simulation

PAGE = 4


class Asked(NamedTuple):
    adapter: str
    prompt: list[int]
    active_from: int


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    """Of so few tokens and adapters that much is alike."""
    adapter = draw(st.sampled_from(["", "x", "y"]))
    prompt = [1] * draw(st.integers(1, 14))
    if draw(st.booleans()):
        prompt[draw(st.integers(0, len(prompt) - 1))] = 2
    start = draw(st.integers(0, len(prompt) - 1)) if adapter else 0
    return Asked(adapter, prompt, start)


def authors(each: Asked, tokens: list[int]) -> list[tuple[str, int]]:
    """Each token and who computes its keys and values."""
    return [
        (each.adapter if at >= each.active_from else "", token) for at, token in enumerate(tokens)
    ]


def common_blocks(one: list[tuple[str, int]], other: list[tuple[str, int]]) -> int:
    most = min(len(one), len(other)) // PAGE
    blocks = (slice(at * PAGE, (at + 1) * PAGE) for at in range(most))
    return next((at for at, block in enumerate(blocks) if one[block] != other[block]), most)


@settings(max_examples=60, deadline=None)
@given(st.lists(asked(), min_size=2, max_size=8))
def test_just_what_the_same_authors_computed_is_shared(requests: list[Asked]) -> None:
    simulation = Simulation(num_pages=400, page_tokens=PAGE)
    known: list[list[tuple[str, int]]] = []
    for handle, each in enumerate(requests):
        mine = authors(each, each.prompt)
        most = (len(mine) - 1) // PAGE
        expected = min(most, max((common_blocks(mine, other) for other in known), default=0))
        found = simulation.prefixes.match(Lineage(each.adapter, each.active_from), each.prompt)
        assert len(found) == expected
        simulation.submit(
            handle, each.prompt, adapter=each.adapter, active_from=each.active_from, max_tokens=6
        )
        simulation.run()
        computed = [*each.prompt, *simulation.tokens[handle]][:-1]  # the last one never is
        known.append(authors(each, computed))


def test_whole_blocks_before_it_are_the_bases() -> None:
    for active_from in range(13):
        simulation = Simulation(num_pages=64, page_tokens=PAGE)
        prompt = list(range(14))
        simulation.submit(0, prompt, max_tokens=1)
        simulation.run()
        found = simulation.prefixes.match(Lineage("x", active_from), prompt)
        assert len(found) == active_from // PAGE


def test_blocks_of_the_base_outlive_those_that_follow_them() -> None:
    """Blocks go from the leaves up, whoever has computed them."""
    simulation = Simulation(num_pages=64, page_tokens=PAGE)
    prompt = list(range(20))
    simulation.submit(0, prompt, adapter="x", active_from=10, max_tokens=1)
    simulation.run()
    found: list[int] = []
    while match := simulation.prefixes.match(Lineage("x", 10), [*prompt, 0]):
        found.append(len(match))
        assert [block.key.num_base for block in match] == [0, 0, 2, 0, 0][: len(match)]
        assert [block.key.digest for block in match] == ["", "", "x", "x", "x"][: len(match)]
        assert len(simulation.prefixes.match(Lineage(), [*prompt, 0])) == min(len(match), 2)
        simulation.pool.make_free(simulation.pool.allocator.num_free + 1)
        simulation.check_integrity()
    assert found[0] == 5 and {*found} == {1, 2, 3, 4, 5}


def chunk(digest: str, active_from: int, start: int, num_tokens: int) -> Chunk:
    request = Submit(
        handle=start,
        prompt=[5] * 40,
        sampling=Sampling(max_tokens=1),
        adapter=Adapter(digest, "", digest),
        active_from=active_from,
        arrival_s=0.0,
    )
    return Chunk(Sequence.of(request), start, num_tokens, samples=False)


def test_spans_begin_where_adapters_do() -> None:
    before, across, behind = chunk("x", 20, 4, 6), chunk("x", 20, 16, 8), chunk("x", 20, 20, 5)
    assert adapter_spans([before]) == []
    assert adapter_spans([across]) == [("x", 4, 8)]
    assert adapter_spans([behind]) == [("x", 0, 5)]
    whole = chunk("y", 0, 0, 3)
    spans = [("x", 10, 19), ("y", 19, 22)]
    assert adapter_spans([before, across, behind, whole]) == spans
    assert adapter_spans([across, across]) == [("x", 4, 8), ("x", 12, 16)]


def test_chunks_are_ordered_so_that_an_adapters_tokens_are_adjacent() -> None:
    before, across, behind = chunk("x", 20, 4, 6), chunk("x", 20, 16, 8), chunk("x", 20, 20, 5)
    ordered = [chunk("w", 0, 0, 1), before, across, behind, chunk("y", 0, 0, 1)]
    for step in (ordered, ordered[::-1]):
        assert sorted(step, key=lambda each: each.rank_in_step) == ordered
    simulation = Simulation(num_pages=200, max_batch_tokens=40)
    simulation.submit(0, 9, adapter="x", max_tokens=9)
    while 0 not in simulation.tokens:
        simulation.now_s += 0.1
        simulation.step()
    simulation.submit(1, 20, adapter="x", active_from=12, max_tokens=9)
    chunks, _ = simulation.scheduler.schedule(simulation.now_s)
    assert [each.sequence.handle for each in chunks] == [1, 0]
    assert len(adapter_spans(chunks)) == 1
