"""The status that a server ended a call with, which grpc.aio may write over."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar, cast

import grpc

from controlplane.gateway.upstream import is_typed

T = TypeVar("T")


class FirstStatus:
    """Of one call whose messages are streamed.

    A server may refuse them while one is being written. The write fails then, and grpc.aio sets
    "INTERNAL: Internal error from Core" as the call's status, even over the server's, which is lost
    when nobody has read it yet. A call's callbacks run each time that a status is set.
    """

    def __init__(self, call: Any) -> None:
        self._typed: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    def of(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """What the call ended with, which raised `error`."""
        return error if self._typed is None or is_typed(error) else self._typed

    def _note(self, call: Any) -> None:
        code: grpc.StatusCode = _result_of(call.code())
        if self._typed is not None or code is grpc.StatusCode.OK:
            return
        found = grpc.aio.AioRpcError(
            code,
            grpc.aio.Metadata(),
            _result_of(call.trailing_metadata()) or grpc.aio.Metadata(),
            _result_of(call.details()),
        )
        if is_typed(found):
            self._typed = found


def _result_of(answer: Coroutine[Any, Any, T]) -> T:
    """Of what has nothing to wait for, as a call that is done."""
    try:
        answer.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    answer.close()
    raise RuntimeError("the call is not done")
