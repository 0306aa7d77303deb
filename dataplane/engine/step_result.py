"""What became known by a step: new tokens, and requests that ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataplane.channel import Output, TokenLogprobs
from dataplane.engine.device import DeviceTime
from dataplane.engine.sequence import Sequence


@dataclass
class StepResult:
    """failures: handles of requests that ended with an error. times: of the steps it is from."""

    outputs: list[Output] = field(default_factory=list[Output])
    failures: list[tuple[int, Exception]] = field(default_factory=list[tuple[int, Exception]])
    times: list[DeviceTime] = field(default_factory=list[DeviceTime])

    @property
    def is_empty(self) -> bool:
        """There is nothing to tell of any request."""
        return not self.outputs and not self.failures

    def tokens(
        self,
        sequence: Sequence,
        token_ids: list[int],
        logprobs: list[TokenLogprobs],
        scores: list[TokenLogprobs],
        *,
        first: bool,
    ) -> None:
        """It goes on. first: they begin with the first of those generated here. scores:
        of its prompt, with the first."""
        self.outputs.append(
            Output(
                handle=sequence.handle,
                token_ids=token_ids,
                logprobs=logprobs,
                timings=sequence.timings() if first else None,
                prompt_logprobs=scores,
            )
        )

    def end(
        self,
        sequence: Sequence,
        token_ids: list[int],
        logprobs: list[TokenLogprobs],
        scores: list[TokenLogprobs],
        *,
        finish: str,
        stop_token: int,
    ) -> None:
        """It has ended well, with these as its last. finish, stop_token: `finish_reason` of it."""
        self.outputs.append(
            Output(
                handle=sequence.handle,
                token_ids=token_ids,
                logprobs=logprobs,
                finish=finish,
                stop_token_id=stop_token,
                timings=sequence.timings(),
                prompt_logprobs=scores,
            )
        )

    def fail(self, sequence: Sequence, error: Exception) -> None:
        self.failures.append((sequence.handle, error))
