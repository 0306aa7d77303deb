"""The HTTP application: routes, and how failures leave it."""

from __future__ import annotations

import re
from typing import Any

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chorale.errors import ChoraleError
from chorale.frames import forget_frames
from controlplane.gateway.access.guard import Guard, KeyCheck
from controlplane.gateway.gate import Gate
from controlplane.gateway.health import ControlPlaneHealth
from controlplane.gateway.http.body import Bodies
from controlplane.gateway.http.chat import chat_requests
from controlplane.gateway.http.completions import CompletionFormat, completion_requests
from controlplane.gateway.http.failures import ApiError, api_error, quoted
from controlplane.gateway.http.hosts import AllowedHosts, HostCheck
from controlplane.gateway.http.json_response import json_response
from controlplane.gateway.http.lorax import Lorax
from controlplane.gateway.http.lorax_tokens import LoraxTokens
from controlplane.gateway.http.models import Models
from controlplane.gateway.http.origins import Origins, checked_origins
from controlplane.gateway.http.responses import Responses, none_is_kept
from controlplane.gateway.http.schema import ChatBody, CompletionBody, parse_body
from controlplane.gateway.http.serving import Serving
from controlplane.gateway.http.sse import internal_fault
from controlplane.gateway.http.vllm_adapters import VllmAdapters, turned_off
from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.options import GatewayOptions
from controlplane.gateway.relay import Relay
from controlplane.gateway.tokenizing import Tokenizing


def make_app(
    relay: Relay,
    tokenizing: Tokenizing,
    control_plane: grpc.aio.Channel,
    health: ControlPlaneHealth,
    metrics: GatewayMetrics,
    calls: Gate,
    options: GatewayOptions,
    guard: Guard | None,
) -> Starlette:
    """The ASGI application. calls: those that change the registry, as over gRPC. guard: None: no
    keys are asked for."""
    serving = Serving(relay, options.http_timeout_s)
    bodies = Bodies(options.max_body_bytes)
    lorax = Lorax(serving, bodies)
    lorax_tokens = LoraxTokens(tokenizing, bodies, options.http_timeout_s)
    adapters = VllmAdapters(control_plane, calls, bodies, options.http_timeout_s)
    on = options.serves_http_registry
    load, unload = (adapters.load, adapters.unload) if on else (turned_off, turned_off)
    models = Models(control_plane)
    responses = Responses(serving, bodies)

    async def get_health(_: Request) -> Response:
        if health.serving:
            return json_response({"status": "ok"})
        if health.stopping:
            message = "the gateway is stopping; ask another"
            raise ApiError(503, message, code="gateway_stopping", retry_after_s=1.0)
        raise ApiError(
            503,
            "the control plane does not answer; try again soon",
            code="control_plane_unreachable",
            retry_after_s=1.0,
        )

    async def get_metrics(request: Request) -> Response:
        body, content_type = await metrics.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def list_models(_: Request) -> Response:
        return json_response(await models.list())

    async def get_model(request: Request) -> Response:
        return json_response(await models.get(request.path_params["name"]))

    async def get_info(_: Request) -> Response:
        return json_response(await models.info(options.max_concurrent_requests))

    async def completions(request: Request) -> Response:
        value = await bodies.read_object(request)
        body = parse_body(CompletionBody, value)
        shape = CompletionFormat(body)
        return await serving.answer(request, body, shape, completion_requests(body))

    async def chat_completions(request: Request) -> Response:
        body = parse_body(ChatBody, await bodies.read_object(request))
        shape, generations = chat_requests(body)
        return await serving.answer(request, body, shape, generations)

    handlers: dict[Any, Any] = {
        ApiError: _failed,
        ChoraleError: _upstream_failed,
        HTTPException: _not_routed,
        Exception: _faulted,
    }
    middleware: list[Middleware] = []
    if options.checks_host:
        middleware.append(Middleware(HostCheck, AllowedHosts(options.allowed_hosts)))
    if options.allowed_origins:
        middleware.append(Middleware(Origins, checked_origins(options.allowed_origins)))
    if guard is not None:
        middleware.append(Middleware(KeyCheck, guard))
    return Starlette(
        middleware=middleware,
        routes=[
            _Route("/health", get_health),
            _Route("/metrics", get_metrics),
            _Route("/v1/models", list_models),
            _Route("/v1/models/{name:path}", get_model),
            _Route("/v1/completions", completions, methods=["POST"]),
            _Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            _Route("/v1/responses", responses.create, methods=["POST"]),
            _Route("/v1/responses/{id}", none_is_kept, methods=["GET", "DELETE"]),
            _Route("/v1/load_lora_adapter", load, methods=["POST"]),
            _Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
            _Route("/", lorax.either, methods=["POST"]),
            _Route("/generate", lorax.generate, methods=["POST"]),
            _Route("/generate_stream", lorax.generate_stream, methods=["POST"]),
            _Route("/tokenize", lorax_tokens.tokenize, methods=["POST"]),
            _Route("/info", get_info),
        ],
        exception_handlers=handlers,
    )


class _Route(Route):
    """Of this very path: Starlette's own takes one with a newline behind it, too, which is another
    path to a proxy on the way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")


async def _failed(_: Request, error: ApiError) -> Response:
    forget_frames(error)
    return json_response(error.body, status=error.status, headers=error.headers)


async def _upstream_failed(request: Request, error: ChoraleError) -> Response:
    forget_frames(error)
    return await _failed(request, api_error(error))


async def _not_routed(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        failure = ApiError(404, f"no such path: {quoted(request.url.path)}", code="unknown_url")
    elif error.status_code == 405:
        message = f"{request.url.path[:200]} takes no {quoted(request.method)[1:-1]}"
        failure = ApiError(405, message, code="method_not_allowed")
    else:
        failure = ApiError(error.status_code, error.detail[:200])
    headers = {**failure.headers, **(error.headers or {})}
    return json_response(failure.body, status=failure.status, headers=headers)


async def _faulted(request: Request, _: Exception) -> Response:
    return await _failed(request, internal_fault())
