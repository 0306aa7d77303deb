"""Failures raise the openai SDK's own classes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from chorale.errors import (
    ChoraleError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.helpers.fake_fleet import FakeFleet, running_fleet, running_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO = [{"role": "user", "content": "hello you"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet() -> AsyncIterator[FakeFleet]:
    async with running_fleet() as fleet:
        yield fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sdk(fleet: FakeFleet) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        running_gateway(fleet) as gateway,
        openai.AsyncOpenAI(
            base_url=f"{gateway.http_url}/v1", api_key="unused", max_retries=0
        ) as sdk,
    ):
        yield sdk


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "raised", "code"),
    [
        (InvalidArgumentError("CONTEXT_EXCEEDED", "m"), openai.BadRequestError, 400),
        (FailedPreconditionError("ADAPTER_UNFIT", "m"), openai.BadRequestError, 400),
        (UnauthenticatedError("TOKEN_UNKNOWN", "m"), openai.AuthenticationError, 401),
        (PermissionDeniedError("NOT_YOURS", "m"), openai.PermissionDeniedError, 403),
        (ResourceExhaustedError("FULL", "m", retry_after_s=1.2), openai.RateLimitError, 429),
        (InternalError("FAULT", "m"), openai.InternalServerError, 500),
        (RuntimeError("secret"), openai.InternalServerError, 500),
        (DeadlineExceededError("DEADLINE_EXCEEDED", "m"), openai.InternalServerError, 504),
    ],
)
async def test_errors_raise_the_sdk_s_classes(
    sdk: openai.AsyncOpenAI,
    fleet: FakeFleet,
    error: Exception,
    raised: type[openai.APIStatusError],
    code: int,
    stream: bool,
) -> None:
    fleet.planes[0].errors = [error]
    with pytest.raises(raised) as seen:
        await sdk.completions.create(model="pirate", prompt="x", stream=stream)
    assert seen.value.status_code == code
    if isinstance(error, ChoraleError):
        assert seen.value.body["message"] == "m"
    assert "secret" not in str(seen.value)
    if code == 429:
        assert seen.value.response.headers["retry-after"] == "2"
        assert seen.value.response.headers["retry-after-ms"] == "1200"


async def test_unavailable_is_503_with_retry_after(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet
) -> None:
    fleet.admit_errors = [UnavailableError("NO_DATA_PLANE", "m", retry_after_s=3)]
    with pytest.raises(openai.InternalServerError) as seen:
        await sdk.completions.create(model="pirate", prompt="x")
    assert seen.value.status_code == 503 and seen.value.response.headers["retry-after"] == "3"


async def test_unknown_model(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as seen:
        await sdk.chat.completions.create(model="nobody", messages=HELLO)
    assert seen.value.code == "model_not_found" and seen.value.param == "model"


async def test_field_of_a_refusal_is_named_in_openai_s_terms(
    sdk: openai.AsyncOpenAI, fleet: FakeFleet
) -> None:
    fleet.planes[0].errors = [
        InvalidArgumentError(
            "CONTEXT_EXCEEDED", "too much", metadata={"field": "sampling.max_tokens"}
        )
    ]
    with pytest.raises(openai.BadRequestError) as seen:
        await sdk.completions.create(model="pirate", prompt="x")
    assert (seen.value.param, seen.value.code) == ("max_tokens", "context_length_exceeded")
