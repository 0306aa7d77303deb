"""What a generation streams, as plain values, and the whole that they add up to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from chorale.errors import InternalError
from chorale.v1 import inference_pb2 as pb

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One candidate token; `logprob` is natural."""

    token_id: int
    logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The chosen token at one position and the likeliest ones, likeliest first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, counted from the request's arrival at the data plane."""

    queue_s: float
    adapter_load_s: float
    time_to_first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Accepted:
    """First event: what is served, and by whom."""

    request_id: str
    model: str
    adapter_version: int
    adapter_digest: str
    data_plane_id: str
    num_prompt_tokens: int
    seed: int
    text: Literal[""] = ""
    prompt_token_ids: tuple[int, ...] = ()  # when they were asked for
    tool_call_format: str = ""  # how calls are written in the text, when there are tools


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens. `text` is what became certain with them and can lag behind the ids.

    prompt_logprobs: the next of the prompt's tokens, if they were asked for: all come before the
    first of token_ids. The very first has log-probability 0 and no others beside it.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event. `text` is what had been held back and belongs to the completion."""

    text: str
    finish_reason: FinishReason
    stop_string: str | None
    stop_token_id: int | None
    num_prompt_tokens: int
    num_completion_tokens: int
    timings: Timings
    num_cached_tokens: int = 0


Event = Accepted | Tokens | Finished
"""One event of a stream; every kind has `text`, so printing a stream needs no distinction."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A generation that is complete."""

    accepted: Accepted
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finished: Finished
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def finish_reason(self) -> FinishReason:
        return self.finished.finish_reason


def event_of(response: pb.GenerateResponse) -> Event | None:
    """The event in a response; None for a kind that this version does not know."""
    match response.WhichOneof("event"):
        case "accepted":
            return _accepted(response.accepted)
        case "tokens":
            chunk = response.tokens
            return Tokens(
                text=chunk.text,
                token_ids=tuple(chunk.token_ids),
                logprobs=tuple(map(_logprobs, chunk.logprobs)),
                prompt_logprobs=tuple(map(_logprobs, chunk.prompt_logprobs)),
            )
        case "finished":
            return _finished(response.finished)
        case _:
            return None


@dataclass(slots=True)
class CompletionBuilder:
    """Adds a stream's events up to a Completion."""

    _accepted: Accepted | None = None
    _texts: list[str] = field(default_factory=list[str])
    _token_ids: list[int] = field(default_factory=list[int])
    _logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    _prompt_logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    _finished: Finished | None = None

    def add(self, event: Event) -> None:
        self._texts.append(event.text)
        if isinstance(event, Accepted):
            self._accepted = event
        elif isinstance(event, Tokens):
            self._token_ids.extend(event.token_ids)
            self._logprobs.extend(event.logprobs)
            self._prompt_logprobs.extend(event.prompt_logprobs)
        else:
            self._finished = event

    def build(self) -> Completion:
        """Raises: InternalError when the stream ended without its first or its last event."""
        if self._accepted is None or self._finished is None:
            raise InternalError(
                "STREAM_INCOMPLETE",
                f"the stream ended after {len(self._token_ids)} tokens without `finished`; "
                "call again, with these tokens as generated_token_ids to go on after them",
            )
        return Completion(
            accepted=self._accepted,
            text="".join(self._texts),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs),
            finished=self._finished,
            prompt_logprobs=tuple(self._prompt_logprobs),
        )


def completion_of(events: Iterable[Event]) -> Completion:
    """The whole that `events` add up to. Raises: as CompletionBuilder.build."""
    builder = CompletionBuilder()
    for event in events:
        builder.add(event)
    return builder.build()


def _accepted(accepted: pb.Accepted) -> Accepted:
    return Accepted(
        request_id=accepted.request_id,
        model=accepted.model,
        adapter_version=accepted.adapter_version,
        adapter_digest=accepted.adapter_digest,
        data_plane_id=accepted.data_plane_id,
        num_prompt_tokens=accepted.num_prompt_tokens,
        seed=accepted.seed,
        prompt_token_ids=tuple(accepted.prompt_token_ids),
        tool_call_format=accepted.tool_call_format,
    )


def _finished(finished: pb.Finished) -> Finished:
    match = finished.WhichOneof("stop_match")
    timings = finished.timings
    return Finished(
        text=finished.text,
        finish_reason="length" if finished.finish_reason == pb.FINISH_REASON_LENGTH else "stop",
        stop_string=finished.stop_string if match == "stop_string" else None,
        stop_token_id=finished.stop_token_id if match == "stop_token_id" else None,
        num_prompt_tokens=finished.usage.num_prompt_tokens,
        num_completion_tokens=finished.usage.num_completion_tokens,
        timings=Timings(
            queue_s=timings.queue_s,
            adapter_load_s=timings.adapter_load_s,
            time_to_first_token_s=timings.time_to_first_token_s,
            total_s=timings.total_s,
        ),
        num_cached_tokens=finished.usage.num_cached_tokens,
    )


def _logprobs(position: pb.TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(chosen=_logprob(position.chosen), top=_all(position.top))


def _all(candidates: Sequence[pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(_logprob(candidate) for candidate in candidates)


def _logprob(candidate: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(candidate.token_id, candidate.logprob, candidate.text)
