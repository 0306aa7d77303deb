"""The objective for the first token, as a request carries it."""

from __future__ import annotations

from chorale.errors import InvalidArgumentError
from chorale.v1 import admission_pb2
from chorale.v1 import inference_pb2 as pb

HasObjective = pb.GenerateRequest | admission_pb2.AdmitRequest

MAX_TTFT_SLO_S = 86_400.0
_NANOS = 1_000_000_000


def ttft_slo_s(request: HasObjective) -> float | None:
    """Seconds from the request's arrival; None when it names no objective, or its first token has
    been delivered already. Raises: InvalidArgumentError (TTFT_SLO_OUT_OF_RANGE)."""
    if not request.HasField("ttft_slo"):
        return None
    slo = request.ttft_slo
    value_s = slo.seconds + slo.nanos / _NANOS
    if not 0 <= slo.nanos < _NANOS or not 0 < value_s <= MAX_TTFT_SLO_S:
        raise InvalidArgumentError(
            "TTFT_SLO_OUT_OF_RANGE",
            f"ttft_slo is {slo.seconds} s and {slo.nanos} ns; it must be more than 0 and at most "
            f"{MAX_TTFT_SLO_S:g} s, with 0 to {_NANOS - 1} ns; leave it out for no objective",
            metadata={"field": "ttft_slo", "seconds": str(slo.seconds), "nanos": str(slo.nanos)},
        )
    return None if _has_begun(request) else value_s


def ttft_path_s(request: HasObjective) -> float:
    """Seconds of the objective that are not the server's to spend. Raises: InvalidArgumentError
    (TTFT_PATH_OUT_OF_RANGE)."""
    value_s = request.ttft_path_s
    if not 0 <= value_s <= MAX_TTFT_SLO_S:  # nor no number
        raise InvalidArgumentError(
            "TTFT_PATH_OUT_OF_RANGE",
            f"ttft_path_s is {value_s:g}; it must be from 0 to {MAX_TTFT_SLO_S:g} seconds; "
            "leave it out where it is not known",
            metadata={"field": "ttft_path_s", "value": f"{value_s:g}"},
        )
    return value_s


def set_ttft_slo(request: HasObjective, value_s: float) -> None:
    """Raises: ValueError when it is no finite number of seconds, or too many."""
    if not -MAX_TTFT_SLO_S <= value_s <= 2 * MAX_TTFT_SLO_S:
        raise ValueError(f"ttft_slo={value_s!r} is not from 0 to {MAX_TTFT_SLO_S:g} seconds")
    request.ttft_slo.FromNanoseconds(round(value_s * _NANOS))


def _has_begun(request: HasObjective) -> bool:
    if isinstance(request, pb.GenerateRequest):
        return bool(request.generated_token_ids)
    return bool(request.prompt_size.num_generated_tokens)
