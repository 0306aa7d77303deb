"""HOST:PORT. A host that is an IPv6 address may be given with or without its brackets."""

from __future__ import annotations


def host_port(host: str, port: int) -> str:
    """As gRPC and URLs have it: an IPv6 address stands in brackets."""
    bare = bare_host(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def bare_host(host: str) -> str:
    """As sockets have it: without brackets."""
    return host.removeprefix("[").removesuffix("]")
