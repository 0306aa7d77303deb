"""What HTTP clients see of a failure: OpenAI's error object and a status.

The openai SDK raises its classes by the status alone, and retries 429 and 5xx after `Retry-After`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from reprlib import Repr
from typing import Any

import grpc

from chorale.errors import ChoraleError, NotFoundError

_STATUS_OF: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_TYPE_OF = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_CODE_OF = {
    "PROMPT_TOO_LONG": "context_length_exceeded",
    "CONTEXT_EXCEEDED": "context_length_exceeded",
    "TENANT_QUOTA": "rate_limit_exceeded",
}
_PARAM_OF = {"chat": "messages", "prompt_token_ids": "prompt"}
_MAX_QUOTED = 200
_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _MAX_QUOTED


class ApiError(Exception):
    """A failure as it goes out.

    param: the request's field at fault. code: what went wrong, in lower_snake.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPE_OF.get(self.status, default),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        if self.retry_after_s is None:
            return {}
        return {
            "retry-after": str(max(1, math.ceil(self.retry_after_s))),
            "retry-after-ms": str(math.ceil(self.retry_after_s * 1000)),
        }


def bad_request(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """A 400 about the field `param`."""
    return ApiError(400, message, param=param, code=code)


def quoted(value: object) -> str:
    """`value` for a message, whatever its size."""
    text = _REPR.repr(value)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"


def api_error(error: ChoraleError) -> ApiError:
    """The ApiError that tells the same."""
    code = _CODE_OF.get(error.reason, error.reason.lower())
    param = _param(error)
    if isinstance(error, NotFoundError):
        code, param = "model_not_found", "model"
    status = _STATUS_OF.get(error.code, 500)
    return ApiError(
        status, error.message, param=param, code=code, retry_after_s=error.retry_after_s
    )


def _param(error: ChoraleError) -> str | None:
    path = error.metadata.get("field", "").removeprefix("sampling.")
    if path.startswith("constraint"):
        by_vllm_alone = ("constraint.regex", "constraint.choices", "constraint.grammar")
        return "structured_outputs" if path.startswith(by_vllm_alone) else "response_format"
    if path.startswith("chat.tool"):
        return "tools" if path.startswith("chat.tools") else "tool_choice"
    field = path.partition(".")[0]
    return _PARAM_OF.get(field, field) or None
