"""How every channel to a Chorale server is set up."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A peer that is frozen or cut off says nothing: pings find out within 30 s, and within 10 s
    # where data was flowing, as gRPC then has a ping under way by itself. Servers allow a ping
    # each 10 s. Every ping is given up after ping_timeout, keepalive's too (a minute by default,
    # whatever keepalive_timeout says).
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # A server that restarts on its address is found again soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # One that comes back under its name, but with another address, too: gRPC would look it up at
    # most each 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
)

_PINGS = ("grpc.keepalive_time_ms", "grpc.http2.ping_timeout_ms")

CONTROL_PLANE_OPTIONS: tuple[tuple[str, int | str], ...] = (
    *(option for option in CHANNEL_OPTIONS if option[0] not in _PINGS),
    # A name may stand for several replicas: what one leaves unanswered is asked of another next.
    ("grpc.lb_policy_name", "round_robin"),
    # One that is frozen is out before the calls that hang there have been given up (gRPC itself
    # answers pings, however busy the process is), and they are made to another.
    ("grpc.keepalive_time_ms", 12_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
)
"""For those who serve by it: data planes and gateways."""
