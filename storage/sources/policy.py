"""What the operator lets be fetched: schemes, hosts, paths, and hosts inside the own network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from storage.errors import SourceNotAllowedError, SourceUnreadableError, excerpt

MAX_URI_CHARS = 4096
_DEFAULT_PORTS = {"http": 80, "https": 443}
_ALLOWED = re.compile(r"(hf|https?|s3|gs)://([^/?#@\s]*)(/[^?#\s]*)?", re.IGNORECASE)

_SECRETS = (
    (re.compile(r"([?#]).+", re.DOTALL), r"\1…"),
    # A user's name and password, also where a slash or both were forgotten.
    (re.compile(r"(//|^[A-Za-z][A-Za-z0-9+.-]*:/?(?!/)).*@", re.DOTALL), r"\1…@"),
    (re.compile(r"(//[^/?#@]*?):(?!\d*(?:[/?#]|$))[^/?#@]*"), r"\1:…"),  # whose host is cut off
)


class _Rule(NamedTuple):
    scheme: str
    host: str  # "" or "*" for all, "*.example.com" for all below
    port: int | None  # None where the scheme has none
    path: tuple[str, ...]


class SourcePolicy:
    """Network sources are closed but for `allowed`.

    allowed: prefixes of URIs, as `hf://` (the whole hub), `hf://org`, `https://host:port/path`,
    `https://*.example.com`, `https://*`, `s3://bucket/prefix`. private_hosts: HOST or HOST:PORT
    that may lie at a private, loopback or link-local address; they need a prefix as well.

    Raises: ValueError for what is no such prefix.
    """

    def __init__(self, allowed: Sequence[str] = (), private_hosts: Sequence[str] = ()) -> None:
        self._rules = tuple(_rule(text) for text in allowed)
        self._private_hosts = frozenset(host.lower() for host in private_hosts)

    def check(self, uri: str) -> None:
        """Raises: SourceNotAllowedError; SourceUnreadableError for a malformed URI."""
        parts = split(uri)
        port = _port(parts)
        path = segments(parts.path)
        for rule in self._rules:
            if (
                rule.scheme == parts.scheme
                and _host_matches(rule.host, parts.hostname or "")
                and rule.port == port
                and path[: len(rule.path)] == rule.path
            ):
                return
        raise SourceNotAllowedError(
            f"source {excerpt(uri)} is not among what this server may fetch; its operator can open "
            f"it with --allow-source {parts.scheme}://{parts.netloc[:200]}",
            metadata={"scheme": parts.scheme, "host": (parts.hostname or "")[:200]},
        )

    def may_be_private(self, host: str, port: int) -> bool:
        host = host.lower()
        return host in self._private_hosts or f"{host}:{port}" in self._private_hosts


def split(uri: str) -> SplitResult:
    """The parts of a network URI, scheme and host in lower case; there is no doubt about them.

    Raises: SourceUnreadableError for user names, queries, fragments, "..", backslashes and so on.
    """
    if len(uri) > MAX_URI_CHARS:
        raise SourceUnreadableError(
            f"source {excerpt(without_secrets(uri))} has {len(uri)} characters; the limit is "
            f"{MAX_URI_CHARS}"
        )
    try:
        parts = urlsplit(uri)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise _malformed(uri, "it is not a valid URI") from None
    if not uri.isascii() or not uri.isprintable() or " " in uri or "\\" in uri:
        raise _malformed(uri, "it has characters that must be percent-encoded")
    if not host or parts.username is not None or parts.password is not None:
        raise _malformed(uri, "it must name a host and no user; a token is sent apart")
    if parts.query or parts.fragment or uri.endswith(("?", "#")):
        raise _malformed(uri, "it has a query or fragment; a token is sent apart")
    if port == 0:
        raise _malformed(uri, "port 0 is none")
    if any(part in (".", "..") or set(part) & set("/\\\0") for part in segments(parts.path)):
        raise _malformed(uri, 'its path has "." or ".." or an encoded slash')
    return parts._replace(scheme=parts.scheme.lower(), netloc=parts.netloc.lower())


def segments(path: str) -> tuple[str, ...]:
    return tuple(unquote(part) for part in path.split("/") if part)


def _rule(text: str) -> _Rule:
    found = _ALLOWED.fullmatch(text)
    if not found:
        raise ValueError(
            f"{text!r} is no prefix of a source: hf://[ORG[/NAME]], https://HOST[:PORT][/PATH], "
            "s3://BUCKET[/PREFIX] or gs://BUCKET[/PREFIX]"
        )
    scheme, netloc, path = found[1].lower(), found[2].lower(), found[3] or ""
    if not netloc and scheme != "hf":
        raise ValueError(f"{text!r} names no host or bucket; {scheme}://* opens all")
    parts = urlsplit(f"{scheme}://{netloc or '*'}")
    return _Rule(scheme, parts.hostname or "*", _port(parts), segments(path))


def _port(parts: SplitResult) -> int | None:
    return parts.port or _DEFAULT_PORTS.get(parts.scheme)


def _host_matches(pattern: str, host: str) -> bool:
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return host == pattern


def _malformed(uri: str, problem: str) -> SourceUnreadableError:
    return SourceUnreadableError(
        f"source {excerpt(without_secrets(uri))} cannot be read: {problem}"
    )


def without_secrets(uri: str) -> str:
    """For messages, which go to logs."""
    for pattern, shown in _SECRETS:
        uri = pattern.sub(shown, uri)
    return uri
