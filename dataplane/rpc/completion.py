"""One completion: what the engine's tokens become on the wire, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

from chorale.v1 import inference_pb2
from dataplane import channel
from dataplane.text.detokenizer import Detokenizer
from dataplane.text.offsets import TextOffsets
from dataplane.text.stop import StopStrings

_STOP = inference_pb2.FINISH_REASON_STOP
_LENGTH = inference_pb2.FINISH_REASON_LENGTH
_PROMPT_TOKENS_AT_ONCE = 64  # of a chunk: other streams go on between two


class TextOfTokens(Protocol):
    """The part of a Tokenizer that a completion needs."""

    def detokenizer(self, *, shows_calls: bool = False) -> Detokenizer: ...

    def token_text(self, token_id: int) -> str: ...


@dataclass(frozen=True)
class _Ending:
    reason: inference_pb2.FinishReason
    stop_string: str | None = None
    stop_token_id: int | None = None


class Completion:
    """Takes Outputs, gives TokenChunks and at last one Finished.

    The text of a stop string, of the token that ends the generation, and of special tokens is left
    out, but with `shows_calls` of those that mark calls of functions; a stop string counts only
    once more than `min_tokens` tokens are there. What has been emitted after n tokens depends on
    those tokens alone, so a completion that `resume`s from n tokens emits exactly what the
    interrupted one had yet to emit.
    """

    def __init__(
        self,
        tokenizer: TextOfTokens,
        *,
        sampling: channel.Sampling,
        stop: Sequence[str],
        eos_token_ids: Sequence[int],
        prompt: Sequence[int],
        shows_calls: bool = False,
    ) -> None:
        self._token_text: Callable[[int], str] = tokenizer.token_text
        self._detokenizer = tokenizer.detokenizer(shows_calls=shows_calls)
        self._stop = StopStrings(stop)
        self._sampling = sampling
        ends = (
            sampling.stop_token_ids
            if sampling.ignore_eos
            else (
                *sampling.stop_token_ids,
                *eos_token_ids,
            )
        )
        self._end_token_ids = frozenset(ends)
        self._prompt = prompt
        self._prompt_logprobs: list[channel.TokenLogprobs] = []
        self._num_shown = 0  # of the prompt's tokens
        self._prompt_detokenizer = tokenizer.detokenizer()
        self._prompt_offsets, self._offsets = TextOffsets(), TextOffsets()
        self._num_tokens = 0
        self._text = ""
        self._token_ids: list[int] = []
        self._logprobs: list[inference_pb2.TokenLogprobs] = []
        self._timings: channel.Timings | None = None
        self._ending: _Ending | None = None

    @property
    def ended(self) -> bool:
        """True once a stop string, stop token or length has ended it."""
        return self._ending is not None

    def resume(self, generated: Sequence[int]) -> None:
        """Continues after tokens that were delivered before; nothing of them is emitted again.

        It may turn out that the completion had ended with them.
        """
        for index, token_id in enumerate(generated, 1):
            self._num_tokens = index
            last = index == len(generated)
            if last and token_id in self._end_token_ids and index >= self._sampling.min_tokens:
                self._ending = _Ending(_STOP, stop_token_id=token_id)
            else:
                self._offset(token_id, self._read(token_id))
            if self._ending is not None:
                break
        self._num_tokens = len(generated)
        if self._ending is None and self._num_tokens >= self._sampling.max_tokens:
            self._ending = _Ending(_LENGTH)
        self._text = ""

    def add(self, output: channel.Output) -> None:
        """Takes what the engine made; tokens after the end are dropped."""
        if output.timings is not None:
            self._timings = output.timings
        self._prompt_logprobs += output.prompt_logprobs
        last = len(output.token_ids) - 1
        for index, (token_id, logprobs) in enumerate(
            zip_longest(output.token_ids, output.logprobs)
        ):
            if self._ending is not None:
                return
            self._num_tokens += 1
            self._token_ids.append(token_id)
            if index == last and output.stop_token_id >= 0:
                self._ending = _Ending(_STOP, stop_token_id=output.stop_token_id)
                text = ""
            else:
                text = self._read(token_id)
            if logprobs is not None:
                self._logprobs.append(self._logprobs_of(token_id, logprobs))
                self._logprobs[-1].text_offset = self._offset(token_id, text)
        if output.finish and self._ending is None:
            self._ending = _Ending(_STOP if output.finish == "stop" else _LENGTH)

    def take_chunk(self) -> inference_pb2.TokenChunk | None:
        """What is new since the last chunk, a prompt's tokens some at a time; None when there is
        nothing."""
        if self._token_ids and self._num_shown < self._num_to_show:
            return inference_pb2.TokenChunk(prompt_logprobs=self._take_prompt())
        if not self._token_ids:
            return None
        chunk = inference_pb2.TokenChunk(
            text=self._text, token_ids=self._token_ids, logprobs=self._logprobs
        )
        self._text, self._token_ids, self._logprobs = "", [], []
        return chunk

    @property
    def made_first_s(self) -> float | None:
        """Seconds from the request's arrival until the engine had made its first token; None
        before."""
        return None if self._timings is None else self._timings.time_to_first_token_s

    def finish(self, first_s: float, total_s: float) -> inference_pb2.Finished:
        """The last event, once `ended`; first_s, total_s: seconds since the request's arrival, now
        and when the first token was sent."""
        ending = self._ending
        assert ending is not None
        text = ""
        if ending.stop_string is None:
            text, met = self._push(self._detokenizer.flush())
            if met is None:
                text += self._stop.flush()
            else:
                ending = _Ending(_STOP, stop_string=met)
        timings = inference_pb2.Timings(time_to_first_token_s=first_s, total_s=total_s)
        if self._timings is not None:
            timings.queue_s = self._timings.queue_s
            timings.adapter_load_s = self._timings.adapter_load_s
        cached = self._timings.num_cached_tokens if self._timings is not None else 0
        return inference_pb2.Finished(
            finish_reason=ending.reason,
            text=text,
            stop_string=ending.stop_string,
            stop_token_id=ending.stop_token_id,
            usage=inference_pb2.Usage(
                num_prompt_tokens=len(self._prompt),
                num_completion_tokens=self._num_tokens,
                num_cached_tokens=cached,
            ),
            timings=timings,
        )

    @property
    def _num_to_show(self) -> int:
        return len(self._prompt) if self._sampling.prompt_logprobs >= 0 else 0

    def _take_prompt(self) -> list[inference_pb2.TokenLogprobs]:
        begin = self._num_shown
        end = self._num_shown = min(begin + _PROMPT_TOKENS_AT_ONCE, len(self._prompt))
        first = [inference_pb2.TokenLogprobs(chosen=self._candidate(self._prompt[0], 0.0))]
        positions = [
            *([] if begin else first),
            *(
                self._logprobs_of(self._prompt[at], self._prompt_logprobs[at - 1])
                for at in range(max(begin, 1), end)
            ),
        ]
        for position in positions:
            certain = self._prompt_detokenizer.push(position.chosen.token_id)
            position.text_offset = self._prompt_offsets.next(
                position.chosen.text, certain, self._prompt_detokenizer.num_held
            )
        return positions

    def _read(self, token_id: int) -> str:
        """Returns what it made certain of the text, some of which may be held back."""
        certain = self._detokenizer.push(token_id)
        text, met = self._push(certain)
        self._text += text
        if met is not None:
            self._ending = _Ending(_STOP, stop_string=met)
        return certain

    def _offset(self, token_id: int, certain: str) -> int:
        if self._sampling.logprobs < 0:
            return 0
        text, num_held = self._token_text(token_id), self._detokenizer.num_held
        return self._offsets.next(text, certain, num_held)

    def _push(self, text: str) -> tuple[str, str | None]:
        return self._stop.push(text, armed=self._num_tokens > self._sampling.min_tokens)

    def _logprobs_of(
        self, token_id: int, logprobs: channel.TokenLogprobs
    ) -> inference_pb2.TokenLogprobs:
        top = zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
        return inference_pb2.TokenLogprobs(
            chosen=self._candidate(token_id, logprobs.logprob),
            top=[self._candidate(candidate, logprob) for candidate, logprob in top],
        )

    def _candidate(self, token_id: int, logprob: float) -> inference_pb2.TokenLogprob:
        return inference_pb2.TokenLogprob(
            token_id=token_id, logprob=logprob, text=self._token_text(token_id)
        )
