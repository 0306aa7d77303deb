from __future__ import annotations

import pytest

from storage.errors import SourceNotAllowedError, SourceUnreadableError
from storage.sources.guard import is_public
from storage.sources.policy import SourcePolicy


@pytest.mark.parametrize(
    ("rule", "uri", "allowed"),
    [
        ("hf://", "hf://org/name", True),
        ("hf://org", "hf://org/name/sub", True),
        ("hf://org", "hf://other/name", False),
        ("hf://org/name", "hf://org/name-2", False),
        ("https://a.example", "https://a.example/x", True),
        ("https://a.example", "https://A.EXAMPLE:443/x", True),
        ("https://a.example", "https://a.example:8443/x", False),
        ("https://a.example:8443", "https://a.example:8443/x", True),
        ("https://a.example", "http://a.example/x", False),
        ("https://a.example", "https://a.example.evil.com/x", False),
        ("https://a.example/x", "https://a.example/x/y", True),
        ("https://a.example/x", "https://a.example/xy", False),
        ("https://a.example/x", "https://a.example/y/x", False),
        ("https://*.example", "https://b.example/x", True),
        ("https://*.example", "https://example/x", False),
        ("https://*.example", "https://bexample/x", False),
        ("https://*", "https://anything.org/x", True),
        ("https://*", "s3://bucket/x", False),
        ("s3://bucket/p", "s3://bucket/p/x", True),
        ("s3://bucket/p", "s3://other/p/x", False),
    ],
)
def test_prefixes(rule: str, uri: str, allowed: bool) -> None:
    policy = SourcePolicy([rule])
    if allowed:
        policy.check(uri)
    else:
        with pytest.raises(SourceNotAllowedError) as caught:
            policy.check(uri)
        assert "--allow-source" in caught.value.message


@pytest.mark.parametrize(
    "uri",
    [
        "https://user@a.example/x",
        "https://user:secret@a.example/x",
        "https://user:sec/secret@a.example/x",
        "https://user:secret",
        "https://a.example/x?token=secret",
        "https://a.example/x#secret",
        "https://user:secret@a.example/" + "x" * 5000,
        "https://a.example@evil.com/x",
        "https://a.example/x?y=1",
        "https://a.example/x#y",
        "https://a.example/x/../y",
        "https://a.example/x/%2e%2e/y",
        "https://a.example/x%2f..%2fy",
        "https://a.example\\@evil.com/x",
        "https://a.example/x y",
        "https://a.example/x\n",
        "https://a.example:0/x",
        "https://a.example:99999/x",
        "https:///x",
        "https://[::1/x",
        "https://é.example/x",
        "https://a.example/" + "x" * 5000,
    ],
)
def test_doubtful_uris_are_refused(uri: str) -> None:
    with pytest.raises(SourceUnreadableError) as caught:
        SourcePolicy(["https://*"]).check(uri)
    assert "secret" not in caught.value.message
    assert caught.value.message.startswith("source 'https://")


@pytest.mark.parametrize(
    "rule", ["", "*", "ftp://x", "https://", "s3://", "file:///x", "a b", "https://h?x"]
)
def test_rules_that_mean_nothing_are_refused(rule: str) -> None:
    with pytest.raises(ValueError, match=r"prefix|host"):
        SourcePolicy([rule])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fec0::1", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
    ],
)
def test_what_lies_inside_the_network(address: str, public: bool) -> None:
    assert is_public(address) is public
