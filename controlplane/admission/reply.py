"""What the script of admission tells of a request that it does not refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from controlplane.admission.plane_rows import PlaneRow, decode_rows
from controlplane.errors import InvalidRequestError
from controlplane.registry.model import decode_version


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a model name means. For a base model, adapter fields are empty and version is 0."""

    base_model: str
    adapter: str = ""
    version: int = 0
    digest: str = ""
    source: str = ""
    private: bool = False
    weights_bytes: int = 0
    invocation_tokens: tuple[int, ...] = ()

    @property
    def prefix_digest(self) -> str:
        """Whose keys and values a prompt's beginning gets: before an activated LoRA's invocation
        the base model's, and nobody here knows where that is."""
        return "" if self.invocation_tokens else self.digest


class AdmitReply(NamedTuple):
    """admit.lua's, in its order. number: among admissions. num_before: of those, under way.
    max_priority: the tenant's own. running: the request's first ticket where it counts as running,
    else empty. refusal: why Redis takes no writes; empty where it does."""

    kind: str
    now_ms: int
    key_id: str
    name: str
    version: str
    record: str
    source: str
    planes: list[PlaneRow]
    is_private: bool
    number: int
    num_before: int
    max_priority: int | None
    num_charged: int
    tokens_charged: int
    running: str
    refusal: str

    @staticmethod
    def of(raw: Sequence[Any]) -> AdmitReply:
        kind, now_ms, key_id, name, version, record, source, planes, private, *rest = raw
        number, num_before, max_priority, num_charged, tokens_charged, running, refusal = rest
        return AdmitReply(
            kind,
            int(now_ms),
            key_id,
            name,
            version,
            record,
            source,
            decode_rows(planes),
            private == "1",
            int(number),
            int(num_before),
            None if max_priority == "" else int(max_priority),
            int(num_charged),
            int(tokens_charged),
            running,
            refusal,
        )

    @property
    def resolved(self) -> Resolved:
        """Raises: InvalidRequestError (MODEL_REQUIRED)."""
        if self.kind == "ADAPTER":
            record = decode_version(self.record)
            return Resolved(
                record.base_model,
                self.name,
                int(self.version),
                record.digest,
                self.source,
                self.is_private,
                record.size_bytes,
                record.invocation_tokens,
            )
        if self.kind == "BASE_MODEL":
            return Resolved(self.name)
        served = sorted({plane.base_model for plane in self.planes})
        if len(served) > 1:
            raise InvalidRequestError(
                "MODEL_REQUIRED",
                f"model is empty, and {len(served)} base models are served: name one of "
                f"{', '.join(served[:10])}",
                metadata={"field": "model"},
            )
        return Resolved(served[0] if served else "")
