"""How many drafts the next step takes along, so that nobody pays for them.

A step with drafts is followed by one without those that drafted, unless they are all: how many
tokens they got is known only when it was read. So it is weighed together with that one against two
steps without drafts, in tokens and in seconds, by what steps were measured to take and by how often
guesses were right. Pure but for the pages that drafts take.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from dataplane.cost_model import CostModel
from dataplane.engine.chunk import MAX_SCORED, Chunk
from dataplane.engine.drafts import Drafts
from dataplane.engine.sequence import Sequence

if TYPE_CHECKING:
    from dataplane.pool.pool import PagePool

_LEAST_GAIN = 1.02  # in tokens for the same time: estimates are not exact
_MOST_LOSS = 1.03  # in time, for those in the batch that do not draft
_TRY_AFTER = 100  # steps in which only their cost spoke against drafts: it is measured again
_LIKELY = 0.5


class Drafting:
    def __init__(self, pool: PagePool, costs: CostModel, max_drafts: int) -> None:
        self._pool = pool
        self._costs = costs
        self._max_drafts = max_drafts
        self._num_declined = 0

    def extend(
        self, chunks: dict[Sequence, Chunk], max_batch_tokens: int, num_running: int
    ) -> None:
        """Puts drafts behind the chunks of a step, in place. No drafts may be under way.

        None are put into a step with prompts, which would take longer for somebody's first token.
        """
        if not all(each.num_tokens == 1 and each.samples for each in chunks.values()):
            return
        candidates = [each for each in chunks.values() if each.sequence.may_draft]
        chances = [self._chances(each.sequence) for each in candidates]
        counts = self._counts(chances, len(chunks))
        room = min(max_batch_tokens - len(chunks), MAX_SCORED)
        for chunk, count in zip(candidates, counts, strict=True):
            count = self._with_pages(chunk, min(count, room), num_running)
            if count:
                sequence = chunk.sequence
                assert sequence.drafts is not None
                drafts = tuple(sequence.drafts.propose(sequence.num_unread, count))
                chunks[sequence] = replace(chunk, num_tokens=1 + count, drafts=drafts)
                room -= count

    def _chances(self, sequence: Sequence) -> list[float]:
        if sequence.drafts is None:
            sequence.drafts = Drafts(sequence.tokens, sequence.max_length)
        sequence.drafts.follow()
        # The last token before its end needs no draft: it is sampled anyway.
        left = sequence.max_length - len(sequence.tokens) - sequence.num_unread - 1
        return sequence.drafts.chances(sequence.num_unread, min(self._max_drafts, left))

    def _counts(self, chances: Seq[list[float]], num_decode: int) -> list[int]:
        counts = worth(chances, num_decode, self._costs)
        return counts if any(counts) else self._try_again(chances)

    def _try_again(self, chances: Seq[list[float]]) -> list[int]:
        """None, but now and then those of the likeliest, as what they cost may have changed."""
        likely = [at for at, each in enumerate(chances) if each and each[0] >= _LIKELY]
        if not likely:
            return [0] * len(chances)
        best = max(likely, key=lambda at: sum(chances[at]))
        self._num_declined += 1
        if self._num_declined < _TRY_AFTER:
            return [0] * len(chances)
        self._num_declined = 0
        self._costs.doubt("drafts")
        return [len(each) if at == best else 0 for at, each in enumerate(chances)]

    def _with_pages(self, chunk: Chunk, count: int, num_running: int) -> int:
        """As many of `count` drafts as there are pages for, of those that others do not need to
        grow by another token."""
        table, pool = chunk.sequence.block_table, self._pool
        while count > 0 and len(table) < pool.blocks_for(chunk.end + count):
            if pool.num_available > num_running and pool.make_free(1):
                page = pool.take_block(chunk.sequence.owner)
                assert page is not None
                table.append(page)
            else:
                count = len(table) * pool.page_tokens - chunk.end
        return count


def worth(chances: Seq[Seq[float]], num_decode: int, costs: CostModel) -> list[int]:
    """How many drafts of each candidate to take.

    chances: of each one's drafts, falling: that it is accepted. num_decode: sequences that decode,
    candidates among them. All 0 until a step without drafts was measured. The best half of the
    candidates is weighed where all are not worth it, and so on.
    """
    counts = [0] * len(chances)
    plain_s = costs.step_s(num_decode) if any(chances) else 0.0
    if not plain_s:
        return counts
    _, draft_s = costs.draft_line
    least = draft_s * num_decode / plain_s  # tokens that others would make in a draft's time
    useful = [list(takewhile(lambda chance: chance > least, each)) for each in chances]
    order = sorted((at for at, each in enumerate(useful) if each), key=lambda at: -sum(useful[at]))
    while order:
        taken = _affordable({at: useful[at] for at in order}, num_decode, costs)
        if _is_worth(taken, num_decode, costs):
            for at, each in taken.items():
                counts[at] = len(each)
            break
        order = order[: len(order) // 2]
    return counts


def _affordable(
    useful: dict[int, list[float]], num_decode: int, costs: CostModel
) -> dict[int, list[float]]:
    """The likeliest drafts, as many as those beside have the time for."""
    num_beside = num_decode - len(useful)
    if not num_beside:
        return useful
    plain_s = costs.step_s(num_decode)
    left_s = (2 * _MOST_LOSS - 1) * plain_s - costs.step_s(num_beside)
    fixed_s, draft_s = costs.draft_line
    ranked = sorted((-chance, at) for at, each in useful.items() for chance in each)
    most = len(ranked)
    if fixed_s + most * draft_s > left_s:
        most = max(0, int((left_s - fixed_s) / draft_s)) if draft_s else 0
    taken: dict[int, list[float]] = {}
    for chance, at in ranked[:most]:
        taken.setdefault(at, []).append(-chance)
    return taken


def _is_worth(taken: dict[int, list[float]], num_decode: int, costs: CostModel) -> bool:
    """Whether a step with these drafts, and the one behind it of those beside, make more tokens in
    their time than steps without drafts."""
    if not taken:
        return False
    plain_s = costs.step_s(num_decode)
    num_beside = num_decode - len(taken)
    num_drafts = sum(map(len, taken.values()))
    seconds = plain_s + costs.drafts_s(num_drafts) + (costs.step_s(num_beside) if num_beside else 0)
    num_tokens = num_decode + num_beside + sum(map(sum, taken.values()))
    return num_tokens / seconds > _LEAST_GAIN * num_decode / plain_s
