"""What things cost here, measured: a step, a prompt token, getting an adapter.

All estimates are exponentially weighted, so that they follow a machine whose speed changes. Before
the first observation a step and a load are taken to cost nothing: no request is refused on a guess.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from storage.fading_line import FadingLine

Tier = Literal["host", "disk", "source"]
Cost = Literal["decode", "prefill", "drafts", "host", "disk", "source"]
"""What is measured: the parts of steps, and loads by tier."""

_KEEP = 0.98  # weight of the past at each step
_KEEP_LOADS = 0.8
# Only for weighing things in the pool before anything was measured.
_NOMINAL_TOKEN_S = 1e-3
_NOMINAL_BYTES_PER_S: dict[Tier, float] = {"host": 5e9, "disk": 5e8, "source": 5e7}
_CHEAPER: dict[Tier, tuple[Tier, ...]] = {
    "host": ("host",),
    "disk": ("disk", "host"),
    "source": ("source", "disk", "host"),
}


class CostModel:
    def __init__(self) -> None:
        self._decode = FadingLine(_KEEP)
        self._prefill = FadingLine(_KEEP)
        self._drafts = FadingLine(_KEEP)
        self._gain = _Ratio(_KEEP)
        self._loads: dict[Tier, _Mean] = {}
        self._load_bytes: dict[Tier, _Ratio] = {}
        self._load_lines: dict[Tier, FadingLine] = {}  # over bytes of the weights file
        self._copies = FadingLine(_KEEP_LOADS)  # over bytes in the pool
        self._pool_bytes = _Ratio(_KEEP_LOADS)  # for each byte of a weights file
        self.num_observed: Counter[Cost] = Counter()
        self._doubted: set[Cost] = set()

    def doubt(self, cost: Cost) -> None:
        """What was measured so far counts no more once it is measured again."""
        self._doubted.add(cost)

    def observe_step(
        self, seconds: float, *, num_prefill: int, num_decode: int, num_drafts: int = 0
    ) -> None:
        """num_prefill: tokens in prefill chunks. num_decode: sequences that computed one token, and
        num_drafts more as guesses."""
        # What is left over the decode rows is the prefill's or the drafts'.
        decode_s = self._decode.at(num_decode) if num_decode else 0.0
        if num_prefill:
            self._observed("prefill")
            if num_drafts:
                decode_s += self.drafts_s(num_drafts)
            self._prefill.observe(num_prefill, max(seconds - decode_s, 0.0))
        elif num_drafts:
            self._observed("drafts")
            self._drafts.observe(num_drafts, max(seconds - decode_s, 0.0))
        else:
            self._observed("decode")
            self._decode.observe(num_decode, seconds)

    def observe_gain(self, seconds: float, *, num_tokens: int, num_decode: int) -> None:
        """A step without prefill, some time after another with drafts in it: in `seconds` the
        `num_decode` sequences that decode got num_tokens, where one each takes `step_s`."""
        step_s = self.step_s(num_decode)
        if step_s:
            self._gain.observe(num_tokens, num_decode * seconds / step_s)

    def observe_load(self, tier: Tier, seconds: float, nbytes: int, weights_bytes: int = 0) -> None:
        """The loader was asked for an adapter, which arrived `seconds` later from `tier`.
        weights_bytes: of its file; 0 where that is not known."""
        self._observed(tier)
        if weights_bytes:
            self._pool_bytes.observe(nbytes, weights_bytes)
        line = self._load_lines.setdefault(tier, FadingLine(_KEEP_LOADS))
        line.observe(weights_bytes or nbytes, seconds)
        self._loads.setdefault(tier, _Mean(_KEEP_LOADS)).observe(seconds)
        self._load_bytes.setdefault(tier, _Ratio(_KEEP_LOADS)).observe(seconds, nbytes)

    def observe_copy(self, seconds: float, nbytes: int) -> None:
        """An adapter was copied from host memory into the pool."""
        self._copies.observe(nbytes, seconds)

    def step_s(self, num_decode: int) -> float:
        """A step that decodes `num_decode` sequences."""
        return self._decode.at(num_decode)

    def drafts_s(self, num_drafts: int) -> float:
        """What a decode step takes more with so many drafts; 0 before any were measured."""
        return self._drafts.at(num_drafts, from_origin=True)

    @property
    def draft_line(self) -> tuple[float, float]:
        """The fixed part of `drafts_s`, and what each draft adds."""
        at_0 = self.drafts_s(0)
        return at_0, self.drafts_s(1) - at_0

    @property
    def gain(self) -> float:
        """How many times as many tokens drafts lately made of the same time, at least 1."""
        return max(1.0, self._gain.value)

    def prefill_s(self, num_tokens: int, chunk: int) -> float:
        """Computing `num_tokens` of prompt, at most `chunk` a step, with nothing else in it."""
        full, rest = divmod(num_tokens, chunk)
        return full * self._prefill.at(chunk) + (self._prefill.at(rest) if rest else 0.0)

    @property
    def knows_steps(self) -> bool:
        """Whether both parts of steps were measured."""
        return bool(self.num_observed["decode"] and self.num_observed["prefill"])

    @property
    def prefill_line(self) -> tuple[float, float]:
        """Seconds that a step with prompt tokens takes more, and more for each of them."""
        at_0 = self._prefill.at(0)
        return at_0, self._prefill.at(1) - at_0

    def pool_line(self, tier: Tier) -> tuple[float, float] | None:
        """Seconds from asking for an adapter until it is in the pool: a fixed part, and one for
        each byte of its weights file; None where `tier` was not measured."""
        load = self._load_lines.get(tier)
        if load is None:
            return None
        load_0, copy_0 = load.at(0), self._copies.at(0)
        copy_s = (self._copies.at(1) - copy_0) * (self._pool_bytes.value or 1.0)
        return load_0 + copy_0, load.at(1) - load_0 + copy_s

    @property
    def prefill_tokens_per_s(self) -> float:
        """0 until measured."""
        seconds = self._prefill.per_unit
        return 1.0 / seconds if seconds else 0.0

    def load_s(self, tier: Tier) -> float:
        """Typical time from asking the loader for an adapter until it is in host memory."""
        mean = self._loads.get(tier)
        return mean.value if mean else 0.0

    def recompute_s(self, num_tokens: int) -> float:
        """What losing the cached keys and values of `num_tokens` costs if they are wanted."""
        return (self._prefill.per_unit or _NOMINAL_TOKEN_S) * num_tokens

    def reload_s(self, tier: Tier, nbytes: int) -> float:
        """What losing a resident adapter costs if it is wanted."""
        for each in _CHEAPER[tier]:
            if each in self._load_bytes:
                return self._load_bytes[each].value * nbytes
        return nbytes / _NOMINAL_BYTES_PER_S[tier]

    def _observed(self, cost: Cost) -> None:
        self.num_observed[cost] += 1
        if cost not in self._doubted:
            return
        self._doubted.remove(cost)
        if cost == "decode":
            self._decode = FadingLine(_KEEP)
        elif cost == "prefill":
            self._prefill = FadingLine(_KEEP)
        elif cost == "drafts":
            self._drafts = FadingLine(_KEEP)
        else:
            self._loads.pop(cost, None)
            self._load_bytes.pop(cost, None)
            self._load_lines.pop(cost, None)


class _Mean:
    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._weight = self._sum = 0.0

    def observe(self, value: float) -> None:
        self._weight = self._keep * self._weight + 1.0
        self._sum = self._keep * self._sum + value

    @property
    def value(self) -> float:
        return self._sum / self._weight if self._weight else 0.0


class _Ratio:
    """Sum of amounts over sum of units, older ones fading."""

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._amount = self._units = 0.0

    def observe(self, amount: float, units: float) -> None:
        self._amount = self._keep * self._amount + amount
        self._units = self._keep * self._units + units

    @property
    def value(self) -> float:
        return self._amount / self._units if self._units else 0.0
