"""What is asked of the engine: requests of every kind, drawn at random from one seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.soak.adapters import Voices
from benchmarks.soak.reference import Answer
from dataplane.channel import Adapter, Sampling, Submit

TENANTS = tuple(f"t{index}" for index in range(8))
_SHARE_RUINED = 0.01
_SHARE_UNLOADABLE = 0.01
_SHARE_BASE = 0.15
_SHARE_DEADLINE = 0.08
_SHARE_OBJECTIVE = 0.08
_SHARE_CANCELLED = 0.12
_SHARE_CONTINUED = 0.05
_SHARE_STOPPED = 0.5
_SKEW = 1.6  # of the adapters' popularity


@dataclass(eq=False)
class Asked:
    """expected: the tokens that must come; None where the adapter cannot give any. cancel_after:
    steps until it is aborted, None to let it run. got: what has come."""

    submit: Submit
    expected: list[int] | None
    finish: str
    may_be_late: bool
    cancel_after: int | None
    got: int = 0


class Traffic:
    def __init__(
        self,
        voices: Voices,
        answers: Mapping[str, Sequence[Answer]],
        *,
        seed: int,
        deadline_s: tuple[float, float],
    ) -> None:
        self._voices = voices
        self._answers = answers
        self._random = random.Random(seed)
        self._deadline_s = deadline_s

    def next(self, handle: int, now_s: float) -> Asked:
        draw = self._random.random()
        if draw < _SHARE_RUINED:
            return self._hopeless(handle, now_s, self._random.choice(self._voices.ruined))
        if draw < _SHARE_RUINED + _SHARE_UNLOADABLE:
            return self._hopeless(handle, now_s, self._random.choice(self._voices.unloadable))
        voice = None if self._random.random() < _SHARE_BASE else self._popular()
        prompt, answer = self._random.choice(self._answers[voice.digest if voice else ""])
        length = max_tokens = self._random.randint(1, len(answer))
        stops: tuple[int, ...] = ()
        if self._random.random() < _SHARE_STOPPED:
            # Nobody can foresee where it ends: after the first token that is like this one.
            stops = (answer[length - 1],)
            length, max_tokens = answer.index(answer[length - 1]) + 1, len(answer)
        resumed = 0
        if length > 1 and self._random.random() < _SHARE_CONTINUED:
            resumed = self._random.randrange(1, length)
        deadline_s = first_token_by_s = cancel_after = None
        if self._random.random() < _SHARE_DEADLINE:
            deadline_s = now_s + self._random.uniform(*self._deadline_s)
        if self._random.random() < _SHARE_OBJECTIVE:
            first_token_by_s = now_s + self._random.uniform(*self._deadline_s)
        if self._random.random() < _SHARE_CANCELLED:
            cancel_after = int(self._random.expovariate(1 / 20))
        submit = Submit(
            handle=handle,
            prompt=prompt,
            generated=answer[:resumed],
            sampling=Sampling(max_tokens=max_tokens, ignore_eos=True, stop_token_ids=stops),
            adapter=voice,
            tenant=self._random.choice(TENANTS),
            arrival_s=now_s,
            deadline_s=deadline_s,
            first_token_by_s=first_token_by_s,
            priority=self._random.randint(-10, 10),
        )
        late = deadline_s is not None or first_token_by_s is not None
        finish = "stop" if stops else "length"
        return Asked(submit, answer[resumed:length], finish, late, cancel_after)

    def _hopeless(self, handle: int, now_s: float, voice: Adapter) -> Asked:
        prompt, _ = self._random.choice(self._answers[""])
        submit = Submit(
            handle=handle,
            prompt=prompt,
            sampling=Sampling(max_tokens=4, ignore_eos=True),
            adapter=voice,
            tenant=self._random.choice(TENANTS),
            arrival_s=now_s,
        )
        return Asked(submit, None, "", False, None)

    def _popular(self) -> Adapter:
        good = self._voices.good
        return good[int(len(good) * self._random.random() ** _SKEW)]
