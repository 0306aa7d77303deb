"""When a request could have its first token on a data plane: a pure function of its report.

Semantics:
    wait    = of the report, behind its own priority and higher ones
            + what was placed there since, each as much as a usual request takes
            - the time that has passed since
    load    = of the adapter, from the tier that it is in there
    prefill = of the prompt but for what is cached, in chunks beside the running batch, and half of
              the step under way
    path    = of requests and tokens within the data plane, beside its engine
    first token after max(wait, load) + prefill + path
What was not measured costs nothing, so that nobody is refused on a guess. What is cached: where the
request's prefixes are compared, the longest that was sent there and is not evicted yet, by how long
blocks live there; else the usual share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from controlplane.fleet.outlook import Outlook

_TIERS = ("host", "disk", "source")  # each costs at least what the one before it costs


class SentPrefix(NamedTuple):
    """A beginning of a prompt, sent to a data plane `age_s` ago. length: in tokens where those of
    the prompt are known, else in characters."""

    length: int
    age_s: float


@dataclass(frozen=True, slots=True)
class RequestNeeds:
    """What a request asks for, as far as that is known.

    weights_bytes: of the adapter's file. num_tokens, num_characters: of the prompt, either 0 where
    it is not known. num_generated: tokens delivered before, which are computed anew. max_tokens: of
    the answer; None: what the context has left.
    ttft_slo_s: its own objective; None: the data plane's. ttft_path_s: of that, what the way to and
    from whoever asks for a place takes. compares_prefixes: whether it is known
    where beginnings of its prompt were sent. has_begun: its first token was delivered, so that it
    has no objective.
    """

    digest: str = ""
    weights_bytes: int = 0
    num_tokens: int = 0
    num_characters: int = 0
    num_generated: int = 0
    max_tokens: int | None = None
    priority: int = 0
    ttft_slo_s: float | None = None
    ttft_path_s: float = 0.0
    compares_prefixes: bool = False

    @property
    def has_begun(self) -> bool:
        return self.num_generated > 0

    def tokens_on(self, outlook: Outlook) -> float:
        """To compute before the first token; 1 where that is not known."""
        num_tokens = float(self.num_tokens)
        if not num_tokens and outlook.characters_per_token:
            num_tokens = self.num_characters / outlook.characters_per_token
        return max(1.0, num_tokens + self.num_generated)

    def cached_tokens_on(self, outlook: Outlook, sent: Sequence[SentPrefix]) -> float:
        """Of its prompt, by what was sent there, the longest first."""
        lives_s = outlook.cached_for_s or 0.0
        length = next((each.length for each in sent if each.age_s <= lives_s), 0)
        if self.num_tokens:
            return min(length, self.num_tokens)
        if not outlook.characters_per_token:
            return 0.0
        return min(length, self.num_characters) / outlook.characters_per_token

    def slo_s_on(self, outlook: Outlook) -> float | None:
        """The objective that holds there; None: none does."""
        if self.has_begun:
            return None
        return (outlook.ttft_slo_s or None) if self.ttft_slo_s is None else self.ttft_slo_s


class Expectation(NamedTuple):
    """Seconds from now."""

    wait_s: float
    load_s: float
    prefill_s: float
    spread_s: float = 0.0  # by which a wait usually comes out shorter or longer
    num_cached: float = 0.0  # tokens of the prompt, where prefixes are compared
    path_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        return max(self.wait_s, self.load_s) + self.prefill_s + self.path_s

    def is_queued_out(self, slo_s: float) -> bool:
        """Whether it is the queue that puts the objective out of reach, even if it moves faster
        than expected by its usual spread: who might make it is let in, and given up there if need
        be, lest a data plane idle. What would miss it on an idle one, too, is for that one to
        judge, which puts its costs to the test."""
        then_s, wait_s = self.prefill_s + self.path_s, self.wait_s - self.spread_s
        alone_s, ttft_s = self.load_s + then_s, max(wait_s, self.load_s) + then_s
        return ttft_s > max(slo_s, alone_s) and (alone_s <= slo_s or wait_s > slo_s)


def expected(
    outlook: Outlook,
    needs: RequestNeeds,
    *,
    tier: str,
    num_running: int,
    num_placed: float,
    since_s: float,
    sent: Sequence[SentPrefix] = (),
) -> Expectation:
    """tier, sent: as in Candidate. num_placed: since the report, which is `since_s` old."""
    num_behind = max(0, num_placed - outlook.num_open)
    placed_s = num_behind * outlook.request_s
    placed_s += (num_placed - num_behind) * outlook.request_prefill_s
    wait_s = max(0.0, outlook.wait_s(needs.priority) + placed_s - max(since_s, 0.0))
    load_s = 0.0
    if needs.digest and tier != "pool":
        load_s = _load_s(outlook, tier or "source", needs.weights_bytes)
    decode_step_s = outlook.decode_step_s if num_running else 0.0
    num_tokens, num_cached = needs.tokens_on(outlook), 0.0
    if needs.compares_prefixes:
        num_cached = needs.cached_tokens_on(outlook, sent)
        num_computed = num_tokens - num_cached
    else:
        num_computed = num_tokens * outlook.computed_share
    prefill_s = _prefill_s(outlook, max(1.0, num_computed), decode_step_s)
    # Of so many requests that each take about as long, as of independent random times.
    spread_s = math.sqrt(wait_s * outlook.request_s)
    return Expectation(wait_s, load_s, prefill_s, spread_s, num_cached, outlook.path_s)


def _load_s(outlook: Outlook, tier: str, weights_bytes: int) -> float:
    nearer = _TIERS[: _TIERS.index(tier) + 1]
    known = [each for each in outlook.tier_costs if each.tier in nearer]
    return max((each.fixed_s + each.byte_s * weights_bytes for each in known), default=0.0)


def _prefill_s(outlook: Outlook, num_computed: float, decode_step_s: float) -> float:
    num_steps = -(-num_computed // max(1, outlook.max_batch_tokens))
    steps_s = num_steps * (outlook.prefill_step_s + decode_step_s)
    return steps_s + num_computed * outlook.prefill_token_s + decode_step_s / 2
