"""The requests of LoRAX's API, as lorax-client sends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from chorale.v1 import inference_pb2 as pb
from controlplane.gateway.http.constraints import LoraxFormat, lorax_constraint
from controlplane.gateway.http.failures import bad_request
from controlplane.gateway.http.fields import Test, nothing, one_of, parse_fields
from controlplane.gateway.http.schema import MAX_LOGPROBS, MAX_STOP, Count, StopText


class Parameters(BaseModel):
    """A field that is null is a field left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    adapter_id: Annotated[str, Field(max_length=512)] | None = None
    api_token: str | None = None
    max_new_tokens: Count | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=1, lt=2**32)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    stop: Annotated[list[StopText], Field(max_length=MAX_STOP)] | None = None
    ignore_eos_token: bool | None = None
    return_full_text: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    return_k_alternatives: Annotated[int, Field(ge=1, le=MAX_LOGPROBS)] | None = None
    response_format: LoraxFormat | None = None

    @property
    def samples(self) -> bool:
        """As in LoRAX: any of these asks for drawing, whatever `do_sample` says, and temperature 0
        for the likeliest token."""
        asks = (
            self.do_sample
            or self.temperature not in (None, 1.0)
            or self.top_k is not None
            or self.top_p not in (None, 1.0)
        )
        return bool(asks) and self.temperature != 0.0


class LoraxBody(BaseModel):
    """POST /, /generate and /generate_stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Annotated[str, Field(min_length=1)]
    stream: bool | None = None
    # Checked apart, for its fields to be named.
    parameters: dict[str, Any] | None = None


# As fields.py has it.
_NOT_SERVED: Mapping[str, Test] = {
    "adapter_parameters": nothing,
    "adapter_source": nothing,
    "apply_chat_template": one_of(False),
    "best_of": one_of(1),
    "merged_adapters": nothing,
    "truncate": nothing,
    "typical_p": one_of(1.0),
    "watermark": one_of(False),
}


def parse_lorax(value: Mapping[str, Any], *, stream: bool | None) -> tuple[LoraxBody, Parameters]:
    """stream: what the path says; None: the body says it.

    Raises: ApiError 400 naming the first field at fault.
    """
    body = parse_fields(LoraxBody, value, {})
    if stream is not None and body.stream not in (None, stream):
        message = f"stream={body.stream} contradicts the path; leave it out, or post to /"
        raise bad_request("stream", message)
    return body, parse_fields(Parameters, body.parameters or {}, _NOT_SERVED)


def lorax_request(inputs: str, asked: Parameters, *, logprobs: bool) -> pb.GenerateRequest:
    """logprobs: whether tokens are shown, each of which has one. Raises: ApiError 400."""
    temperature = 1.0 if asked.temperature is None else asked.temperature
    sampling = pb.SamplingParameters(
        temperature=temperature if asked.samples else 0.0,
        stop=asked.stop or (),
        ignore_eos=bool(asked.ignore_eos_token),
        max_tokens=asked.max_new_tokens,
        top_k=asked.top_k,
        top_p=asked.top_p,
        repetition_penalty=asked.repetition_penalty,
        seed=asked.seed,
        logprobs=(asked.return_k_alternatives or 0) if logprobs else None,
        prompt_logprobs=0 if asked.decoder_input_details else None,
        constraint=lorax_constraint(asked.response_format),
    )
    return pb.GenerateRequest(prompt=inputs, model=asked.adapter_id or "", sampling=sampling)
